"""Safetensors files (https://huggingface.co/docs/safetensors), tensor by tensor.

The library checks a file, but gives tensors only as copies and writes only what is all in memory.
"""

import dataclasses
import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from emojax.errors import UserError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `kind` is the format's name of its type, `start` is in bytes."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int

    def open(self) -> np.ndarray:
        """The tensor as it lies in the file, read where it is looked at; a float type only."""
        return np.memmap(self.path, DTYPES[self.kind], "r", self.start, self.shape)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises:
      UserError: the file cannot be read or is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="numpy"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"The weights file {path} cannot be read ({error}); fetch or make it again."
        ) from None
    header.pop("__metadata__", None)
    return {
        name: Tensor(
            path, about["dtype"], tuple(about["shape"]), 8 + size + about["data_offsets"][0]
        )
        for name, about in header.items()
    }


def write(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], data: Iterable[np.ndarray]
) -> None:
    """Writes a safetensors file as its data come.

    Args:
      path: the file.
      tensors: each tensor's type and shape, by name.
      data: their elements in that order, in pieces of any size.

    Raises:
      OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (kind, shape) in tensors.items():
        start, end = end, end + DTYPES[kind].itemsize * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for piece in data:
            file.write(np.ascontiguousarray(piece).view(np.uint8).data)
