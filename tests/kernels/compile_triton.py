"""Compile every Triton kernel to machine code for sm_80 and sm_90, without a GPU.

A program of its own, for in a process whose kernels are interpreted they cannot be compiled:

    python tests/kernels/compile_triton.py

prints a line of JSON per kernel, dtype and architecture.
"""

import itertools
import json
import os

os.environ.pop("TRITON_INTERPRET", None)

import triton
from emojax_kernels.decode_error import triton as decode_error
from emojax_kernels.fused_row_update import triton as fused_row_update
from emojax_kernels.groupmax_encode import triton as groupmax_encode
from emojax_kernels.row_products import triton as row_products
from emojax_kernels.topk_encode import triton as topk_encode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Bytes of shared memory that one program may use.
SHARED = {80: 163 * 1024, 90: 227 * 1024}

N, K, D = 32768, 32, 2048
LISTS = {"entry": "i32", "start": "i32", "chunk_latent": "i32", "chunk_start": "i32"}
CODE = {"values": "T", "indices": "i32"}


def kernels():
    """Name, kernel, types of its arrays (T: that of the activations), constants, warps, stages."""
    sum_sizes = {"K": K, "D": D, "BLOCK": 1024}
    all_columns = {"K": K, "D": D, "BLOCK": 2048}
    rows, out = {"rows": "T"}, {"out": "fp32"}
    yield (
        "gather_sum",
        row_products.gather_sum_kernel,
        CODE | rows | out,
        sum_sizes,
        (4, 2),
    )
    yield (
        "gather_dot",
        row_products.gather_dot_kernel,
        {"e": "T", "indices": "i32"} | rows | out,
        all_columns,
        (4, 2),
    )
    lists = {name: LISTS[name] for name in ("entry", "start", "chunk_start")}
    yield (
        "scatter_chunk",
        row_products.scatter_chunk_kernel,
        {"values": "T"} | LISTS | {"e": "T", "parts": "fp32"},
        sum_sizes | {"N": N, "CHUNK": 256},
        (4, 2),
    )
    yield (
        "scatter",
        row_products.scatter_kernel,
        {"values": "T"} | lists | {"e": "T", "parts": "fp32"} | out,
        sum_sizes | {"CHUNK": 256},
        (4, 2),
    )
    tile = {"ROWS": "tile", "LATENTS": "tile", "COLUMNS": "tile"}
    yield (
        "preactivation",
        topk_encode.preactivation_kernel,
        {"x": "T", "w_enc": "T", "b_enc": "fp32", "threshold": "fp32", "pre": "T", "best": "T"},
        {"TOKENS": 8192, "N": N, "D": D, "GROUPS": topk_encode.GROUP, "WIDEN": False} | tile,
        (8, 3),
    )
    yield (
        "compact",
        topk_encode.compact_kernel,
        {"pre": "T", "chosen": "i32", "bound": "T", "kept": "T", "where": "i32", "count": "i32"},
        {"N": N, "K": K, "GROUPS": topk_encode.GROUP, "SCANNED": 8, "ROOM": 64},
        (4, 2),
    )
    yield (
        "groupmax",
        groupmax_encode.groupmax_kernel,
        {"pre": "T", "values": "T", "indices": "i32"},
        {"K": K, "SIZE": N // K, "BLOCK": N // K},
        (4, 2),
    )
    yield (
        "decode_error",
        decode_error.decode_error_kernel,
        CODE | {"w_dec": "T", "b_dec": "fp32", "x": "T", "squared": "fp32", "error": "T"},
        all_columns,
        (4, 2),
    )
    yield (
        "row_chunk",
        fused_row_update.row_chunk_kernel,
        {"w_dec": "fp32", "x": "T", "error": "T", "values": "T"}
        | LISTS
        | {"part_dec": "fp32", "part_enc": "fp32", "part_bias": "fp32", "d_pre": "fp32"},
        all_columns | {"N": N, "CHUNK": 256},
        (4, 2),
    )
    for weights, moments, d in (
        ("fp32", "fp32", D),
        ("fp32", "fp32", 4096),
        ("fp32", "bf16", D),
        ("fp32", "8bit", D),
        ("bf16", "8bit", D),  # these need no shadows
    ):
        first = "i8" if moments == "8bit" else moments
        second = "u8" if moments == "8bit" else moments
        names = ("m_enc", "v_enc", "m_dec", "v_dec")
        state = (
            {"w_enc": weights, "w_dec": weights, "b_enc": "fp32"}
            | {name: first if name[0] == "m" else second for name in names}
            | {f"{name}_scales": "fp32" for name in names}
            | {"m_bias": "fp32", "v_bias": "fp32", "shadow_enc": "bf16", "shadow_dec": "bf16"}
        )
        rest = {"of_chunks": "fp32", "x": "T", "error": "T", "values": "T"} | lists
        parts = {"part_dec": "fp32", "part_enc": "fp32", "part_bias": "fp32"}
        yield (
            f"row_{weights}_{moments}_{d}",
            fused_row_update.row_kernel,
            state
            | rest
            | parts
            | {"scalars": "fp32", "salts": "u32"}
            | {f"new_{name}": kind for name, kind in state.items()}
            | {"d_pre": "fp32"},
            {"B1": 0.9, "B2": 0.999, "EPS": 1e-8, "UNIT": True, "EIGHT_BIT": moments == "8bit"}
            | {
                "SCALE_BLOCK": 128,
                "SHADOW": weights == "fp32",
                "K": K,
                "D": d,
                "CHUNK": 256,
                "BLOCK": d,
            },
            (d // 512, 2),
        )


def main() -> None:
    for (name, kernel, arrays, constants, (warps, stages)), dtype, arch in itertools.product(
        kernels(), ("bf16", "fp32"), SHARED
    ):
        tile = topk_encode._TILE if dtype == "bf16" else topk_encode._TILE_WIDE
        constants = dict(constants)
        for at, size in zip(("ROWS", "LATENTS", "COLUMNS"), tile, strict=True):
            if at in constants:
                constants[at] = size
        signature = {a: "*" + (dtype if kind == "T" else kind) for a, kind in arrays.items()}
        signature |= dict.fromkeys(constants, "constexpr")
        assert set(signature) == set(kernel.arg_names), name
        signature = {a: signature[a] for a in kernel.arg_names}
        compiled = triton.compile(
            ASTSource(kernel, signature, constants),
            target=GPUTarget("cuda", arch, 32),
            options={"num_warps": warps, "num_stages": stages},
        )
        shared = compiled.metadata.shared
        assert shared <= SHARED[arch], f"{name} {dtype} sm_{arch}: {shared} bytes of shared memory"
        size = len(compiled.asm["cubin"])
        print(
            json.dumps(
                {"kernel": name, "dtype": dtype, "sm": arch, "shared": shared, "cubin": size}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
