"""Encoder with a threshold per latent on a TPU: TopK among the entries above it."""

import jax
import jax.numpy as jnp

from emojax_kernels.topk_encode.pallas_tpu import merge_best, stream


def threshold_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, threshold: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `emojax_kernels.threshold_encode`."""
    return stream(merge_best, x, w_enc, b_enc, jnp.maximum(threshold, 0), k)
