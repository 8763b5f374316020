"""Decoder of a sparse code on a TPU."""

import jax
import jax.numpy as jnp

from emojax_kernels.row_products import pallas_tpu as products


def sparse_decode(
    values: jax.Array, indices: jax.Array, w_dec: jax.Array, b_dec: jax.Array
) -> jax.Array:
    """See `emojax_kernels.sparse_decode`."""
    total = products.gather_sum(values, indices, w_dec)
    return (total + b_dec.astype(jnp.float32)).astype(values.dtype)
