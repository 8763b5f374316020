"""Rows of tokens as padded arrays of few shapes, and what rows a model can read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from emojax.errors import UserError
from emojax.lm.config import DecoderConfig

# Rows are padded to one of these lengths (and on, doubling), so that few shapes are compiled.
_LENGTHS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def check_rows(config: DecoderConfig, rows: Sequence[Any], room: int = 0) -> None:
    """Refuses rows that the model cannot read, with `room` more tokens each.

    Raises:
      UserError: a row is empty, a text, no row at all or too long for the context, or a token is
        not in the vocabulary.
    """
    for number, row in enumerate(rows):
        if isinstance(row, str):
            raise UserError(
                f"Row {number} of the input is a text; give its tokens (text.tokenize)."
            )
        ids = token_ids(row)
        if ids is None:
            raise UserError(
                f"Row {number} of the input is {row!r:.60}, which is no row of token ids; give a "
                "list of rows, and each as whole numbers."
            )
        if not ids:
            raise UserError(
                f"Row {number} of the input has no tokens; give every row at least one."
            )
        if len(ids) + room > config.context:
            new = f" (and {room} to generate)" if room else ""
            raise UserError(
                f"Row {number} of the input has {len(ids)} tokens{new}, more than the model's "
                f"context of {config.context}; shorten it."
            )
        if min(ids) < 0 or max(ids) >= config.vocab_size:
            raise UserError(
                f"Row {number} of the input has a token id outside 0 to {config.vocab_size - 1}; "
                "use the model's own tokenizer."
            )


def check_tokens(config: DecoderConfig, tokens: Any, mask: Any) -> None:
    """`check_rows` for padded arrays, tokens and a boolean mask `[batch, time]`.

    Of arrays traced by JAX only shapes and types are checked.

    Raises:
      UserError: as `check_rows`, or an array has the wrong shape or type.
    """
    for name, given in (("tokens", tokens), ("mask", mask)):
        if not isinstance(given, np.ndarray | jax.Array):
            raise UserError(
                f"A {type(given).__name__} was given for the {name}, which is no array; give one, "
                "such as np.array(...)."
            )
    if not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(f"The tokens hold {tokens.dtype}, not token ids; give whole numbers.")
    if np.ndim(tokens) != 2:
        raise UserError(f"The tokens have shape {np.shape(tokens)}; give them as [batch, time].")
    if np.shape(mask) != np.shape(tokens):
        raise UserError(
            f"The mask has shape {np.shape(mask)} and the tokens {np.shape(tokens)}; "
            "give both the same."
        )
    if mask.dtype != bool:
        raise UserError(f"The mask holds {mask.dtype}, not booleans; give mask.astype(bool).")
    if isinstance(tokens, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return
    real = np.asarray(mask)
    check_rows(config, [row[m].tolist() for row, m in zip(np.asarray(tokens), real, strict=True)])


def token_ids(row: Any) -> list[int] | None:
    """A row as whole numbers; None where it holds anything else."""
    try:
        ids = np.asarray(row)
    except (TypeError, ValueError):  # nested lists of different lengths, for one
        return None
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        return None
    return ids.tolist()


class Batch(NamedTuple):
    """Right-padded rows: token ids, what of them is real, the rows' numbers.

    `rows` is shorter than the batch where rows without tokens fill it up.
    """

    tokens: Int[np.ndarray, "batch time"]
    mask: Bool[np.ndarray, "batch time"]
    rows: Int[np.ndarray, " rows"]


def padded_length(length: int) -> int:
    """The length that a row is padded to."""
    for candidate in _LENGTHS:
        if length <= candidate:
            return candidate
    return 1 << (length - 1).bit_length()


def pad(rows: Sequence[Sequence[int]], batch: int, time: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask `[batch, time]` of right-padded rows; rows without tokens fill up."""
    tokens = np.zeros((batch, time), np.int32)
    mask = np.zeros((batch, time), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = True
    return tokens, mask


def batches(rows: Sequence[Sequence[int]], batch_tokens: int) -> list[Batch]:
    """The rows in batches of few shapes: padded lengths, and numbers of rows halving to one."""
    by_length: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_length.setdefault(padded_length(len(row)), []).append(number)
    found = []
    for time, numbers in sorted(by_length.items()):
        size = 1 << (max(1, batch_tokens // time).bit_length() - 1)
        for start in range(0, len(numbers), size):
            chunk = numbers[start : start + size]
            batch = 1 << (len(chunk) - 1).bit_length()
            tokens, mask = pad([rows[i] for i in chunk], batch, time)
            found.append(Batch(tokens, mask, np.array(chunk, np.int32)))
    return found
