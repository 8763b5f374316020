"""Decoder of a sparse code, as plain as it can be said."""

import jax
import jax.numpy as jnp


def sparse_decode(
    values: jax.Array, indices: jax.Array, w_dec: jax.Array, b_dec: jax.Array
) -> jax.Array:
    """`out[t] = b_dec + sum_s values[t, s] * w_dec[indices[t, s]]`: `[tokens, d]`."""
    rows = w_dec[indices].astype(jnp.float32)
    total = jnp.einsum("tk,tkd->td", values.astype(jnp.float32), rows, precision="highest")
    return (total + b_dec.astype(jnp.float32)).astype(values.dtype)
