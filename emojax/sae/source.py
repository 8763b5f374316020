"""What the trainer takes its batches from: `store.Split` and `stream.Stream` are this."""

from collections.abc import Generator
from typing import Any, Protocol, runtime_checkable

from emojax.sae.ahead import Stopwatch
from emojax.sae.store import Batch


@runtime_checkable
class Source(Protocol):
    """Batches of raw activations, and a place among them to go on from.

    State and position are those after the last batch that was given out. The state is a pytree of
    arrays on the mesh, alike in all processes; the position is this process' own, as JSON.
    """

    @property
    def width(self) -> int:
        """Numbers per activation."""
        ...

    @property
    def has_target(self) -> bool:
        """Whether a transcoder's target comes with them."""
        ...

    @property
    def waiting(self) -> Stopwatch:
        """How long the host was waited for: for text, or for the disk."""
        ...

    def steps_per_epoch(self, batch_tokens: int) -> int:
        """Batches that one pass gives."""
        ...

    def sample(self, tokens: int) -> Batch:
        """The first raw activations, the same whenever it is asked."""
        ...

    def batches(
        self, batch_tokens: int, seed: int, first_step: int = 0
    ) -> Generator[Batch, None, None]:
        """Endless batches, the first of them for `first_step`.

        Raises:
          UserError: there are no more; state and position are then still those after the last.
        """
        ...

    def like(self) -> Any:
        """The shapes of `state`."""
        ...

    def state(self) -> Any:
        """What a checkpoint keeps."""
        ...

    def position(self) -> Any:
        """What a checkpoint keeps of each process."""
        ...

    def restore(self, state: Any, position: Any) -> None:
        """Goes on from there."""
        ...

    def origin(self, batch_tokens: int, seed: int, step: int) -> str:
        """Where the batch of a step, counted from 0, came from, for whoever looks for a NaN."""
        ...
