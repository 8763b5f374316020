"""Decoder with its error and loss on an NVIDIA GPU, in one kernel."""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from emojax_kernels.triton_launch import launch


def decode_error(
    values: jax.Array, indices: jax.Array, w_dec: jax.Array, b_dec: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See `emojax_kernels.decode_error`."""
    tokens, d = x.shape
    squared, error = launch(
        decode_error_kernel,
        values,
        indices,
        w_dec,
        b_dec,
        x,
        out=[jax.ShapeDtypeStruct((tokens,), jnp.float32), jax.ShapeDtypeStruct(x.shape, x.dtype)],
        grid=(tokens,),
        K=indices.shape[1],
        D=d,
        BLOCK=triton.next_power_of_2(d),
    )
    return squared, error


@triton.jit
@no_type_check
def decode_error_kernel(
    values,
    indices,
    w_dec,
    b_dec,
    x,
    squared,
    error,
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: one token, all columns."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    total = tl.load(b_dec + column, mask=inside, other=0).to(tl.float32)
    for slot in range(K):
        value = tl.load(values + token * K + slot).to(tl.float32)
        row = tl.load(indices + token * K + slot).to(tl.int64)
        total += value * tl.load(w_dec + row * D + column, mask=inside, other=0).to(tl.float32)
    total -= tl.load(x + token * D + column, mask=inside, other=0).to(tl.float32)
    tl.store(error + token * D + column, total, mask=inside)
    tl.store(squared + token, tl.sum(tl.where(inside, total * total, 0)))
