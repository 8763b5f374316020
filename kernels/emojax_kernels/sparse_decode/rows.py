"""Decoder of a sparse code by the row products of any implementation."""

import jax
import jax.numpy as jnp

from emojax_kernels.row_products.api import products


def decoded(
    values: jax.Array, indices: jax.Array, w_dec: jax.Array, b_dec: jax.Array, name: str
) -> jax.Array:
    """`sparse_decode` before it is rounded: float32 `[tokens, d]`; `name` of the products."""
    return products(name).gather_sum(values, indices, w_dec) + b_dec.astype(jnp.float32)
