"""Rows of text → arrays of few shapes for the language model, in an order that can be gone on with.

Rows wait until enough of about a length are there. All of it is a function of the text alone, and
its state is JSON, so that a run that goes on packs the same rows together.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from emojax.errors import UserError
from emojax.lm.batching import check_rows, pad
from emojax.lm.model import LanguageModel

SHORTEST = 16


@runtime_checkable
class TextStream(Protocol):
    """Rows of tokens, each with its language, and a place to go on from (JSON)."""

    def __next__(self) -> tuple[Sequence[int], Any]: ...

    def get_state(self) -> Any:
        """The place after the last row."""
        ...

    def set_state(self, state: Any) -> None:
        """Goes on from a place."""
        ...


class Pack(NamedTuple):
    """Right-padded rows that go through the model together, and empty ones that fill up.

    Attributes:
      tokens: token ids.
      mask: True where a token is real.
      numbers: of each row with tokens, counted from 0 in the order of the text.
      kept: the places, in the flattened `tokens`, of what is neither padding nor special; the first
        `count` count.
      count: how many these are.
      before: the packer's state before it read these rows.
    """

    tokens: Int[np.ndarray, "rows time"]
    mask: Bool[np.ndarray, "rows time"]
    numbers: Int[np.ndarray, " filled"]
    kept: Int[np.ndarray, " places"]
    count: int
    before: Any


class Packer:
    """Packs without end. Rows are padded to a power of two, of which there are few to compile."""

    def __init__(self, lm: LanguageModel, text: TextStream, tokens: int, multiple: int):
        """A packer of `tokens` per pack, padding included, in a multiple of `multiple` rows.

        `multiple` is the number of devices. One that goes on from a state packs the same rows
        together as the one that began, whatever its own; empty rows make up the difference.
        """
        self._config, self._text = lm.config, text
        self._special = np.array(sorted(lm.tokenizer.all_special_ids), np.int32)
        self._tokens, self._multiple, self._begun_with = tokens, multiple, multiple
        self._waiting: dict[int, list[tuple[int, list[int]]]] = {}
        self._read = 0

    def __iter__(self) -> "Packer":
        return self

    def __next__(self) -> Pack:
        """The next pack.

        Raises:
          UserError: the text ends, or the model cannot read a row.
        """
        before = self.get_state()
        while True:
            try:
                row, _ = next(self._text)
            except StopIteration:
                raise UserError(
                    f"The text ends after {self._read:,} rows, before the training does; let it "
                    "begin again, as that of emojax.sae.text_stream does, and run again."
                ) from None
            check_rows(self._config, [row])
            length = max(SHORTEST, 1 << (len(row) - 1).bit_length())
            length = min(length, self._config.context)
            there = self._waiting.setdefault(length, [])
            there.append((self._read, list(row)))
            self._read += 1
            size = self._begun_with * max(1, self._tokens // length // self._begun_with)
            if len(there) == size:
                del self._waiting[length]
                return self._packed(there, length, before)

    def _packed(self, rows: list[tuple[int, list[int]]], length: int, before: Any) -> Pack:
        filled_up = -(-len(rows) // self._multiple) * self._multiple
        tokens, mask = pad([row for _, row in rows], filled_up, length)
        real = np.flatnonzero(mask & ~np.isin(tokens, self._special))
        kept = np.zeros(tokens.size, np.int32)
        kept[: len(real)] = real
        numbers = np.array([number for number, _ in rows], np.int32)
        return Pack(tokens, mask, numbers, kept, len(real), before)

    def get_state(self) -> dict[str, Any]:
        """The place in the text, and the rows that wait (JSON)."""
        waiting = {str(length): list(rows) for length, rows in self._waiting.items()}
        return {
            "text": self._text.get_state(),
            "waiting": waiting,
            "read": self._read,
            "multiple": self._begun_with,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._text.set_state(state["text"])
        self._waiting = {
            int(length): [(number, row) for number, row in rows]
            for length, rows in state["waiting"].items()
        }
        self._read, self._begun_with = state["read"], state["multiple"]
