"""Encoder with a threshold per latent, as plain as it can be said."""

import jax
import jax.numpy as jnp
from jax import lax

from emojax_kernels.topk_encode.reference import preactivations


def threshold_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, threshold: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Values, indices `[tokens, k]` of the entries above threshold, and their number `[tokens]`."""
    pre = preactivations(x, w_enc, b_enc)
    above = ~(pre <= jnp.maximum(threshold, 0))  # a NaN stays visible
    values, indices = lax.top_k(jnp.where(above, pre, 0), k)
    return values, indices, above.sum(-1, dtype=jnp.int32)
