"""The loop: batches in, one jitted step each; it logs, saves, stops and goes on."""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from emojax.errors import UserError
from emojax.files import atomic, require_room, writable_dir
from emojax.sae import interrupt, log, schedule, speed
from emojax.sae import state as states
from emojax.sae.checkpoints import Checkpoints
from emojax.sae.coder import SaeConfig, SparseAutoencoder
from emojax.sae.state import TrainState
from emojax.sae.step import is_fused, train_step
from emojax.sae.store import Batch, Split
from emojax.sae.train_config import TrainConfig


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
    and SIGTERM save; the same call then goes on, bitwise as if nothing had happened. With several
    processes each calls this, and the folder is one that all of them see.

    Args:
      config: what the dictionary is.
      settings: how it is trained.
      split: the activations.
      directory: the run's folder.
      provenance: what else must be the same for a run to be the same run (JSON).

    Raises:
      UserError: the folder holds another run, the data does not fit, or the loss is not finite.
      KeyboardInterrupt: a signal came; everything is saved.
    """
    _check_fits(config, split)
    is_fused(config, settings)
    mesh = states.make_mesh(settings, config.n_latents)
    per_epoch = split.steps_per_epoch(settings.batch_tokens)
    steps = settings.epochs * per_epoch
    writable_dir(directory)
    run = {"sae": dataclasses.asdict(config), "train": dataclasses.asdict(settings)}
    _same_run(directory / "run.json", run | {"provenance": provenance})

    first_process = jax.process_index() == 0
    rate = schedule.learning_rate(settings, config.n_latents, steps)
    state = states.start(config, settings, states.sample(split), mesh)
    require_room(directory, (settings.keep + 2) * sum(x.nbytes for x in jax.tree.leaves(state)))
    use = speed.flops_per_token(config) / speed.peak_flops()
    with (
        Checkpoints(directory / "checkpoints", settings.keep) as checkpoints,
        interrupt.requested() as stop,
        tqdm(
            total=steps * settings.batch_tokens,
            unit="tok",
            unit_scale=True,
            desc="train",
            disable=None if first_process else True,
        ) as bar,
    ):
        state = checkpoints.restore(state)
        first = int(state.step)
        if first and first_process:
            logging.warning("The run in %s goes on after step %d of %d.", directory, first, steps)
        sinks = log.sinks(directory, run, first) if first_process else []
        bar.update(first * settings.batch_tokens)
        batches = split.batches(settings.batch_tokens, settings.seed, first)
        since, counted = time.perf_counter(), first
        for number in range(first, steps):
            state = train_step(config, settings, steps, mesh, state, placed(next(batches), mesh))
            now, last = number + 1, number + 1 == steps
            new_line = now % settings.log_every == 0 or last
            stopping = _agreed(stop(), new_line)
            save = now % settings.checkpoint_every == 0 or stopping or last
            if save or new_line:
                found = _means(state, settings)
                if int(state.bad):
                    raise UserError(_not_finite(state, settings, split, checkpoints.latest()))
                if new_line:
                    seconds = time.perf_counter() - since
                    per_second = (now - counted) * settings.batch_tokens / seconds
                    entry = {
                        "step": now,
                        "tokens": now * settings.batch_tokens,
                        **found,
                        "dead": int(state.dead),
                        "learning_rate": float(np.asarray(rate(number))),
                        "epoch": now / per_epoch,
                        "tokens_per_second": round(per_second),
                        "mfu": float(f"{per_second * use:.3g}"),
                    }
                    bar.update((now - counted) * settings.batch_tokens)
                    shown = ("loss", "l0", "dead", "mfu")
                    bar.set_postfix({key: entry[key] for key in shown}, refresh=False)
                    for write in sinks:
                        write(now, entry)
                    since, counted = time.perf_counter(), now
                if save:
                    checkpoints.save(state, found["reconstruction"])
            if stopping and not last:
                raise KeyboardInterrupt
    return states.finish(config, state)


def placed(batch: Batch, mesh: Mesh) -> Batch:
    """A batch of the host on the mesh, each device taking its own tokens of it."""
    place = NamedSharding(mesh, P("data"))

    def put(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, place, lambda part: x[part])

    return jax.tree.map(put, batch)


def _check_fits(config: SaeConfig, split: Split) -> None:
    width = split.arrays["values"].shape[1]
    if width != config.d_model:
        raise UserError(
            f"The SAE's d_model is {config.d_model} but the activations are {width} wide; set "
            f"sae.d_model={width}."
        )
    if (config.target_site is not None) != ("target_values" in split.arrays):
        raise UserError(
            f"The SAE's target_site is {config.target_site} but the stored activations "
            f"{'have' if 'target_values' in split.arrays else 'lack'} a target; give another "
            "--store, so that they are captured again."
        )


def _agreed(stop: bool, new_line: bool) -> bool:
    """Whether to stop: as soon as asked; several processes agree on it at each line of the log."""
    if jax.process_count() == 1:
        return stop
    return new_line and bool(np.any(multihost_utils.process_allgather(np.array(stop))))


def _means(state: TrainState, settings: TrainConfig) -> dict[str, float]:
    """Means over the steps since the last line of the log.

    The sums are part of the state, so that a run that goes on writes the lines it would have
    written.
    """
    sums, step = jax.device_get((state.sums, state.step))
    count = (int(step) - 1) % settings.log_every + 1
    return {name: float(f"{sums[name] / count:.6g}") for name in states.LOGGED}


def _not_finite(state: TrainState, settings: TrainConfig, split: Split, saved: int | None) -> str:
    """The step, where its batch came from, and what is saved."""
    step = int(state.bad)
    tokens = split.tokens_of(settings.batch_tokens, settings.seed, step - 1)
    values, norms, rows, positions = (
        split.arrays[name][tokens].read().result()
        for name in ("values", "norms", "rows", "positions")
    )
    broken = np.flatnonzero(~(np.isfinite(norms) & np.isfinite(values).all(axis=1)))
    origin = "all of its batch's stored activations are finite, "
    if len(broken):
        origin = f"{len(broken)} of its batch's stored activations are not finite, "
    i = broken[0] if len(broken) else 0
    origin += f"the first is token {tokens[i]}, row {rows[i]}, position {positions[i]}"
    good = "there is no checkpoint" if saved is None else f"step {saved} is saved"
    return (
        f"The loss is not finite at step {step} ({good}); {origin}: set train.learning_rate "
        "lower, or look at the activations."
    )


def _same_run(path: Path, run: Mapping[str, Any]) -> None:
    """Writes what the run is, or refuses a folder that holds another one.

    The mesh may be another one: a run goes on with as many devices as there are.
    """
    run = json.loads(json.dumps(run))
    if path.exists():
        before = json.loads(path.read_text())
        differing = sorted(
            f"{part}.{key}"
            for part in run
            for key in (run[part] or {})
            if (before.get(part) or {}).get(key) != run[part][key]
            and key not in ("data_shards", "latent_shards")
        )
        if differing:
            raise UserError(
                f"The folder {path.parent} holds a run with another {', '.join(differing)}; give "
                "another --out, or remove it."
            )
    elif jax.process_index() == 0:
        with atomic(path) as partial:
            partial.write_text(json.dumps(run, indent=2) + "\n")
