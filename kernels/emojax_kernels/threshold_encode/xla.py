"""Encoder with a threshold per latent on XLA."""

import jax
import jax.numpy as jnp

from emojax_kernels.blocks import map_blocks
from emojax_kernels.topk_encode.reference import preactivations
from emojax_kernels.topk_encode.xla import ELEMENTS, select


def threshold_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, threshold: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `emojax_kernels.threshold_encode`."""

    def encode(rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        pre = preactivations(rows, w_enc, b_enc)
        above = ~(pre <= jnp.maximum(threshold, 0))  # a NaN stays visible
        values, indices = select(jnp.where(above, pre, 0), k)
        return values, indices, above.sum(-1, dtype=jnp.int32)

    return map_blocks(encode, max(1, ELEMENTS // w_enc.shape[0]), x)
