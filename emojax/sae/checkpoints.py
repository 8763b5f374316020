"""Checkpoints of a training run: Orbax, asynchronous, the last few and the best kept.

Each holds the state and a digest of its bits. One that cannot be read, or whose bits are others, is
named, moved to `damaged/` beside it with a note of why, and the one before it is used: nothing is
overwritten.
"""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32
from orbax.checkpoint import v1 as ocp

from emojax.errors import UserError
from emojax.files import Place, atomic, is_address, reason

policies = ocp.training.preservation_policies


def room(directory: Place, keep: int, size: int) -> int:
    """Bytes that the latest `keep` and the best still need, each of `size`, beside what is there.

    One more is there while it is written.
    """
    if is_address(directory) or not directory.exists():
        there = 0
    else:
        there = sum(folder.name.isdigit() for folder in directory.iterdir())
    return max(0, keep + 1 - there) * size


class Checkpoints:
    """A folder of checkpoints, one per step. Saving goes on in the background."""

    def __init__(self, directory: Place, keep: int):
        self._directory = directory if is_address(directory) else directory.absolute()
        self._keep = keep

    def __enter__(self) -> "Checkpoints":
        self._set_aside_without_metrics()
        best = policies.BestN(
            get_metric_fn=lambda found: found["reconstruction"], reverse=True, n=1
        )
        context = ocp.Context()
        context.array.saving.use_compression = False  # floats hardly shrink, and it takes seconds
        self._files = ocp.training.Checkpointer(
            str(self._directory),
            context=context,
            # The loop decides when; Orbax only writes.
            # pyrefly: ignore [bad-argument-type]  # Orbax names its protocol's argument otherwise.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            # pyrefly: ignore [bad-argument-type]
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(self._keep), best]
            ),
            cleanup_tmp_directories=True,
        )
        logging.getLogger("absl").addFilter(_without_traceback)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._writing():
            self._files.close()
        if kind is None:  # After an error its threads still have something to say.
            logging.getLogger("absl").removeFilter(_without_traceback)

    def latest(self) -> int | None:
        """The last step that is wholly on the disk."""
        return None if self._files.latest is None else self._files.latest.step

    def saved(self) -> str:
        """What there is to go on from after an error."""
        step = self.latest()
        return "there is no checkpoint" if step is None else f"step {step} is saved"

    def save(self, state: Any, reconstruction: float, positions: list[Any]) -> None:
        """Starts to write the state under its own `step`; the best has the least reconstruction.

        Args:
          state: arrays, among them `step`.
          reconstruction: how good they are.
          positions: where each process is in its text (JSON), an entry for each.

        Raises:
          UserError: there is no room, or the one before could not be written; leaving `with` says
            so of the last one.
        """
        content: Any = {"state": state, "digest": digest(state)}
        metrics: Any = {"reconstruction": reconstruction}
        places: Any = {"positions": positions}
        step = int(state.step)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        with self._writing():
            # Orbax' threads, when the disk is full, tell of it in hundreds of lines.
            if not is_address(self._directory) and shutil.disk_usage(self._directory).free < size:
                self._files.wait()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._files.save_async(step, content, metrics=metrics, custom_metadata=places)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What the system refused, from Orbax' threads too, as what is saved and what to do."""
        try:
            yield
        except (OSError, ValueError) as error:  # The latter is TensorStore's.
            if isinstance(error, OSError):
                problem = reason(error)
            elif code := re.search(r"os_error_code='(\d+)'", str(error)):
                problem = os.strerror(int(code[1]))
            else:
                raise
            raise UserError(
                f"A checkpoint in {self._directory} could not be written ({problem}); "
                f"{self.saved()}: mend that (free room on a full disk) and run again."
            ) from None

    def positions(self, step: int) -> Any:
        """What `save` was given for a step."""
        found: Any = self._files.metadata(step).custom_metadata
        return (found or {}).get("positions")

    def restore(self, state: Any) -> Any:
        """The last whole checkpoint, placed as `state` is; `state` itself if there is none.

        Where a device or the host has no room for it, that error passes: the checkpoint is whole.
        """
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        bits = jax.eval_shape(digest, state)
        bits = jax.ShapeDtypeStruct(bits.shape, bits.dtype, sharding=state.step.sharding)
        expected: Any = {"state": like, "digest": bits}
        while (step := self.latest()) is not None:
            found: Any = None
            try:
                fault = _other_arrays(self._files.metadata(step).metadata, expected)
                if fault is None:
                    found = self._files.load(step, expected)
                    fault = _other_bits(found)
                if fault is None and not self.positions(step):
                    fault = "it does not say where in its data it was"
            except Exception as error:  # Orbax and TensorStore name a damaged file in many ways.
                if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                    raise
                fault = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            if fault is None:
                return found["state"]
            self._set_aside(step, fault)
        return state

    def _set_aside_without_metrics(self) -> None:
        """Orbax reads the metrics of all when it opens a folder, and ends if it cannot."""
        if jax.process_index() == 0 and self._directory.exists():
            for folder in list(self._directory.iterdir()):
                metrics = folder / "metrics" / "metrics"
                if not (folder.name.isdigit() and metrics.exists()):
                    continue
                try:
                    json.loads(metrics.read_text())
                except ValueError as error:
                    self._move(int(folder.name), f"its metrics cannot be read: {error}")
        _wait_for_all("look at metrics")

    def _set_aside(self, step: int, fault: str) -> None:
        if jax.process_index() == 0:
            self._move(step, fault)
        _wait_for_all(f"set aside {step}")
        self._files.reload()

    def _move(self, step: int, fault: str) -> None:
        source = self._directory / str(step)
        target = self._directory.parent / "damaged" / str(step)
        while target.exists():
            target = target.with_name(target.name + "_")
        logging.warning(
            "The checkpoint %s is damaged or of another run (%s); it is moved to %s, and the one "
            "before it is used.", source, fault, target,
        )  # fmt: skip
        # In a bucket a folder is there once something is in it.
        with atomic(target.with_name(f"{target.name}.txt")) as note:
            note.write_text(fault + "\n")
        source.rename(target)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Orbax tells of an error in a thread in hundreds of lines, and raises it as well."""
    return not record.exc_info


def _wait_for_all(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@jax.jit
def digest(state: Any) -> UInt32[Array, " leaves"]:
    """A sum over each leaf's bits that no mesh changes."""

    def of(leaf: Array) -> Array:
        unsigned = {2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).reshape(-1)
        place = jnp.arange(bits.size, dtype=jnp.uint32)
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return jnp.stack([of(leaf) for leaf in jax.tree.leaves(state)])


def _other_arrays(there: Any, expected: Any) -> str | None:
    """What a checkpoint's description says that is not expected, told before anything is read."""

    def described(tree: Any) -> dict[str, str]:
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{[*x.shape]}"
            for path, x in jax.tree.leaves_with_path(tree)
        }

    found, wanted = described(there), described(expected)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            return f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'there')}"
    return None


def _other_bits(found: Any) -> str | None:
    if np.array_equal(jax.device_get(found["digest"]), jax.device_get(digest(found["state"]))):
        return None
    return "its bits are not those that were saved"
