"""Encoder with a threshold per latent on an NVIDIA GPU: TopK among the entries above it."""

import jax
import jax.numpy as jnp

from emojax_kernels.topk_encode.triton import preactivations, select


def threshold_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, threshold: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `emojax_kernels.threshold_encode`."""
    least = jnp.maximum(threshold.astype(jnp.float32), 0)
    pre, best = preactivations(x, w_enc, b_enc, least)
    values, indices = select(pre, best, k)
    count = (pre != -jnp.inf).sum(-1, dtype=jnp.int32)
    return jax.nn.relu(values), indices, count
