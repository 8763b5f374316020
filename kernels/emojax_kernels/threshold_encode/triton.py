"""Encoder with a threshold per latent on an NVIDIA GPU: TopK among the entries above it."""

import jax
import jax.numpy as jnp

from emojax_kernels.topk_encode.triton import by_tokens, preactivations, select


def threshold_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, threshold: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `emojax_kernels.threshold_encode`."""
    least = jnp.maximum(threshold.astype(jnp.float32), 0)

    def encode(rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        pre, best = preactivations(rows, w_enc, b_enc, least)
        values, indices = select(pre, best, k)
        return jax.nn.relu(values), indices, (pre != -jnp.inf).sum(-1, dtype=jnp.int32)

    return by_tokens(encode, x, w_enc.shape[0])
