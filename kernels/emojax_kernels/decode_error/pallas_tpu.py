"""Decoder with its error and loss on a TPU: the sums by row kernel, the rest fused after it."""

import jax
import jax.numpy as jnp

from emojax_kernels.row_products import pallas_tpu as products


def decode_error(
    values: jax.Array, indices: jax.Array, w_dec: jax.Array, b_dec: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See `emojax_kernels.decode_error`."""
    total = products.gather_sum(values, indices, w_dec)
    error = total + b_dec.astype(jnp.float32) - x.astype(jnp.float32)
    return (error**2).sum(-1), error.astype(x.dtype)
