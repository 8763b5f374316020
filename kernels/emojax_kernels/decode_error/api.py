"""The sparse decoder fused with its reconstruction error and loss, with its complete gradient."""

import functools

import jax
import jax.numpy as jnp

from emojax_kernels import checks, implementations, varying
from emojax_kernels.decode_error import reference
from emojax_kernels.sparse_decode.api import decoder_gradients
from emojax_kernels.sparse_decode.rows import decoded


def decode_error(
    values: jax.Array,
    indices: jax.Array,
    w_dec: jax.Array,
    b_dec: jax.Array,
    x: jax.Array,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """How a code's reconstruction differs from x: `sparse_decode(...) - x` and its squared norm.

    The reconstruction itself is not written. `squared.mean() / d` is the mean squared error, and
    `fused_row_update` wants `error` times the loss's scale. Differentiable in everything but
    indices.

    Args:
        values: `[tokens, k]`, float32 or bfloat16.
        indices: `[tokens, k]`, int32, each within 0..n-1 (not checked: it is data).
        w_dec: `[n, d]`, one row per latent, of values' dtype.
        b_dec: `[d]`, of values' dtype or float32.
        x: `[tokens, d]`, of values' dtype.
        implementation: as in `topk_encode`.

    Returns:
        squared: `[tokens]`, float32, the error's squared norm, from the error before rounding.
        error: `[tokens, d]`, of x's dtype.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes that do not agree or an unknown implementation.
    """
    op = "decode_error"
    name = implementations.chosen(op, implementation)
    checks.shapes(
        op,
        {
            "values": (values, "tokens k"),
            "indices": (indices, "tokens k"),
            "w_dec": (w_dec, "n d"),
            "b_dec": (b_dec, "d"),
            "x": (x, "tokens d"),
        },
    )
    checks.dtypes(op, {"values": values, "w_dec": w_dec, "x": x}, {"b_dec": b_dec})
    checks.indices(op, indices)
    if name == "reference":
        return reference.decode_error(values, indices, w_dec, b_dec, x)
    squared, error = _decode_error(*varying.alike(values, indices, w_dec, b_dec, x), name)
    return squared, error


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _decode_error(values, indices, w_dec, b_dec, x, name):
    if name == "triton":  # which has a kernel for all of it
        return implementations.find("decode_error", name)(values, indices, w_dec, b_dec, x)
    error = decoded(values, indices, w_dec, b_dec, name) - x.astype(jnp.float32)
    return (error**2).sum(-1), error.astype(x.dtype)


def _forward(values, indices, w_dec, b_dec, x, name):
    squared, error = _decode_error(values, indices, w_dec, b_dec, x, name)
    return (squared, error), (values, indices, w_dec, b_dec, error)


def _backward(name, residuals, cotangents):
    values, indices, w_dec, b_dec, error = residuals
    d_squared, d_error = (c.astype(jnp.float32) for c in cotangents)
    e = (2 * d_squared[:, None] * error.astype(jnp.float32) + d_error).astype(error.dtype)
    d_values, d_w, d_b = decoder_gradients(e, values, indices, w_dec, b_dec, name)
    return d_values, None, d_w, d_b, -e


_decode_error.defvjp(_forward, _backward)
