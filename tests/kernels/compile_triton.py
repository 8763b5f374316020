"""Compile every Triton kernel to machine code for sm_80 and sm_90, without a GPU.

A program of its own, for in a process whose kernels are interpreted they cannot be compiled:

    python tests/kernels/compile_triton.py

Operations are traced at the sizes at which speed is claimed, and what they would launch is compiled
as they would launch it. Prints a line of JSON per kernel, shape, types and architecture.
"""

import functools
import json
import os

os.environ.pop("TRITON_INTERPRET", None)

import jax
import jax.numpy as jnp
import triton
from emojax_kernels import (
    RowAdam,
    decode_error,
    fused_row_update,
    groupmax_encode,
    init_rows,
    sparse_decode,
    threshold_encode,
    topk_encode,
)
from emojax_kernels.decode_error import triton as decode_error_triton
from emojax_kernels.fused_row_update import triton as fused_row_update_triton
from emojax_kernels.groupmax_encode import triton as groupmax_encode_triton
from emojax_kernels.row_products import triton as row_products_triton
from emojax_kernels.shapes import SPEED
from emojax_kernels.topk_encode import triton as topk_encode_triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

LAUNCHING = (
    decode_error_triton,
    fused_row_update_triton,
    groupmax_encode_triton,
    row_products_triton,
    topk_encode_triton,
)
# Bytes of shared memory that one program may use.
SHARED = {80: 163 * 1024, 90: 227 * 1024}
TYPES = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "int32": "i32",
    "uint32": "u32",
    "int8": "i8",
    "uint8": "u8",
}
BY = {"implementation": "triton"}
# Moments of the update, dtype of its weights (those in bfloat16 need no shadows).
UPDATES = (
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("int8", "float32"),
    ("int8", "bfloat16"),
)


def launched(function, *inputs):
    """What a function would launch: kernel, types of its arrays, constants, warps, stages."""
    found = []

    def record(kernel, *inputs, out, grid, aliases=None, num_warps=4, num_stages=2, **constants):
        types = tuple(TYPES[str(a.dtype)] for a in (*inputs, *out))
        found.append((kernel, types, tuple(constants.items()), num_warps, num_stages))
        return [jnp.zeros(o.shape, o.dtype) for o in out]

    for module in LAUNCHING:
        module.launch = record
    jax.eval_shape(function, *inputs)
    return found


def programs(shape, dtype):
    """All that the operations launch at a shape."""
    t, d, n, k = shape.tokens, shape.d, shape.n, shape.k
    of = jax.ShapeDtypeStruct
    x, w, b, b_dec = of((t, d), dtype), of((n, d), dtype), of((n,), "float32"), of((d,), "float32")
    values, indices = of((t, k), dtype), of((t, k), "int32")

    def loss(x, w_enc, b_enc, w_dec, b_dec):
        code = topk_encode(x, w_enc, b_enc, k, **BY)
        squared, error = decode_error(*code, w_dec, b_dec, x, **BY)
        return squared.sum() + (sparse_decode(*code, w_dec, b_dec, **BY) * error).sum()

    yield from launched(jax.grad(loss, argnums=range(5)), x, w, b, w, b_dec)
    yield from launched(functools.partial(threshold_encode, k=k, **BY), x, w, b, b)
    yield from launched(functools.partial(groupmax_encode, k=k, **BY), x, w, b)
    for moments, weights in UPDATES:
        settings = RowAdam(moments=moments, shadow="bfloat16" if weights == "float32" else None)
        wide = of((n, d), weights)
        rows = jax.eval_shape(functools.partial(init_rows, settings=settings), wide, b, wide)
        update = functools.partial(fused_row_update, learning_rate=1e-3, settings=settings, **BY)
        yield from launched(update, rows, x, x, values, indices)


def compile_for(arch, kernel, types, constants, warps, stages):
    """A kernel's machine code and its shared memory."""
    names = kernel.arg_names
    assert set(names[len(types) :]) == set(dict(constants)), kernel
    signature = dict(zip(names, (f"*{kind}" for kind in types), strict=False))
    signature |= dict.fromkeys(names[len(types) :], "constexpr")
    compiled = triton.compile(
        ASTSource(kernel, signature, dict(constants)),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    shared = compiled.metadata.shared
    assert shared <= SHARED[arch], f"{kernel} sm_{arch}: {shared} bytes of shared memory"
    return {"shared": shared, "cubin": len(compiled.asm["cubin"])}


def main() -> None:
    # Both architectures and dtypes at one shape; elsewhere what the speed is claimed for.
    cases = [
        ("S", "bfloat16", 80),
        ("S", "bfloat16", 90),
        ("S", "float32", 80),
        ("S", "float32", 90),
    ]
    cases += [("L", "bfloat16", 90), ("G", "bfloat16", 90)]
    for name, dtype, arch in cases:
        for program in dict.fromkeys(programs(SPEED[name], dtype)):
            kernel, types, *_ = program
            line = {"kernel": kernel.__name__, "shape": name, "dtype": dtype, "types": types}
            print(json.dumps(line | {"sm": arch} | compile_for(arch, *program)), flush=True)


if __name__ == "__main__":
    main()
