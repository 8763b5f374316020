"""Launching Pallas kernels for a TPU's TensorCore.

Without a TPU they run in TPU interpret mode on the CPU (races and uninitialised memory detected:
slow, for tests) or are compiled for a TPU topology: EMOJAX_PALLAS_TPU in the environment is then
"interpret" or "compile".
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

MODE = os.environ.get("EMOJAX_PALLAS_TPU", "")
# Bytes of vector memory that one kernel may use: three quarters of the smallest generation's.
VMEM = 48 << 20


def launch(
    kernel: Callable[..., None],
    *inputs: jax.Array,
    out: Sequence[jax.ShapeDtypeStruct],
    semantics: Sequence[Literal["parallel", "arbitrary"]],
    aliases: dict[int, int] | None = None,
    **grid: Any,
) -> list[jax.Array]:
    """Run `kernel` over a grid; under `jax.vmap`, once per batch entry.

    Args:
        kernel: of references to the inputs, the outputs and the scratch memory.
        *inputs: arrays, all varying over the same mesh axes; scalar-prefetched ones first.
        out: shapes and dtypes of the outputs.
        semantics: of each grid axis, "parallel" or "arbitrary".
        aliases: input position to output position, for outputs that overwrite an input.
        **grid: of `pltpu.PrefetchScalarGridSpec`.

    Raises:
        ValueError: where there is no TPU, or for an unknown EMOJAX_PALLAS_TPU.
    """
    if MODE not in ("", "interpret", "compile"):
        raise ValueError(
            f"EMOJAX_PALLAS_TPU={MODE!r} in the environment; supported: 'interpret', 'compile', or "
            "unset on a TPU."
        )
    if not MODE and jax.default_backend() != "tpu":
        raise ValueError(
            f"implementation='pallas_tpu' on {jax.default_backend()}; supported: a TPU, or "
            "EMOJAX_PALLAS_TPU in the environment: 'interpret' to run in interpret mode, 'compile' "
            "to compile ahead for a TPU topology."
        )

    def run(*inputs: jax.Array) -> list[jax.Array]:
        # What a kernel makes varies over devices as what it reads does.
        varies = jax.typeof(inputs[-1]).manual_axis_type
        shapes = [jax.ShapeDtypeStruct(o.shape, o.dtype, manual_axis_type=varies) for o in out]
        call = pl.pallas_call(
            kernel,
            out_shape=shapes,
            grid_spec=pltpu.PrefetchScalarGridSpec(**grid),
            input_output_aliases=aliases or {},
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=tuple(semantics), vmem_limit_bytes=VMEM
            ),
            interpret=pltpu.InterpretParams(detect_races=True) if MODE == "interpret" else False,
        )
        return list(call(*inputs))

    return jax.custom_batching.sequential_vmap(run)(*inputs)
