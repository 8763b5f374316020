"""The decoder over a mesh: which axis of which parameter is split, by rules on their paths.

Megatron's way (Shoeybi et al. 2019, arXiv:1909.08053): what goes into a block is split by its
outputs (heads, MLP units), what comes out of it by its inputs, so that each block needs one sum
over the `model` axis after attention and one after the MLP. Rows are split over `data`. The
compiler inserts the sums; the functions of `decoder` stay as they are. `capture` and `generate`
split their rows over the mesh of the parameters that they are given (`spread`).
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emojax.errors import UserError
from emojax.lm import decoder, intervene
from emojax.lm.config import DecoderConfig
from emojax.lm.intervene import Prepared

# The first pattern that is all of a parameter's path says how it is split; axis 0 of `layers/` is
# the layer. What is not here is on every device.
RULES = (
    ("layers/(q|k|v|gate|up)", P(None, None, "model")),
    ("layers/(q|k|v|gate|up)_bias", P(None, "model")),
    ("layers/(o|down)", P(None, "model", None)),
    ("embed", P("model", None)),
    ("unembed", P(None, "model")),
)


def make_mesh(data: int = 1, model: int = 1) -> Mesh:
    """A mesh with the axes `data` (rows) and `model` (heads, MLP units, vocabulary).

    Raises:
      UserError: there are not `data * model` devices.
    """
    devices = jax.devices()
    if data < 1 or model < 1 or data * model > len(devices):
        raise UserError(
            f"A mesh of data={data} by model={model} was asked for and JAX sees {len(devices)} "
            "devices; choose two numbers of at least 1 whose product is at most that."
        )
    return jax.make_mesh(
        (data, model), ("data", "model"), (AxisType.Auto,) * 2, devices=devices[: data * model]
    )


def shardings(config: DecoderConfig, mesh: Mesh | AbstractMesh) -> dict[str, Any]:
    """Where each parameter lies, in the form of `decoder.shapes`.

    Keys and values are on every device where their heads are fewer than the `model` axis or do not
    divide by it, and so are embedding and unembedding where the vocabulary does not.

    Raises:
      UserError: the mesh lacks an axis, or query heads or MLP units do not divide by `model`.
    """
    absent = {"data", "model"} - set(mesh.axis_names)
    if absent:
        raise UserError(
            f"The mesh lacks the axis {min(absent)}; make it with emojax.lm.sharding.make_mesh."
        )
    size = mesh.shape["model"]
    for name in ("n_heads", "d_ff"):
        if getattr(config, name) % size:
            raise UserError(
                f"The mesh's axis model of {size} does not divide the model's {name} of "
                f"{getattr(config, name)}; choose an axis that does."
            )
    whole = set()
    if config.n_kv_heads % size:
        whole |= {"layers/k", "layers/v", "layers/k_bias", "layers/v_bias"}
    if config.vocab_size % size:
        whole |= {"embed", "unembed"}

    def place(path: Any, _: Any) -> NamedSharding:
        name = "/".join(key.key for key in path)
        specs = [spec for pattern, spec in RULES if re.fullmatch(pattern, name)]
        return NamedSharding(mesh, P() if name in whole or not specs else specs[0])

    return jax.tree_util.tree_map_with_path(
        place, decoder.shapes(config), is_leaf=lambda x: isinstance(x, tuple)
    )


def shard_params(config: DecoderConfig, params: decoder.Params, mesh: Mesh) -> decoder.Params:
    """Parameters that are in memory already, moved to where `shardings` wants them.

    Raises:
      UserError: as `shardings`.
    """
    return jax.device_put(params, shardings(config, mesh))


def shard_rows(mesh: Mesh | AbstractMesh, *arrays: Any) -> tuple[jax.Array, ...]:
    """Arrays `[batch, …]`, as tokens and their mask, split over `data` by their rows.

    Raises:
      UserError: the rows do not divide by the axis.
    """
    size = mesh.shape["data"]
    for array in arrays:
        if np.shape(array)[0] % size:
            raise UserError(
                f"The mesh's axis data of {size} does not divide the batch of "
                f"{np.shape(array)[0]} rows; choose a batch that does."
            )
    there = NamedSharding(mesh, P("data"))
    return tuple(jax.device_put(array, there) for array in arrays)


def spread(
    params: decoder.Params,
    interventions: tuple[Prepared, ...],
    *arrays: Any,
) -> tuple[tuple[Prepared, ...], tuple[jax.Array, ...]]:
    """A batch split by its rows over the axis `data` of the mesh that the parameters lie on.

    The last row is repeated until the axis divides their number; callers drop what becomes of the
    copies. Without such an axis, and under a trace, nothing is moved.

    Args:
      params: the decoder's parameters.
      interventions: as `prepare` made them for the batch.
      *arrays: `[batch, …]` each.
    """
    arrays = tuple(a if isinstance(a, jax.Array) else jnp.asarray(a) for a in arrays)
    there = jax.tree.leaves(params)[0]
    place = None if isinstance(there, jax.core.Tracer) else getattr(there, "sharding", None)
    if not isinstance(place, NamedSharding) or any(isinstance(a, jax.core.Tracer) for a in arrays):
        return interventions, arrays
    size, batch = place.mesh.shape.get("data", 1), len(arrays[0])
    if size == 1:
        return interventions, arrays
    if batch % size:
        rows = np.minimum(np.arange(-(-batch // size) * size), batch - 1)
        interventions = intervene.of_part(interventions, rows)
        arrays = tuple(array[rows] for array in arrays)
    return interventions, shard_rows(place.mesh, *arrays)
