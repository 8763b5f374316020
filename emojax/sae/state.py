"""What a step changes and a checkpoint holds: where it lives, how it starts, what comes of it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from emojax.errors import UserError
from emojax.sae import coder
from emojax.sae.coder import SaeConfig, SparseAutoencoder
from emojax.sae.objectives import OBJECTIVES
from emojax.sae.source import Source
from emojax.sae.store import Batch
from emojax.sae.train_config import TrainConfig

SAMPLE_TOKENS = 16_384
LATENT_MAJOR = ("w_enc", "b_enc", "w_dec", "threshold", "r_mag", "b_mag", "idle")
LOGGED = ("loss", "reconstruction", "penalty", "aux", "l0")


class TrainState(NamedTuple):
    """All that a step changes; with the settings' seed, `step` is the place in the data.

    Attributes:
      params: the dictionary's arrays by name, and what its objective trains besides.
      mu: Adam's first moments of them.
      nu: Adam's second moments.
      average: their running mean (empty without one).
      idle: tokens since each latent last fired.
      cutoff: running mean of the least activation kept (batch_topk, matryoshka).
      scales: what the input and the target are multiplied with.
      variance: of the scaled target: the unit of the loss.
      dead: latents that were dead at the last step.
      sums: what is logged, summed since the last line of the log.
      bad: the first step whose loss was not finite; 0: there is none.
      step: steps made.
    """

    params: dict[str, Any]
    mu: dict[str, Any]
    nu: dict[str, Any]
    average: dict[str, Any]
    idle: Any
    cutoff: Any
    scales: Any
    variance: Any
    dead: Any
    sums: dict[str, Any]
    bad: Any
    step: Any


def make_mesh(settings: TrainConfig, n_latents: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh (`data`, `latent`) over the first devices, or over all of them if several processes.

    Args:
      settings: the sizes of the axes, and the batch.
      n_latents: latents of the dictionary.
      devices: those that there are (default: JAX's).

    Raises:
      UserError: as `mesh_parts`.
    """
    devices = jax.devices() if devices is None else devices
    several = jax.process_count() > 1
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    within, across = mesh_parts(settings, n_latents, len(devices), slices, use_all=several)
    # Without the split, a torus of 4 × 4 chips could not be 2 × 8 shards.
    split = {"allow_split_physical_axes": True}
    if slices == 1:
        grid = mesh_utils.create_device_mesh(within, devices[: math.prod(within)], **split)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(within, across, devices, **split)
    return Mesh(grid, ("data", "latent"), axis_types=(AxisType.Auto, AxisType.Auto))


def mesh_parts(
    settings: TrainConfig, n_latents: int, devices: int, slices: int, *, use_all: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shape of the mesh (`data`, `latent`) within a slice, and that of the slices.

    Between slices (of TPUs; hosts of GPUs) there is only a network. One axis crosses it and the
    other stays within: `data` crosses if the slices divide it, else `latent`.

    Raises:
      UserError: there are too few devices, or an axis does not divide what it splits.
    """
    shape = (settings.data_shards, settings.latent_shards)
    size = math.prod(shape)
    named = f"The mesh of {shape[0]} data by {shape[1]} latent shards"
    if size > devices:
        raise UserError(
            f"{named} needs {size} devices and there are {devices}; give smaller shards."
        )
    if devices % size or ((use_all or slices > 1) and size != devices):
        raise UserError(
            f"{named} does not divide the {devices} devices, or leaves some process without work; "
            "give shards that use them all."
        )
    if settings.batch_tokens % shape[0] or n_latents % shape[1]:
        raise UserError(
            f"{named} does not divide the batch of {settings.batch_tokens} tokens and the "
            f"{n_latents} latents; give shards that do."
        )
    if shape[0] % slices == 0:
        return (shape[0] // slices, shape[1]), (slices, 1)
    if shape[1] % slices == 0:
        return (shape[0], shape[1] // slices), (1, slices)
    raise UserError(
        f"{named} cannot be laid over {slices} slices; make one of the two a multiple of {slices}."
    )


def specs(tree: Any) -> Any:
    """How each leaf is split: latent-major ones over `latent`, the rest not at all."""

    def of(path, _):
        name = getattr(path[-1], "key", getattr(path[-1], "name", None))
        return P("latent") if name in LATENT_MAJOR else P()

    return jax.tree_util.tree_map_with_path(of, tree)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Where each leaf lives."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree))


def scaled(
    config: SaeConfig, scales: Float[Array, "2"], batch: Batch
) -> tuple[Float[Array, "tokens d_model"], Float[Array, "tokens d_model"]]:
    """Raw activations → what the dictionary is trained on: inputs, and what they should become."""
    x = coder.scale(config, jnp.asarray(batch.x))[0] * scales[0]
    if batch.target is None:
        return x, x
    return x, jnp.asarray(batch.target, jnp.float32) * scales[1]


def sample(source: Source) -> Batch:
    """The activations from which a run takes its scales, its centre and its unit of the loss."""
    return source.sample(SAMPLE_TOKENS)


def scales_of(config: SaeConfig, found: Batch) -> np.ndarray:
    """What inputs and targets are multiplied with."""
    if config.input_scale != "mean_norm":
        return np.ones(2, np.float32)
    both = found.x, found.x if found.target is None else found.target
    norms = [np.mean(np.linalg.norm(x, axis=1)) for x in both]
    return np.array([1 / norm for norm in norms], np.float32)


def start(config: SaeConfig, settings: TrainConfig, found: Batch, mesh: Mesh) -> TrainState:
    """The state before the first step, given a sample of the activations.

    Raises:
      UserError: the sample is not finite.
    """
    scales = scales_of(config, found)
    _, target = scaled(config, jnp.asarray(scales), found)
    centre = np.asarray(coder.geometric_median(target))
    variance = np.asarray(jnp.mean(jnp.sum((target - jnp.mean(target, axis=0)) ** 2, axis=1)))
    if not np.isfinite(variance):
        raise UserError(
            f"Among the first {len(found.x):,} activations are some that are not finite; look at "
            "the model, and capture again into another --store."
        )

    return _starter(config, settings, mesh)(centre, variance, scales)


@functools.cache
def _starter(config: SaeConfig, settings: TrainConfig, mesh: Mesh) -> Callable[..., TrainState]:
    """`fresh`, jitted once for all runs of a kind, with its leaves where they live."""
    places = jax.tree.map(lambda x: x.sharding, like(config, settings, mesh))
    return jax.jit(functools.partial(fresh, config, settings), out_shardings=places)


def like(config: SaeConfig, settings: TrainConfig, mesh: Mesh) -> TrainState:
    """The shapes of a state, and where its leaves live."""
    numbers = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((config.d_model,), (), (2,))]
    state = jax.eval_shape(functools.partial(fresh, config, settings), *numbers)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        state,
        shardings(state, mesh),
    )


def fresh(
    config: SaeConfig,
    settings: TrainConfig,
    centre: Float[Array, " d_model"],
    variance: Float[Array, ""],
    scales: Float[Array, "2"],
) -> TrainState:
    """The state before the first step, from what `start` takes of a sample; may be traced."""
    sae = coder.init(config, centre)
    params: dict[str, Any] = {
        name: getattr(sae, name) for name in ("w_enc", "b_enc", "w_dec", "b_dec")
    }
    params |= OBJECTIVES[config.architecture].extra(config)
    return TrainState(
        params=params,
        mu=jax.tree.map(jnp.zeros_like, params),
        nu=jax.tree.map(jnp.zeros_like, params),
        average=dict(params) if settings.ema_decay else {},
        idle=jnp.zeros(config.n_latents, jnp.int32),
        cutoff=jnp.zeros(()),
        scales=scales,
        variance=variance,
        dead=jnp.zeros(()),
        sums={name: jnp.zeros(()) for name in LOGGED},
        bad=jnp.zeros((), jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def finish(config: SaeConfig, state: TrainState) -> SparseAutoencoder:
    """The dictionary that a state holds, on every host: running mean, unit rows, scales folded in.

    Rows of a running mean, and of an objective that leaves them free, are no unit vectors: their
    norms move into the encoder. Scaling by a number s before the encoder and by 1/s after the
    decoder is the same as dividing biases and thresholds by s: pre-activations and codes come out
    in raw units.
    """
    params = state.average or state.params
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    arrays: dict[str, Any] = {
        name: jnp.asarray(value) for name, value in jax.device_get(params).items()
    }
    cutoff = jnp.asarray(jax.device_get(state.cutoff))
    arrays = OBJECTIVES[config.architecture].finished(arrays, cutoff)
    norm = jnp.linalg.norm(arrays["w_dec"], axis=1, keepdims=True)
    arrays["w_dec"] = arrays["w_dec"] / norm
    arrays["w_enc"] = arrays["w_enc"] * norm
    for name in ("b_enc", "threshold"):
        if name in arrays:
            arrays[name] = arrays[name] * norm[:, 0]
    read, write = (float(s) for s in jax.device_get(state.scales))
    arrays["w_enc"] = arrays["w_enc"] * (read / write)
    for name in ("b_enc", "b_dec", "threshold"):
        if name in arrays:
            arrays[name] = arrays[name] / write
    return SparseAutoencoder(**arrays, config=config)


def untrained(config: SaeConfig, found: Batch) -> SparseAutoencoder:
    """The control: the dictionary's rows before the first step, with k latents per token (TopK)."""
    scales = scales_of(config, found)
    _, target = scaled(config, jnp.asarray(scales), found)
    return coder.control(config, coder.geometric_median(target) / scales[1])


def random(config: SaeConfig, found: Batch) -> SparseAutoencoder:
    """A stronger control: random rows that are spread as the activations are (same covariance).

    Random dictionaries can rival trained ones ("Sanity checks for sparse autoencoders",
    arXiv:2602.14111). Tied, TopK. Rows that point the same way add up to many times what they are
    to make, so that the encoder's are shrunk by the number that leaves least of the sample.
    """
    start = untrained(config, found)
    scales = scales_of(config, found)
    x, target = scaled(config, jnp.asarray(scales), found)
    x = x - jnp.mean(x, axis=0)
    # Random mixtures of centred activations have the activations' covariance.
    mixture = jax.random.normal(jax.random.key(config.seed), (config.n_latents, x.shape[0]))
    rows = mixture @ x
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    tied = dataclasses.replace(start, w_enc=rows, w_dec=rows)
    made = coder.decode(tied, coder.encode(tied, jnp.asarray(found.x))) - start.b_dec
    wanted = target / scales[1] - start.b_dec
    shrunk = jnp.maximum(jnp.vdot(wanted, made) / jnp.vdot(made, made), 0)
    return dataclasses.replace(tied, w_enc=shrunk * rows)
