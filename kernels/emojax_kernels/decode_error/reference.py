"""Decoder with its error and loss, as plain as it can be said."""

import jax
import jax.numpy as jnp

from emojax_kernels.sparse_decode import reference


def decode_error(
    values: jax.Array, indices: jax.Array, w_dec: jax.Array, b_dec: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Squared error `[tokens]` and error `[tokens, d]` of the reconstruction of x."""
    wide = (a.astype(jnp.float32) for a in (values, w_dec, b_dec))
    values, w_dec, b_dec = wide
    error = reference.sparse_decode(values, indices, w_dec, b_dec) - x.astype(jnp.float32)
    return (error**2).sum(-1), error.astype(x.dtype)
