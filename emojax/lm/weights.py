"""A Hugging Face directory's safetensors as the decoder's parameters, and back."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emojax import files
from emojax.errors import UserError
from emojax.lm import decoder, tensor_file
from emojax.lm.config import DecoderConfig
from emojax.lm.families import FAMILIES
from emojax.lm.families.family import Stored
from emojax.lm.tensor_file import Tensor

_INDEX = "model.safetensors.index.json"
# Tensors are read in pieces of about this many bytes, so that a file is never in memory whole.
_PIECE = 2**24
# What JAX needs to take a buffer over rather than copy it, on a CPU.
_ALIGNMENT = 64


def load(
    directory: Path, config: DecoderConfig, dtype: Any = jnp.float32, shardings: Any = None
) -> decoder.Params:
    """Reads the weights under `directory` into the decoder's parameters.

    Nothing is in the host's memory twice: each shard is filled from the file, converted on the way.

    Args:
      directory: holds `model.safetensors.index.json` and the files that it lists, or else
        `*.safetensors`.
      config: the decoder that they are for.
      dtype: what the parameters are converted to: float32, bfloat16 or float16.
      shardings: where they shall lie (`sharding.shardings`); None is JAX's default device.

    Raises:
      UserError: `dtype` is another one, a file is missing or broken, or tensors are missing,
        unexpected or of the wrong shape; the message lists all of them.
    """
    _check_dtype(dtype)
    found: dict[str, Tensor] = {}
    for path in _files(directory):
        found |= tensor_file.read(path)
    shapes = decoder.shapes(config)
    where = _where(config, found)
    _check(directory, config, where, found)

    def outer(leaf: str) -> jax.Array:
        def fill(index: tuple[slice, ...], out: np.ndarray) -> None:
            _read(found[where[leaf].name], where[leaf], index, out)

        return _placed(shapes[leaf], dtype, shardings and shardings[leaf], fill)

    def stacked(leaf: str) -> jax.Array:
        def fill(index: tuple[slice, ...], out: np.ndarray) -> None:
            for at, layer in enumerate(range(config.n_layers)[index[0]]):
                _read(found[_of_layer(where[leaf], layer)], where[leaf], index[1:], out[at])

        there = shardings and shardings["layers"][leaf]
        return _placed(shapes["layers"][leaf], dtype, there, fill)

    params: decoder.Params = {leaf: outer(leaf) for leaf in shapes if leaf != "layers"}
    return params | {"layers": {leaf: stacked(leaf) for leaf in shapes["layers"]}}


def save(
    directory: Path, config: DecoderConfig, params: decoder.Params, attributes: Mapping[str, Any]
) -> None:
    """Writes `model.safetensors` and `config.json` as Hugging Face's libraries read them.

    Args:
      directory: the folder, which is made if need be.
      config: the decoder's traits.
      params: its parameters; they are written in their own type, and `load` gives the same bits.
      attributes: what `config` was read from.

    Raises:
      UserError: the attributes describe another decoder or a larger model that it is part of, or
        the folder cannot be written or holds weights under other names.
    """
    if FAMILIES[config.family].part:
        raise UserError(
            f"A decoder that is part of a {config.family} model cannot be saved as one; save a "
            "model that is a decoder and nothing else."
        )
    if DecoderConfig.from_hf(attributes) != config:
        raise UserError(
            "The attributes given to save are not those of the model's config; give the dictionary "
            "of the config.json that it was read from."
        )
    where = _where(config, {})
    expected = _expected(config, where)
    kinds = {dtype: kind for kind, dtype in tensor_file.DTYPES.items()}
    tensors = {
        name: (kinds[_leaf(params, leaves[0][0]).dtype], shape)
        for name, (shape, leaves) in expected.items()
    }

    def data() -> Iterator[np.ndarray]:
        for name, (kind, shape) in tensors.items():
            tensor = np.empty(shape, tensor_file.DTYPES[kind])
            for leaf, layer in expected[name][1]:
                value = _leaf(params, leaf)
                where[leaf].put(tensor, np.asarray(value if layer is None else value[layer]))
            yield tensor

    files.writable_dir(directory)
    others = {p.name for pattern in ("*.safetensors", _INDEX) for p in directory.glob(pattern)}
    if others := sorted(others - {"model.safetensors"}):
        raise UserError(
            f"The folder {directory} already holds {', '.join(others)}, which would be read with "
            "the model saved there; choose an empty folder."
        )
    size = sum(tensor_file.DTYPES[kind].itemsize * math.prod(s) for kind, s in tensors.values())
    files.require_room(directory, size + 2**20)
    with files.atomic(directory / "model.safetensors") as partial:
        tensor_file.write(partial, tensors, data())
    attributes = {k: v for k, v in attributes.items() if k != "torch_dtype"}
    attributes["dtype"] = str(params["embed"].dtype)
    with files.atomic(directory / "config.json") as partial:
        partial.write_text(json.dumps(attributes, indent=2) + "\n")


def _check_dtype(dtype: Any) -> None:
    """Whole numbers would cut nearly all weights to 0, and narrower floats have no products."""
    try:
        known = dtype is not None and jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16, jnp.float16)
    except TypeError:
        known = False
    if not known:
        name = getattr(dtype, "__name__", dtype)
        raise UserError(
            f"The weights cannot be loaded as {name}; give jnp.float32, jnp.bfloat16 or "
            "jnp.float16."
        )


def _leaf(params: decoder.Params, leaf: str) -> jax.Array:
    return params[leaf] if leaf in params else params["layers"][leaf]


def _of_layer(stored: Stored, layer: int) -> str:
    return stored.name.replace("{}", str(layer))


def _where(config: DecoderConfig, found: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Where each parameter lies in a checkpoint with the tensors `found`."""
    family = FAMILIES[config.family]
    tensors = dict(family.tensors(config))
    embed = tensors["embed"].name
    fitting = [prefix for prefix in family.prefixes if prefix + embed in found]
    prefix = (fitting or family.prefixes)[0]

    def stored(leaf: str) -> Stored:
        if leaf == "unembed":
            return Stored(family.head, transposed=True)
        weight = tensors[leaf.removesuffix("_bias")]
        if not leaf.endswith("_bias"):
            return Stored(prefix + weight.name, weight.transposed, weight.outputs)
        return Stored(prefix + weight.name.removesuffix("weight") + "bias", False, weight.outputs)

    shapes = decoder.shapes(config)
    leaves = [leaf for leaf in shapes if leaf != "layers"] + list(shapes["layers"])
    return {leaf: stored(leaf) for leaf in leaves}


def _expected(
    config: DecoderConfig, where: Mapping[str, Stored]
) -> dict[str, tuple[tuple[int, ...], list[tuple[str, int | None]]]]:
    """Each tensor's shape as stored, and the parameters (and their layers) that are in it."""
    shapes = decoder.shapes(config)
    single = {leaf: shape for leaf, shape in shapes.items() if leaf != "layers"}
    leaves: list[tuple[str, str, int | None, tuple[int, ...]]] = [
        (where[leaf].name, leaf, None, shape) for leaf, shape in single.items()
    ]
    for layer in range(config.n_layers):
        for leaf, shape in shapes["layers"].items():
            leaves.append((_of_layer(where[leaf], layer), leaf, layer, shape[1:]))
    expected: dict[str, tuple[tuple[int, ...], list[tuple[str, int | None]]]] = {}
    for name, leaf, layer, shape in leaves:
        shape = shape[::-1] if where[leaf].transposed else shape
        if name in expected:  # several parameters share it: their outputs add up
            axis = 0 if where[leaf].transposed else len(shape) - 1
            before = expected[name][0]
            shape = tuple(n + before[i] if i == axis else n for i, n in enumerate(shape))
        expected[name] = shape, [*expected.get(name, ((), []))[1], (leaf, layer)]
    return expected


def _read(tensor: Tensor, stored: Stored, index: tuple[slice, ...], out: np.ndarray) -> None:
    """Copies the part `index` of a parameter into `out`, converting its type."""
    # Pieces along what is contiguous in the file; each maps it anew, so that pages are let go.
    axis = out.ndim - 1 if stored.transposed else 0
    step = max(1, _PIECE * out.shape[axis] // max(out.nbytes, 1))
    if not isinstance(stored.outputs, slice):
        step = out.shape[axis]  # gathered: whole at any rate
    for start in range(0, out.shape[axis], step):
        piece = (slice(None),) * axis + (slice(start, start + step),)
        out[piece] = stored.ours(tensor.open())[index][piece]


def _placed(
    shape: tuple[int, ...],
    dtype: Any,
    sharding: Any,
    fill: Callable[[tuple[slice, ...], np.ndarray], None],
) -> jax.Array:
    """An array whose shards on this host `fill(index, out)` writes, equal ones once."""
    if sharding is None:
        out = _aligned(shape, dtype)
        fill((slice(None),) * len(shape), out)
        return jax.device_put(out)
    buffers: dict[Any, np.ndarray] = {}
    shards = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        part = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        if part not in buffers:
            buffers[part] = _aligned(tuple(stop - start for start, stop in part), dtype)
            fill(index, buffers[part])
        shards.append(jax.device_put(buffers[part], device))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            paths = [directory / name for name in names]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(
                f"{index} is not an index of safetensors ({error}); fetch it again."
            ) from None
    else:
        paths = sorted(directory.glob("*.safetensors"))
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise UserError(
            f"The folder {directory} lacks {', '.join(missing) or '*.safetensors'}; "
            "name a Hugging Face directory with the model's weights."
        )
    return paths


def _check(
    directory: Path,
    config: DecoderConfig,
    where: Mapping[str, Stored],
    found: Mapping[str, Tensor],
) -> None:
    """Compares names and shapes before any tensor is read."""
    expected = _expected(config, where)
    problems = []
    for name, (shape, _) in expected.items():
        if name not in found:
            problems.append(f"{name} is missing")
        elif found[name].shape != shape:
            problems.append(f"{name} has shape {found[name].shape} instead of {shape}")
        elif found[name].kind not in tensor_file.DTYPES:
            problems.append(f"{name} has type {found[name].kind} instead of a float type")
    family = FAMILIES[config.family]
    for name in found.keys() - expected.keys():
        # A tied head is sometimes saved again.
        again = config.tied and name == family.head
        if not again and not re.search(family.ignored, name):
            problems.append(f"{name} is unexpected")
    if problems:
        raise UserError(
            f"The weights in {directory} do not fit their config.json: {'; '.join(problems)}; "
            "use the two from the same model."
        )
