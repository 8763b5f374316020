"""What the encoders share: their checks and their gradient."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from emojax_kernels import checks, varying
from emojax_kernels.row_products.api import encoder_gradients


def check(op: str, x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, k: int) -> int:
    """Raise unless the arguments fit together; returns the number of latents."""
    n = checks.shapes(op, {"x": (x, "tokens d"), "w_enc": (w_enc, "n d"), "b_enc": (b_enc, "n")})[
        "n"
    ]
    checks.active(op, k, n)
    checks.dtypes(op, {"x": x, "w_enc": w_enc}, {"b_enc": b_enc})
    return n


def masked(op: str, b_enc: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The bias with which no latent competes that the mask rules out.

    Raises:
        TypeError: for a mask that is not of bools.
        ValueError: for one that has not one entry per latent.
    """
    if mask is None:
        return b_enc
    checks.mask(op, mask, b_enc.shape[0])
    return jnp.where(mask, b_enc, -jnp.inf)


def encode(
    forward: Callable[..., tuple[jax.Array, ...]],
    k: int,
    name: str,
    *arrays: jax.Array,
) -> tuple[jax.Array, ...]:
    """`forward(x, w_enc, b_enc, *data, k)` with an encoder's gradient.

    Args:
        forward: returns values `[tokens, k]` (ReLU'd), indices `[tokens, k]` and whole numbers.
        k: latents per token.
        name: the implementation of the products in the gradient.
        *arrays: x `[tokens, d]`, w_enc `[n, d]`, b_enc `[n]`, and what else `forward` needs, which
            no gradient reaches.
    """
    return _encode(forward, k, name, *varying.alike(*arrays))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _encode(forward, k, name, x, w_enc, b_enc, *data):
    return forward(x, w_enc, b_enc, *data, k)


def _forward(forward, k, name, x, w_enc, b_enc, *data):
    out = _encode(forward, k, name, x, w_enc, b_enc, *data)
    return out, (x, w_enc, b_enc, data, out[0], out[1])


def _backward(forward, k, name, residuals, cotangents):
    x, w_enc, b_enc, data, values, indices = residuals
    gradients = encoder_gradients(cotangents[0], values, indices, x, w_enc, b_enc, name)
    return (*gradients, *(None for _ in data))


_encode.defvjp(_forward, _backward)
