"""The loop: batches in, one jitted step each; it logs, saves, stops and goes on."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emojax.errors import UserError
from emojax.files import Place, atomic, require_room, writable_dir
from emojax.sae import interrupt, log, schedule
from emojax.sae import state as states
from emojax.sae.checkpoints import Checkpoints, room
from emojax.sae.coder import SaeConfig, SparseAutoencoder
from emojax.sae.progress import Progress
from emojax.sae.source import Source
from emojax.sae.speed import Meter
from emojax.sae.state import TrainState
from emojax.sae.step import is_fused, train_step
from emojax.sae.store import Batch
from emojax.sae.train_config import TrainConfig

AGREE_EVERY = 8
# Settings that change nothing that is computed, but for the order of sums over another mesh.
CHANGEABLE = ("data_shards", "latent_shards", "keep", "checkpoint_every", "store_gib")


def train(
    config: SaeConfig,
    settings: TrainConfig,
    source: Source,
    directory: Place,
    *,
    provenance: dict[str, Any] | None = None,
    resolved: Mapping[str, Any] | None = None,
) -> SparseAutoencoder:
    """Trains a dictionary, or goes on with what `directory` holds of the same run.

    `directory` gets `run.json` (what the run is), `training_log.jsonl` and `checkpoints/`. Ctrl-C
    and SIGTERM save; the same call then goes on, bitwise as if nothing had happened. With several
    processes each calls this, and the folder is one that all of them see, such as a `gs://` one.

    Args:
      config: what the dictionary is.
      settings: how it is trained.
      source: the activations, stored or streamed.
      directory: the run's folder.
      provenance: what else must be the same for a run to be the same run (JSON).
      resolved: the whole configuration, for `config.json` in the folder; what is refused leaves
        that of a former run.

    Raises:
      UserError: the folder holds another run, the data does not fit, the loss is not finite, a
        checkpoint or the log cannot be written, or the source can give no more; then what is
        trained is saved, if there is one process.
      KeyboardInterrupt: a signal came; everything is saved.
    """
    _check_fits(config, source)
    is_fused(config, settings, jax.default_backend())
    mesh = states.make_mesh(settings, config.n_latents)
    per_epoch = source.steps_per_epoch(settings.batch_tokens)
    steps = settings.epochs * per_epoch
    writable_dir(directory)
    first_process = jax.process_index() == 0
    if not check_run(directory, config, settings, provenance) and first_process:
        run = {"sae": dataclasses.asdict(config), "train": dataclasses.asdict(settings)}
        with atomic(directory / "run.json") as partial:
            partial.write_text(json.dumps(run | {"provenance": provenance}, indent=2) + "\n")

    rate = schedule.learning_rate(settings, config.n_latents, steps)
    like = Saved(states.like(config, settings, mesh), source.like())
    size = checkpoint_bytes(config, settings, mesh, like.source)
    require_room(directory, room(directory / "checkpoints", settings.keep, size) + size)
    with Checkpoints(directory / "checkpoints", settings.keep) as checkpoints:
        state = _begun(config, settings, source, mesh, checkpoints, like)
        if resolved is not None and first_process:
            with atomic(directory / "config.json") as partial:
                partial.write_text(json.dumps(resolved, indent=2) + "\n")
        first = int(state.step)
        if first and first_process:
            logging.warning("The run in %s goes on after step %d of %d.", directory, first, steps)
        batches = source.batches(settings.batch_tokens, settings.seed, first)
        progress = Progress(steps, first, settings.batch_tokens, shown=first_process)
        upcoming: Batch | None = None
        with (
            contextlib.closing(batches),
            contextlib.closing(progress),
            log.Log(directory, first) if first_process else contextlib.nullcontext() as lines,
            interrupt.requested() as asked,
        ):
            stop, meter = _Stop(asked, mesh), Meter(config, settings, source.waiting, first)
            for number in range(first, steps):
                batch = next(batches) if upcoming is None else upcoming
                state = train_step(config, settings, steps, mesh, state, placed(batch, mesh))
                now, last = number + 1, number + 1 == steps
                new_line = now % settings.log_every == 0 or last
                stopping = stop(now)
                save = now % settings.checkpoint_every == 0 or stopping or last
                # Asked for before this step's numbers are waited for; what is saved is the source
                # as this step left it.
                upcoming, failed = None, None
                try:
                    upcoming = None if save else next(batches)
                except UserError as error:
                    # All save together, and the other processes do not know.
                    failed, save = error, jax.process_count() == 1
                if save or new_line:
                    entry = _entry(settings, per_epoch, rate, state)
                    if int(state.bad):
                        raise UserError(_not_finite(state, settings, source, checkpoints.saved()))
                    if new_line:
                        entry |= meter.read(now)
                        progress.show(now, entry)
                        if lines is not None:
                            lines.write(now, entry)
                    if save:
                        if lines is not None:
                            lines.flush()
                        _save(checkpoints, source, state, entry["reconstruction"])
                if failed is not None:
                    raise failed
                if stopping and not last:
                    raise KeyboardInterrupt
    return states.finish(config, state)


class Saved(NamedTuple):
    """The arrays of a checkpoint.

    Attributes:
      train: what a step changes.
      source: what the source of the batches keeps: a stream's buffer.
    """

    train: TrainState
    source: Any

    @property
    def step(self) -> Any:
        """Steps made."""
        return self.train.step


def _begun(
    config: SaeConfig,
    settings: TrainConfig,
    source: Source,
    mesh: Mesh,
    checkpoints: Checkpoints,
    like: Saved,
) -> TrainState:
    """The state of the last checkpoint, its source gone to where it was; or one to begin with."""
    found = checkpoints.restore(like)
    if found is like:
        return states.start(config, settings, states.sample(source), mesh)
    positions = checkpoints.positions(int(found.step))
    if positions != [None] * len(positions) and len(positions) != jax.process_count():
        raise UserError(
            f"The text of the run's stream was read by {len(positions)} processes, each its own "
            f"part, and there are now {jax.process_count()}; go on with {len(positions)} "
            "(--processes), on any number of devices, or begin anew in another --out."
        )
    source.restore(found.source, positions[jax.process_index() % len(positions)])
    return found.train


def _save(
    checkpoints: Checkpoints, source: Source, state: TrainState, reconstruction: float
) -> None:
    """Writes a checkpoint of the state and of the source as it is now."""
    saved = Saved(state, source.state())
    checkpoints.save(saved, reconstruction, _of_all(source.position()))


def _of_all(position: Any) -> list[Any]:
    """The position of every process, on every process."""
    if jax.process_count() == 1:
        return [position]
    own = np.frombuffer(json.dumps(position).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(own)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(own)] = own
    everyone = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(everyone, sizes, strict=True)]


def checkpoint_bytes(config: SaeConfig, settings: TrainConfig, mesh: Mesh, source_like: Any) -> int:
    """How much a checkpoint fills, given the shapes of what its source keeps (`Source.like`)."""
    both = states.like(config, settings, mesh), source_like
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(both))


def placed(batch: Batch, mesh: Mesh) -> Batch:
    """A batch on the mesh, where a stream's is already; each device takes its own of a host's."""
    place = NamedSharding(mesh, P("data"))

    def put(x: np.ndarray | jax.Array) -> jax.Array:
        if isinstance(x, jax.Array):
            return x
        return jax.make_array_from_callback(x.shape, place, lambda part: x[part])

    return jax.tree.map(put, batch)


def _check_fits(config: SaeConfig, source: Source) -> None:
    if source.width != config.d_model:
        raise UserError(
            f"The SAE's d_model is {config.d_model} but the activations are {source.width} wide; "
            f"set sae.d_model={source.width}."
        )
    if (config.target_site is not None) != source.has_target:
        raise UserError(
            f"The SAE's target_site is {config.target_site} but the activations "
            f"{'have' if source.has_target else 'lack'} a target; give another --store, so that "
            "they are captured again."
        )


class _Stop:
    """Whether to stop: as soon as asked, or, where several processes must agree, soon after.

    Every few steps each says whether it was asked, and all read what was said the time before, so
    that nobody waits for the device: a signal to any of them counts within twice as many steps.
    """

    def __init__(self, asked: Callable[[], bool], mesh: Mesh):
        self._asked, self._place = asked, NamedSharding(mesh, P(mesh.axis_names))
        self._said: jax.Array | None = None

    def __call__(self, now: int) -> bool:
        if jax.process_count() == 1:
            return self._asked()
        if now % AGREE_EVERY:
            return False
        before, own = self._said, np.array([self._asked()])
        size = self._place.mesh.size
        self._said = _any(jax.make_array_from_callback((size,), self._place, lambda _: own))
        return before is not None and bool(before)


_any = jax.jit(jnp.any)


def _entry(
    settings: TrainConfig, per_epoch: int, rate: Callable[[Any], Any], state: TrainState
) -> dict[str, float | int]:
    """What a line of the log says of the steps since the last one: losses are means over them.

    Their sums are part of the state, so that a run that goes on writes the lines it would have
    written.
    """
    sums, dead, step = jax.device_get((state.sums, state.dead, state.step))
    step = int(step)
    count = (step - 1) % settings.log_every + 1
    return {
        "step": step,
        "tokens": step * settings.batch_tokens,
        **{name: float(f"{sums[name] / count:.6g}") for name in states.LOGGED},
        "dead": int(dead),
        "learning_rate": float(np.asarray(rate(step - 1))),
        "epoch": step / per_epoch,
    }


def _not_finite(state: TrainState, settings: TrainConfig, source: Source, saved: str) -> str:
    """The step, where its batch came from, and what is saved."""
    step = int(state.bad)
    origin = source.origin(settings.batch_tokens, settings.seed, step - 1)
    return (
        f"The loss is not finite at step {step} ({saved}); {origin}: set train.learning_rate "
        "lower, or look at the activations."
    )


def check_run(
    directory: Place,
    config: SaeConfig,
    settings: TrainConfig,
    provenance: Mapping[str, Any] | None,
) -> bool:
    """Whether a folder holds this run, as far as it is known; not, if there is none.

    Raises:
      UserError: it holds another one.
    """
    wanted = {"sae": dataclasses.asdict(config), "train": dataclasses.asdict(settings)}
    return check_same(directory / "run.json", "run", "--out", wanted | dict(provenance or {}))


def check_same(path: Place, kind: str, flag: str, wanted: Mapping[str, Any]) -> bool:
    """Whether there is a record, and in it what is wanted; `CHANGEABLE` may be another.

    Args:
      path: `run.json` of a run, or `config.json` of an artefact.
      kind: what the record is of, for a message.
      flag: which names its folder.
      wanted: parts of the record, by name.

    Raises:
      UserError: something in it is another.
    """
    if not path.exists():
        return False
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError):  # not as emojax writes it
        record = {}
    record |= record.get("provenance") or {}
    parts = json.loads(json.dumps(wanted))
    differing = [
        where for name in parts for where in _differing(name, record.get(name), parts[name])
    ]
    if differing:
        raise UserError(
            f"The folder {path.parent} holds a {kind} with another "
            f"{', '.join(sorted(differing))}; give another {flag}, or remove it."
        )
    return True


def _differing(name: str, before: Any, now: Any) -> list[str]:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [name]
    return [
        where
        for key in (before.keys() | now.keys()).difference(CHANGEABLE)
        for where in _differing(f"{name}.{key}", before.get(key), now.get(key))
    ]
