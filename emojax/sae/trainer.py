"""Training: one jitted step over a mesh, and the loop that logs, saves and goes on.

Loss, in units of the scaled input, with v the variance of a sample of it:

    L = mean ‖x - x̂‖² / v  +  α · ‖e - ê‖² / ‖e‖²,    e = stop_gradient(x - x̂)

(Gao et al. 2024, arXiv:2406.04093, §2.3 and appendix A.2). ê is what the k_aux most active *dead*
latents make of the error; it is the only way by which a dead latent gets a gradient.
"""

import dataclasses
import functools
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from emojax_kernels import sparse_decode, topk_encode
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float
from tqdm import tqdm

from emojax.errors import UserError
from emojax.files import atomic, require_room, writable_dir
from emojax.sae import coder, interrupt
from emojax.sae.checkpoints import Checkpoints
from emojax.sae.coder import ARCHITECTURES, SaeConfig, SparseAutoencoder
from emojax.sae.store import Split


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a dictionary is trained.

    Attributes:
      epochs: passes over the stored activations.
      batch_tokens: tokens per step.
      learning_rate: Adam's peak rate; None: 2e-4 / √(n_latents / 2¹⁴) (Gao et al. 2024, §A.3).
      warmup_share: share of the steps over which the rate rises from 0.
      decay_share: share of the steps, at the end, over which it falls back to 0.
      aux_coefficient: α, the weight of the loss of dead latents; 0 leaves it out.
      k_aux: dead latents per token that the loss of dead latents uses.
      dead_after_tokens: a latent is dead once this many tokens passed without it.
      seed: of the order of the activations.
      log_every: steps between two lines of the log.
      checkpoint_every: steps between two checkpoints.
      keep: checkpoints kept.
      data_shards: size of the mesh axis over which tokens are split.
      latent_shards: size of the mesh axis over which latents are split.
    """

    epochs: int = 1
    batch_tokens: int = 1024
    learning_rate: float | None = None
    warmup_share: float = 0.05
    decay_share: float = 0.3
    aux_coefficient: float = 1 / 32
    k_aux: int = 64
    dead_after_tokens: int = 200_000
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    keep: int = 2
    data_shards: int = 1
    latent_shards: int = 1

    def __post_init__(self):
        counts = ("epochs", "batch_tokens", "k_aux", "dead_after_tokens", "log_every")
        counts += ("checkpoint_every", "keep", "data_shards", "latent_shards")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(
                    f"Training's {name} is {getattr(self, name)}; give a number of at least 1."
                )
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise UserError(f"The learning rate is {rate}; give a positive number.")
        for name in ("warmup_share", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"Training's {name} is {getattr(self, name)}; give a share between 0 and 1."
                )
        if self.aux_coefficient < 0:
            raise UserError(
                f"Training's aux_coefficient is {self.aux_coefficient}; give 0 or more."
            )


class TrainState(NamedTuple):
    """All that a step changes and a checkpoint holds; the place in the data follows from `step`.

    `params` are the arrays of a `SparseAutoencoder` by name, `moments` Adam's, `idle` the tokens
    since each latent last fired, `variance` the scale of the loss.
    """

    params: dict[str, Any]
    moments: Any
    idle: Any
    variance: Any
    step: Any


LATENT_MAJOR = ("w_enc", "b_enc", "w_dec", "idle")


def make_mesh(settings: TrainConfig, n_latents: int) -> Mesh:
    """The mesh (`data`, `latent`) over the first devices of this machine.

    Raises:
      UserError: there are too few devices, or an axis does not divide what it splits.
    """
    shape = (settings.data_shards, settings.latent_shards)
    if math.prod(shape) > jax.device_count():
        raise UserError(
            f"The mesh of {shape[0]} data by {shape[1]} latent shards needs {math.prod(shape)} "
            f"devices and there are {jax.device_count()}; give smaller shards."
        )
    if settings.batch_tokens % shape[0] or n_latents % shape[1]:
        raise UserError(
            f"The mesh of {shape[0]} data by {shape[1]} latent shards does not divide the batch of "
            f"{settings.batch_tokens} tokens and the {n_latents} latents; give shards that do."
        )
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, ("data", "latent"), (AxisType.Auto, AxisType.Auto), devices=devices)


def shardings(state: Any, mesh: Mesh) -> Any:
    """Where each leaf of a state lives: latent-major ones split over `latent`, the rest copied."""

    def of(path, _):
        name = getattr(path[-1], "key", getattr(path[-1], "name", None))
        return NamedSharding(mesh, P("latent") if name in LATENT_MAJOR else P())

    return jax.tree_util.tree_map_with_path(of, state)


def schedule(settings: TrainConfig, n_latents: int, steps: int) -> optax.Schedule:
    """Rises linearly, stays, falls linearly to 0 at the last step."""
    peak = settings.learning_rate or 2e-4 / math.sqrt(n_latents / 2**14)
    warm = max(1, round(settings.warmup_share * steps))
    decay = max(1, round(settings.decay_share * steps))
    return lambda step: (
        peak * jnp.clip(jnp.minimum((step + 1) / warm, (steps - step) / decay), 0.0, 1.0)
    )


def optimizer(rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam with the ε of Gao et al. 2024 (appendix A.3)."""
    return optax.adam(rate, b1=0.9, b2=0.999, eps=6.25e-10)


def untrained(config: SaeConfig, split: Split) -> SparseAutoencoder:
    """The dictionary before its first step, centred on a sample of the activations."""
    return coder.init(config, coder.geometric_median(_sample(config, split)))


def _sample(config: SaeConfig, split: Split) -> Float[Array, "tokens d_model"]:
    sample = split.read(0, min(split.tokens, 16_384))
    return coder.scale(config, jnp.asarray(sample.values * sample.norms[:, None]))[0]


def start(config: SaeConfig, split: Split, mesh: Mesh) -> TrainState:
    """The state before the first step."""
    sample = _sample(config, split)
    centre = coder.geometric_median(sample)
    variance = jnp.mean(jnp.sum((sample - jnp.mean(sample, axis=0)) ** 2, axis=1))

    def build(centre, variance):
        sae = coder.init(config, centre)
        params = {name: getattr(sae, name) for name in ("w_enc", "b_enc", "w_dec", "b_dec")}
        return TrainState(
            params=params,
            moments=optimizer(lambda _: 0.0).init(params),  # the rate leaves no trace in them
            idle=jnp.zeros(config.n_latents, jnp.int32),
            variance=variance,
            step=jnp.zeros((), jnp.int32),
        )

    places = shardings(jax.eval_shape(build, centre, variance), mesh)
    return jax.jit(build, out_shardings=places)(centre, variance)


@jax.custom_vjp
def sum_shards(part: Float[Array, "tokens d_model"]) -> Float[Array, "tokens d_model"]:
    """Sums what the shards of latents write; each shard's part gets the sum's own gradient."""
    return jax.lax.psum(part, "latent")


sum_shards.defvjp(lambda part: (sum_shards(part), None), lambda _, gradient: (gradient,))


@jax.custom_vjp
def into_shards(b_dec: Float[Array, " d_model"]) -> Float[Array, " d_model"]:
    """The same vector for each shard of latents; its gradient is the sum of theirs."""
    return b_dec


into_shards.defvjp(
    lambda b_dec: (b_dec, None), lambda _, gradient: (jax.lax.psum(gradient, "latent"),)
)


def losses(
    config: SaeConfig, settings: TrainConfig, params, idle, variance, x
) -> tuple[Array, dict[str, Array]]:
    """Loss of one shard of tokens on one shard of latents: inside `shard_map`.

    Only what `sum_shards` and `into_shards` say crosses shards in the gradient, so that it holds
    for kernels of which JAX knows nothing; over `data` the caller averages.

    Args:
      config: what the dictionary is.
      settings: how it is trained.
      params: the shard's rows, and the whole `b_dec`.
      idle: tokens since each of the shard's latents fired.
      variance: of the scaled input.
      x: [tokens, d_model] the shard's scaled activations.

    Returns:
      The mean over the shard's tokens, and what the log and the state need.
    """
    b_dec = params["b_dec"]
    sae = SparseAutoencoder(**params | {"b_dec": into_shards(b_dec)}, config=config)
    codes = ARCHITECTURES[config.architecture](sae, x, "latent")
    nowhere = jnp.zeros_like(b_dec)
    part = sparse_decode(codes.values, codes.indices, sae.w_dec, nowhere)
    error = x - b_dec - sum_shards(part)
    reconstruction = jnp.mean(jnp.sum(error**2, axis=1)) / variance

    dead = idle >= settings.dead_after_tokens
    n_dead = jax.lax.psum(jnp.sum(dead), "latent")
    auxiliary = jnp.zeros(())
    if settings.aux_coefficient:
        # A branch, because most steps of a healthy run have no dead latent to pay for.
        auxiliary = jax.lax.cond(
            n_dead > 0,
            lambda: aux_loss(settings.k_aux, sae, x, jax.lax.stop_gradient(error), dead),
            lambda: jnp.zeros(()),
        )
    fired = jnp.zeros_like(sae.b_enc).at[codes.indices].max(codes.values) > 0
    active = jax.lax.psum(jnp.sum(codes.values > 0), "latent")
    return reconstruction + settings.aux_coefficient * auxiliary, {
        "reconstruction": reconstruction,
        "aux": auxiliary,
        "l0": active / x.shape[0],
        "dead": n_dead,
        "fired": fired,
    }


def aux_loss(k_aux: int, sae: SparseAutoencoder, x, error, dead) -> Array:
    """Share of the error that the k_aux most active dead latents leave (Gao et al. 2024, §A.2).

    Its gradient reaches the dead latents' decoder rows, encoder rows and encoder biases.
    """
    k = min(k_aux, sae.b_enc.shape[0])
    centred = x - jax.lax.stop_gradient(sae.b_dec)
    values, indices = topk_encode(centred, sae.w_enc, sae.b_enc, k, mask=dead)
    values = coder.largest(values, k_aux, "latent")
    part = sparse_decode(values, indices, sae.w_dec, jnp.zeros_like(sae.b_dec))
    left = jnp.mean(jnp.sum((error - sum_shards(part)) ** 2, axis=1))
    return left / jax.lax.pmean(jnp.mean(jnp.sum(error**2, axis=1)), "data")


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=4)
def train_step(
    config: SaeConfig,
    settings: TrainConfig,
    steps: int,
    mesh: Mesh,
    state: TrainState,
    x: Float[Array, "tokens d_model"],
) -> tuple[TrainState, dict[str, Array]]:
    """One step of a run of `steps` on raw activations; the state's memory is reused (donated).

    Returns:
      The new state, and what the log needs.
    """
    rows = {"w_enc": P("latent"), "b_enc": P("latent"), "w_dec": P("latent"), "b_dec": P()}

    def shard(params, idle, variance, x):
        (loss, metrics), gradients = jax.value_and_grad(
            functools.partial(losses, config, settings), has_aux=True
        )(params, idle, variance, x)
        fired = jax.lax.pmax(metrics.pop("fired").astype(jnp.int32), "data")
        return jax.lax.pmean((gradients, metrics | {"loss": loss}), "data"), fired

    # Kernels need check_vma off: JAX cannot see what of their output varies over the mesh.
    gradients_of = jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(rows, P("latent"), P(), P("data")),
        out_specs=((rows, P()), P("latent")),
        check_vma=False,
    )
    scaled, _ = coder.scale(config, x)
    (gradients, metrics), fired = gradients_of(state.params, state.idle, state.variance, scaled)
    # Decoder rows stay on the unit sphere: the gradient's radial part would only be undone.
    row = state.params["w_dec"]
    radial = jnp.sum(gradients["w_dec"] * row, axis=1, keepdims=True)
    gradients = gradients | {"w_dec": gradients["w_dec"] - radial * row}
    adam = optimizer(schedule(settings, config.n_latents, steps))
    updates, moments = adam.update(gradients, state.moments, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    norm = jnp.linalg.norm(params["w_dec"], axis=1, keepdims=True)
    params = params | {"w_dec": params["w_dec"] / norm}
    idle = jnp.where(fired > 0, 0, jnp.minimum(state.idle + x.shape[0], 2**30))
    new = TrainState(params, moments, idle, state.variance, state.step + 1)
    return jax.lax.with_sharding_constraint(new, shardings(new, mesh)), metrics


def train(
    config: SaeConfig,
    settings: TrainConfig,
    split: Split,
    directory: Path,
    *,
    provenance: dict[str, Any] | None = None,
) -> SparseAutoencoder:
    """Trains a dictionary, or goes on with what `directory` holds of the same run.

    `directory` gets `run.json` (what the run is), `training_log.jsonl` and `checkpoints/`. Ctrl-C
    and SIGTERM save; the same call then goes on, bitwise as if nothing had happened.

    Args:
      config: what the dictionary is.
      settings: how it is trained.
      split: the activations.
      directory: the run's folder.
      provenance: what else must be the same for a run to be the same run (JSON).

    Raises:
      UserError: the folder holds another run, the width does not fit, or the loss is not finite.
      KeyboardInterrupt: a signal came; everything is saved.
    """
    width = split.arrays["values"].shape[1]
    if width != config.d_model:
        raise UserError(
            f"The SAE's d_model is {config.d_model} but the activations are {width} wide; set "
            f"sae.d_model={width}."
        )
    mesh = make_mesh(settings, config.n_latents)
    per_epoch = split.steps_per_epoch(settings.batch_tokens)
    steps = settings.epochs * per_epoch
    writable_dir(directory)
    run = {"sae": dataclasses.asdict(config), "train": dataclasses.asdict(settings)}
    _same_run(directory / "run.json", run | {"provenance": provenance})

    rate = schedule(settings, config.n_latents, steps)
    batch_place = NamedSharding(mesh, P("data"))
    state = start(config, split, mesh)
    require_room(directory, (settings.keep + 1) * sum(x.nbytes for x in jax.tree.leaves(state)))
    log = Log(directory / "training_log.jsonl")
    with (
        Checkpoints(directory / "checkpoints", settings.keep) as checkpoints,
        interrupt.requested() as stop,
        tqdm(total=steps * settings.batch_tokens, unit="tok", unit_scale=True, desc="train") as bar,
    ):
        state = checkpoints.restore(state)
        first = int(state.step)
        log.keep_until(first)
        bar.update(first * settings.batch_tokens)
        batches = split.batches(settings.batch_tokens, settings.seed, first)
        pending: list[dict[str, Array]] = []
        since = time.perf_counter()
        for number in range(first, steps):
            batch = jax.make_array_from_process_local_data(batch_place, next(batches))
            state, metrics = train_step(config, settings, steps, mesh, state, batch)
            pending.append(metrics)
            now, last, stopping = number + 1, number + 1 == steps, stop()
            save = now % settings.checkpoint_every == 0 or stopping or last
            if save or now % settings.log_every == 0:
                entry = _entry(pending, now, settings, checkpoints.latest())
                entry |= {
                    "learning_rate": float(jnp.asarray(rate(number))),
                    "epoch": now / per_epoch,
                }
                entry["tokens_per_second"] = round(
                    len(pending) * settings.batch_tokens / (time.perf_counter() - since)
                )
                bar.update(len(pending) * settings.batch_tokens)
                shown = {key: entry[key] for key in ("loss", "l0", "dead")}
                bar.set_postfix(shown, refresh=False)
                log.write(entry)
                pending, since = [], time.perf_counter()
            if save:
                checkpoints.save(state)
            if stopping and not last:
                raise KeyboardInterrupt
    whole = {name: jnp.asarray(jax.device_get(array)) for name, array in state.params.items()}
    return SparseAutoencoder(**whole, config=config)


def _entry(
    pending: list[dict[str, Array]], step: int, settings: TrainConfig, saved: int | None
) -> dict[str, Any]:
    """One line of the log: means since the last one; the step is named if a loss is not finite."""
    values = jax.device_get(pending)
    for i, metrics in enumerate(values):
        if not np.isfinite(metrics["loss"]):
            bad = step - len(values) + i + 1
            good = "there is no checkpoint" if saved is None else f"step {saved} is saved"
            raise UserError(
                f"The loss is {metrics['loss']} at step {bad} ({good}); set train.learning_rate "
                "lower, or look at the activations."
            )
    mean = {key: float(np.mean([m[key] for m in values])) for key in values[0] if key != "dead"}
    rounded = {key: float(f"{value:.6g}") for key, value in mean.items()}
    tokens = step * settings.batch_tokens
    return {"step": step, "tokens": tokens, **rounded, "dead": int(values[-1]["dead"])}


def _same_run(path: Path, run: dict[str, Any]) -> None:
    """Writes what the run is, or refuses a folder that holds another one."""
    run = json.loads(json.dumps(run))
    if path.exists():
        before = json.loads(path.read_text())
        differing = sorted(
            f"{part}.{key}"
            for part in run
            for key in (run[part] or {})
            if (before.get(part) or {}).get(key) != run[part][key]
        )
        if differing:
            raise UserError(
                f"The folder {path.parent} holds a run with another {', '.join(differing)}; give "
                "another --out, or remove it."
            )
    else:
        with atomic(path) as partial:
            partial.write_text(json.dumps(run, indent=2) + "\n")


class Log:
    """A JSONL file that a run that goes on can be cut back to its checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def keep_until(self, step: int) -> None:
        """Drops the lines after `step`, which will be written again."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        with atomic(self.path) as partial:
            partial.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))

    def write(self, entry: dict[str, Any]) -> None:
        """Appends one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
