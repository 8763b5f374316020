"""The products by name of implementation, and an encoder's gradient made of them."""

import types

import jax
import jax.numpy as jnp

from emojax_kernels import implementations
from emojax_kernels.row_products.xla import latent_sums


def products(name: str) -> types.ModuleType:
    """The module with `gather_sum`, `gather_dot` and `scatter_sum` of an implementation."""
    return implementations.module("row_products", name)


def encoder_gradients(
    d_values: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    x: jax.Array,
    w_enc: jax.Array,
    b_enc: jax.Array,
    name: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents of x, w_enc and b_enc from that of an encoder's values, all `[tokens, k]`.

    A pre-activation reaches its value through a ReLU, so a slot of value 0 passes nothing on.
    """
    n = w_enc.shape[0]
    d_pre = jnp.where(values > 0, d_values, 0)
    by = products(name)
    d_x = by.gather_sum(d_pre, indices, w_enc)
    d_w = by.scatter_sum(d_pre, indices, x, n)
    d_b = latent_sums(d_pre, indices, n)
    return d_x.astype(x.dtype), d_w.astype(w_enc.dtype), d_b.astype(b_enc.dtype)
