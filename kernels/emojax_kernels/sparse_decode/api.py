"""The sparse decoder with its complete gradient."""

import functools

import jax
import jax.numpy as jnp

from emojax_kernels import checks, implementations, varying
from emojax_kernels.row_products.api import products
from emojax_kernels.sparse_decode import reference
from emojax_kernels.sparse_decode.rows import decoded


def sparse_decode(
    values: jax.Array,
    indices: jax.Array,
    w_dec: jax.Array,
    b_dec: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """`out[t] = b_dec + sum_s values[t, s] * w_dec[indices[t, s]]`, accumulated in float32.

    Differentiable in values, w_dec and b_dec (reverse mode), with no dense code. A latent that is
    named twice by one token counts twice.

    Args:
        values: `[tokens, k]`, float32 or bfloat16.
        indices: `[tokens, k]`, int32, each within 0..n-1 (not checked: it is data).
        w_dec: `[n, d]`, one row per latent, of values' dtype.
        b_dec: `[d]`, of values' dtype or float32.
        implementation: as in `topk_encode`.

    Returns:
        `[tokens, d]`, of values' dtype.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes that do not agree or an unknown implementation.
    """
    op = "sparse_decode"
    name = implementations.chosen(op, implementation)
    checks.shapes(
        op,
        {
            "values": (values, "tokens k"),
            "indices": (indices, "tokens k"),
            "w_dec": (w_dec, "n d"),
            "b_dec": (b_dec, "d"),
        },
    )
    checks.dtypes(op, {"values": values, "w_dec": w_dec}, {"b_dec": b_dec})
    checks.indices(op, indices)
    if name == "reference":
        return reference.sparse_decode(values, indices, w_dec, b_dec)
    return _decode(*varying.alike(values, indices, w_dec, b_dec), name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _decode(values, indices, w_dec, b_dec, name):
    return decoded(values, indices, w_dec, b_dec, name).astype(values.dtype)


def _forward(values, indices, w_dec, b_dec, name):
    return _decode(values, indices, w_dec, b_dec, name), (values, indices, w_dec, b_dec)


def _backward(name, residuals, e):
    values, indices, w_dec, b_dec = residuals
    d_values, d_w, d_b = decoder_gradients(e, values, indices, w_dec, b_dec, name)
    return d_values, None, d_w, d_b


_decode.defvjp(_forward, _backward)


def decoder_gradients(
    e: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    w_dec: jax.Array,
    b_dec: jax.Array,
    name: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents of values, w_dec and b_dec from that of the decoder's output, `[tokens, d]`."""
    by = products(name)
    d_values = by.gather_dot(e, indices, w_dec)
    d_w = by.scatter_sum(values, indices, e, w_dec.shape[0])
    d_b = e.astype(jnp.float32).sum(0)
    return d_values.astype(values.dtype), d_w.astype(w_dec.dtype), d_b.astype(b_dec.dtype)
