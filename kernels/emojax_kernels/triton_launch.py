"""Launching Triton kernels from JAX.

Kernels take their inputs, then their outputs, then compile-time constants. On an NVIDIA GPU they go
through jax-triton. With TRITON_INTERPRET=1 in the environment they run in Triton's interpreter on
the CPU instead, inside a host callback: slow, for tests. They are marked `no_type_check` because
Triton compiles their source: a type checker's wrapper would hide it.
"""

import importlib
import importlib.metadata
import os
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from emojax_kernels import varying

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
# Triton's interpreter is one per process, devices call it from threads.
_ONE_AT_A_TIME = threading.Lock()


def launch(
    kernel: Any,
    *inputs: jax.Array,
    out: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, ...],
    aliases: dict[int, int] | None = None,
    num_warps: int = 4,
    num_stages: int = 2,
    **constants: int | float | bool,
) -> list[jax.Array]:
    """Run `kernel` over `grid`; under `jax.vmap`, once per batch entry.

    Args:
        kernel: a `triton.jit` function of the inputs, the outputs, then `constants` by name.
        *inputs: arrays.
        out: shapes and dtypes of the outputs; where nothing is to be written, zeros.
        grid: programs along up to three axes.
        aliases: input position to output position, for outputs that overwrite an input.
        num_warps: warps per program.
        num_stages: of the software pipeline.
        **constants: `tl.constexpr` parameters.

    Raises:
        ValueError: where there is no NVIDIA GPU.
        ImportError: where there is no jax-triton.
    """
    if 0 in grid or any(0 in o.shape for o in out):
        return _varying([jax.numpy.zeros(o.shape, o.dtype) for o in out], inputs)
    aliases = aliases or {}
    if not INTERPRET and (platform := _platform()) != "cuda":
        raise ValueError(
            f"implementation='triton' on {platform}; supported: an NVIDIA GPU, or "
            "TRITON_INTERPRET=1 in the environment for Triton's interpreter."
        )

    def compiled(*inputs: jax.Array) -> list[jax.Array]:
        return _compiled(
            kernel,
            inputs,
            out,
            grid=grid,
            input_output_aliases=aliases,
            num_warps=num_warps,
            num_stages=num_stages,
            **constants,
        )

    def interpreted(*inputs: jax.Array) -> list[jax.Array]:
        def host(*arrays: jax.Array) -> list[np.ndarray]:
            numpy = [np.asarray(a) for a in arrays]
            with _ONE_AT_A_TIME:
                return interpret(kernel, numpy, out, grid, aliases, constants)

        return jax.pure_callback(host, list(out), *inputs)

    run = jax.custom_batching.sequential_vmap(interpreted if INTERPRET else compiled)
    return _varying(run(*inputs), inputs)


def _platform():
    name = jax.default_backend()
    if name != "gpu":
        return name
    # JAX calls an AMD GPU "gpu" as well.
    return "rocm" if "rocm" in jax.devices()[0].client.platform_version else "cuda"


def _varying(results, inputs):
    # What a kernel makes varies over devices as what it reads does: neither way to run it says so.
    return varying.alike(*results, *inputs)[: len(results)]


def _compiled(kernel, inputs, out, **options: Any):
    try:
        jax_triton = importlib.import_module("jax_triton")
    except ImportError as missing:
        raise ImportError(
            "implementation='triton' needs jax-triton and JAX for CUDA; "
            "install them with `pip install 'emojax-kernels[cuda]'`."
        ) from missing
    # jax-triton 0.4 renamed the argument.
    old = importlib.metadata.version("jax-triton").startswith("0.3.")
    shapes: dict[str, Any] = {"out_shape" if old else "out_type": tuple(out)}
    return list(jax_triton.triton_call(*inputs, kernel=kernel, **shapes, **options))


def interpret(
    kernel: Any,
    inputs: Sequence[np.ndarray],
    out: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, ...],
    aliases: dict[int, int],
    constants: dict[str, int | float | bool],
) -> list[np.ndarray]:
    """Run an interpreted kernel on numpy arrays; arguments as in `launch`."""
    held = [np.array(a, order="C") for a in inputs]
    source = {position: held[i] for i, position in aliases.items()}
    # Memory that a kernel forgets to write must not look right.
    results = [source.get(p, _poison(o.shape, o.dtype)) for p, o in enumerate(out)]
    kernel[grid](*(_HostTensor(a) for a in (*held, *results)), **constants)
    return results


def _poison(shape, dtype):
    array = np.empty(shape, dtype)
    array.view(np.uint8).fill(0xFF)  # a NaN, or -1
    return array


class _HostTensor:
    """What Triton's interpreter asks of a PyTorch tensor, on a numpy array."""

    def __init__(self, array: np.ndarray):
        self.array, self.dtype = array, array.dtype

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> "_HostTensor":
        return self

    def cpu(self) -> "_HostTensor":
        return self

    def new_empty(self, size: int, device: str) -> "_HostTensor":
        return _HostTensor(self.array)

    def set_(self, storage: "_HostTensor", *layout: object) -> None:
        self.array = storage.array

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return self.array.strides

    def copy_(self, other: "_HostTensor") -> None:
        """The interpreter wrote in place."""
