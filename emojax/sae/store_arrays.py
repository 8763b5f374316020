"""The arrays of an activation store: zarr3 by TensorStore, few large objects with checksums.

A shard of up to 32 chunks is an object (`sharding_indexed`), written once and whole. A chunk, what
is read in one go, has a checksum of its own, and so has each shard's index.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from emojax.errors import UserError

SHARD_CHUNKS, SHARD_BYTES = 32, 2**28
COLUMNS = {"token_ids": "int32", "positions": "int32", "rows": "int32", "languages": "uint8"}
TAP_COLUMNS = {"values": "float16", "norms": "float32"}
# One for all arrays: they share its limits, and what `memory://` holds.
CONTEXT = ts.Context()


def shard_size(width: int, chunk_tokens: int) -> int:
    """Tokens per shard of an array of vectors so wide, of which a capture holds one in memory."""
    return chunk_tokens * max(1, min(SHARD_CHUNKS, SHARD_BYTES // (2 * width * chunk_tokens)))


def kvstore(directory: Path | str) -> Any:
    """Where TensorStore finds a folder: on disk, or at an address such as `gs://bucket/folder`."""
    if "://" in str(directory):
        return f"{directory}/"
    return {"driver": "file", "path": f"{directory}/"}


def opened(
    directory: str,
    widths: Mapping[str, int],
    tokens: int,
    chunk_tokens: int,
    shard_tokens: int | None,
) -> dict[str, Any]:
    """Opens a split's zarr3 arrays, or makes them, `widths` of each tap's values.

    Without `shard_tokens` they are of format 2.
    """
    kinds = COLUMNS | {f"{tap}/{name}": k for tap in widths for name, k in TAP_COLUMNS.items()}
    arrays = {}
    for name, dtype in kinds.items():
        tap, _, column = name.partition("/")
        tail = [widths[tap]] if column == "values" else []
        codecs: list[dict[str, Any]] = [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "crc32c"},
        ]
        options = {}
        if shard_tokens is not None:
            inside = {
                "chunk_shape": [chunk_tokens, *tail],
                "codecs": codecs,
                "index_codecs": codecs,
                # Not every server in a bucket's place understands ranges counted from the end.
                "index_location": "start",
            }
            codecs = [{"name": "sharding_indexed", "configuration": inside}]
            # Else a lost object would be read as zeros.
            options = {"fill_missing_data_reads": False, "store_data_equal_to_fill_value": True}
        grid = {"chunk_shape": [shard_tokens or chunk_tokens, *tail]}
        arrays[name] = ts.open(
            {
                "driver": "zarr3",
                "kvstore": kvstore(f"{directory}/{name}"),
                "metadata": {
                    "shape": [tokens, *tail],
                    "data_type": dtype,
                    "chunk_grid": {"name": "regular", "configuration": grid},
                    "codecs": codecs,
                },
                **options,
            },
            open=True,
            create=True,
            context=CONTEXT,
        )
    with reading(directory):
        return {name: future.result() for name, future in arrays.items()}


def write(arrays: Mapping[str, Any], columns: Mapping[str, np.ndarray], start: int) -> None:
    """Writes columns behind the first `start` tokens.

    Raises:
      UserError: the disk is full, or cannot be written to.
    """
    futures = [
        array[start : start + len(columns[name])].write(
            columns[name].astype(array.dtype.numpy_dtype, copy=False)
        )
        for name, array in arrays.items()
    ]
    try:
        for future in futures:
            future.result()
    except ValueError as error:
        raise UserError(
            f"The activations could not be written ({error}); mend that (free room on a full disk) "
            "and run again: what was captured before is kept."
        ) from None


@contextlib.contextmanager
def reading(directory: Path | str) -> Iterator[None]:
    """TensorStore's errors, which name the file, as what to do."""
    try:
        yield
    except ValueError as error:
        problem = str(error).splitlines()[0]
        raise UserError(
            f"The activation store {directory} cannot be read ({problem}); if it is damaged, "
            "delete that folder and run the same command again, which captures it anew."
        ) from None


class Shards:
    """A split's tokens on their way to the disk, held until a shard of each array is full.

    `tokens` were given so far, `written` of them are on the disk.
    """

    def __init__(self, arrays: Mapping[str, Any], size: int, written: int):
        """Goes on behind `written` tokens; a shard begun is read, to be written again whole."""
        self._arrays, self._size = arrays, size
        self.tokens = self.written = written
        self._begin = written - written % size
        self._held = {
            name: np.empty((size, *array.shape[1:]), array.dtype.numpy_dtype)
            for name, array in arrays.items()
        }
        for name, held in self._held.items():
            held[: written - self._begin] = arrays[name][self._begin : written].read().result()

    def add(self, columns: Mapping[str, np.ndarray]) -> None:
        """Takes tokens in, and writes what shards they fill."""
        count, taken = len(columns["rows"]), 0
        while taken < count:
            place = self.tokens - self._begin
            more = min(count - taken, self._size - place)
            for name, held in self._held.items():
                held[place : place + more] = columns[name][taken : taken + more]
            self.tokens += more
            taken += more
            if place + more == self._size:
                self.write()

    def write(self) -> None:
        """Writes what is held."""
        if self.written < self.tokens:
            held = {name: held[: self.tokens - self._begin] for name, held in self._held.items()}
            write(self._arrays, held, self._begin)
            self.written = self.tokens
        self._begin = self.tokens - self.tokens % self._size
