"""Checkpoints of a training run: Orbax, asynchronous, the last few kept."""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp


class Checkpoints:
    """A folder of checkpoints, one per step. Saving goes on in the background."""

    def __init__(self, directory: Path, keep: int):
        self._directory, self._keep = directory.absolute(), keep

    def __enter__(self) -> "Checkpoints":
        self._files = ocp.training.Checkpointer(
            str(self._directory),
            # The loop decides when; Orbax only writes.
            # pyrefly: ignore [bad-argument-type]  # Orbax names its protocol's argument otherwise.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            # pyrefly: ignore [bad-argument-type]
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
            cleanup_tmp_directories=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def latest(self) -> int | None:
        """The last step that is wholly on the disk."""
        return None if self._files.latest is None else self._files.latest.step

    def save(self, state: Any) -> None:
        """Starts to write the state under its own `step`."""
        self._files.save_async(int(state.step), state, overwrite=True)

    def restore(self, state: Any) -> Any:
        """The last checkpoint, placed as `state` is; `state` itself if there is none."""
        if self._files.latest is None:
            return state
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        return self._files.load(self._files.latest.step, like)
