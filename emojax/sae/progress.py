"""What a person sees of a run on its way."""

import datetime
import logging
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

SECONDS = 30.0  # between two lines, where there is no terminal


class Progress:
    """A bar in a terminal; a plain line now and then elsewhere: a pod's log, a file.

    Args:
      steps: of the whole run.
      first: those that were made before.
      batch_tokens: tokens per step.
      shown: whether this process is the one that shows it.
    """

    def __init__(self, steps: int, first: int, batch_tokens: int, shown: bool):
        self._steps, self._now, self._batch_tokens = steps, first, batch_tokens
        terminal = sys.stderr.isatty()
        self._lines, self._said = shown and not terminal, -SECONDS
        self._bar = tqdm(
            total=steps * batch_tokens,
            initial=first * batch_tokens,
            unit="tok",
            unit_scale=True,
            desc="train",
            disable=not (shown and terminal),
        )

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def show(self, step: int, entry: Mapping[str, float | int]) -> None:
        """Shows a line of the log."""
        self._bar.update((step - self._now) * self._batch_tokens)
        self._now = step
        shown = ("loss", "l0", "dead", "sae_mfu")
        self._bar.set_postfix({key: entry[key] for key in shown}, refresh=False)
        due = time.monotonic() - self._said >= SECONDS or step == self._steps
        if self._lines and due:
            self._said = time.monotonic()
            logging.info("%s", line(step, self._steps, self._batch_tokens, entry))


def line(step: int, steps: int, batch_tokens: int, entry: Mapping[str, float | int]) -> str:
    """A line of the log for a person; FVU is that of the batches since the last one."""
    rate = entry["tokens_per_second"]
    left = datetime.timedelta(seconds=round((steps - step) * batch_tokens / max(rate, 1)))
    return (
        f"step {step:,} of {steps:,} ({step / steps:.0%}), {rate:,} tokens/s, {left} left, "
        f"FVU {entry['reconstruction']:.4f}, L0 {entry['l0']:.1f}, "
        f"SAE MFU {entry['sae_mfu']:.2%}"
    )
