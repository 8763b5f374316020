"""GGUF files: their metadata, and where their tensors lie.

The format is specified at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf`
library supplies its constants and the dequantisation; its reader makes several arrays per word of
the vocabulary (28 s for Gemma-3's 262,144), hence the short one here.
"""

import dataclasses
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from jaxtyping import Float

from emojax.errors import UserError

# Elements dequantised at a time: in a core's cache it is four times as fast as whole tensors.
_CHUNK = 2**18
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in the file: `shape` has rows first, `start` and `size` are in bytes."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Gguf:
    """A GGUF file's metadata, and its tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def chunks(self, name: str) -> Iterator[Float[np.ndarray, " elements"]]:
        """The tensor's elements, dequantised to float32, in row-major order, in pieces."""
        tensor = self.tensors[name]
        block, block_bytes = GGML_QUANT_SIZES[tensor.kind]
        piece = _CHUNK // block * block_bytes
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            left = tensor.size
            while left:
                data = np.fromfile(file, np.uint8, min(piece, left))
                left -= data.size
                # One row, since `dequantize` works on sixteen rows at a time.
                yield dequantize(data.reshape(1, -1), tensor.kind).reshape(-1)


def read(path: Path) -> Gguf:
    """Reads the header of a GGUF file (versions 2 and 3, little-endian).

    Raises:
      UserError: the file is missing, not GGUF, truncated, corrupt, or holds a tensor of a type that
        is not supported; the message names it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(
                    f"{path} is not a GGUF file (it does not begin with GGUF); give another one."
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                parsed = _Header(path, data).parse()
    except OSError as error:
        raise UserError(
            f"The model file {path} cannot be read ({error.strerror}); give a GGUF file."
        ) from None
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise UserError(
            f"The header of {path} is truncated or corrupt ({error}); fetch the file again."
        ) from None
    ends = max((tensor.start + tensor.size for tensor in parsed.tensors.values()), default=0)
    if ends > size:
        raise UserError(
            f"{path} is truncated: it has {size:,} bytes of at least {ends:,}; fetch it again."
        )
    return parsed


class _Header:
    """A cursor over a GGUF header; every method reads one thing and moves on."""

    def __init__(self, path: Path, data: mmap.mmap):
        self._path = path
        self._data = data
        self._at = 4

    def parse(self) -> Gguf:
        (version,) = self._numbers("I")
        if version not in (2, 3):
            raise UserError(
                f"{self._path} has GGUF version {version}, which is not supported; "
                "convert it to version 3 (little-endian)."
            )
        n_tensors, n_fields = self._numbers("Q", 2)
        metadata = {}
        for _ in range(n_fields):
            key = self._string()
            metadata[key] = self._value(GGUFValueType(*self._numbers("I")))
        infos = [self._tensor() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        base = -(-self._at // alignment) * alignment
        tensors = {
            name: dataclasses.replace(tensor, start=base + tensor.start) for name, tensor in infos
        }
        if len(tensors) != n_tensors:
            raise ValueError("a tensor's name stands there twice")
        return Gguf(self._path, metadata, tensors)

    def _numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{code}") * count
        if size > len(self._data) - self._at:
            raise ValueError("it ends within a value")
        values = struct.unpack_from(f"<{count}{code}", self._data, self._at)
        self._at += size
        return values

    def _string(self) -> str:
        (size,) = self._numbers("Q")
        if size > len(self._data) - self._at:
            raise ValueError("it ends within a string")
        self._at += size
        return self._data[self._at - size : self._at].decode()

    def _value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._numbers(_SCALARS[kind])[0]
        kind = GGUFValueType(*self._numbers("I"))
        (count,) = self._numbers("Q")
        if kind == GGUFValueType.STRING:
            return [self._string() for _ in range(count)]
        if kind == GGUFValueType.ARRAY:
            raise ValueError("it holds an array of arrays")
        return list(self._numbers(_SCALARS[kind], count))

    def _tensor(self) -> tuple[str, Tensor]:
        name = self._string()
        (n_axes,) = self._numbers("I")
        shape = tuple(reversed(self._numbers("Q", n_axes)))
        (number,) = self._numbers("I")
        (start,) = self._numbers("Q")
        known = {kind.value: kind for kind in GGMLQuantizationType}
        if number not in known or known[number].name not in _KINDS:
            raise UserError(
                f"The tensor {name} in {self._path} has the type "
                f"{known[number].name if number in known else number}, which is not supported; "
                f"use a file with {', '.join(_KINDS)}."
            )
        block, block_bytes = GGML_QUANT_SIZES[known[number]]
        elements = math.prod(shape)
        if elements % block:
            raise ValueError(f"the tensor {name} is not made of whole blocks")
        return name, Tensor(shape, known[number], start, elements // block * block_bytes)
