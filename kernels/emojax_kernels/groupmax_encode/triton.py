"""GroupMax encoder on an NVIDIA GPU: the fused pre-activations, then one pass over them."""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from emojax_kernels.topk_encode.triton import by_tokens, larger, preactivations
from emojax_kernels.triton_launch import launch


def groupmax_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """See `emojax_kernels.groupmax_encode`."""
    n = w_enc.shape[0]
    no_threshold = jnp.full(n, -jnp.inf, jnp.float32)

    def encode(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens = rows.shape[0]
        pre, _ = preactivations(rows, w_enc, b_enc, no_threshold)
        values, indices = launch(
            groupmax_kernel,
            pre,
            out=[
                jax.ShapeDtypeStruct((tokens, k), x.dtype),
                jax.ShapeDtypeStruct((tokens, k), jnp.int32),
            ],
            grid=(tokens, k),
            K=k,
            SIZE=n // k,
            BLOCK=triton.next_power_of_2(n // k),
        )
        return values, indices

    return by_tokens(encode, x, n)


@triton.jit
@no_type_check
def groupmax_kernel(pre, values, indices, K: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """One program: one group of one token."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    member = tl.arange(0, BLOCK)
    entry = tl.load(
        pre + (token * K + group) * SIZE + member, mask=member < SIZE, other=float("-inf")
    ).to(tl.float32)
    highest = tl.reduce(entry, 0, larger)
    # The first entry that is the maximum, or the first NaN.
    at = (entry == highest) | (entry != entry)
    first = tl.min(tl.where(at & (member < SIZE), member, BLOCK))
    tl.store(values + token * K + group, larger(highest, 0.0).to(values.dtype.element_ty))
    tl.store(indices + token * K + group, group * SIZE + first)
