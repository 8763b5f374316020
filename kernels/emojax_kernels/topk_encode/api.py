"""The TopK encoder with its complete gradient."""

import functools

import jax
import jax.numpy as jnp

from emojax_kernels import checks
from emojax_kernels.row_products import xla as products
from emojax_kernels.topk_encode import reference, xla

IMPLEMENTATIONS = {"reference": reference.topk_encode, "xla": xla.topk_encode}


def topk_encode(
    x: jax.Array,
    w_enc: jax.Array,
    b_enc: jax.Array,
    k: int,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k largest latents of each token, exactly (TopK SAE: Gao et al. 2024, arXiv 2406.04093).

    Pre-activations `x @ w_enc.T + b_enc` are accumulated in float32 and rounded to x's dtype; the
    k largest of them are passed through ReLU. Ties go to the lower index. A token with fewer than
    k positive pre-activations has slots of value 0, whose indices are valid and distinct but mean
    nothing. A token that holds a NaN has NaN values; other tokens are not touched by it.

    Differentiable in x, w_enc and b_enc (reverse mode), with no `[tokens, n]` cotangent.

    Args:
        x: `[tokens, d]`, float32 or bfloat16.
        w_enc: `[n, d]`, one row per latent, of x's dtype.
        b_enc: `[n]`, of x's dtype or float32.
        k: latents kept per token, 1 <= k <= n; static.
        implementation: "reference" (plain `jax.numpy`, differentiated by JAX), "xla", or None for
            the fastest on the platform that the code is compiled for.

    Returns:
        values: `[tokens, k]`, of x's dtype, non-negative, descending.
        indices: `[tokens, k]`, int32.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes that do not agree, k outside 1..n or an unknown implementation.
    """
    op = "topk_encode"
    checks.implementation(op, implementation, IMPLEMENTATIONS)
    sizes = checks.shapes(
        op, {"x": (x, "tokens d"), "w_enc": (w_enc, "n d"), "b_enc": (b_enc, "n")}
    )
    checks.active(op, k, sizes["n"])
    checks.dtypes(op, {"x": x, "w_enc": w_enc}, {"b_enc": b_enc})
    if implementation == "reference":
        return reference.topk_encode(x, w_enc, b_enc, k)
    return _encode(x, w_enc, b_enc, k, implementation or "xla")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _encode(x, w_enc, b_enc, k, implementation):
    return IMPLEMENTATIONS[implementation](x, w_enc, b_enc, k)


def _forward(x, w_enc, b_enc, k, implementation):
    values, indices = _encode(x, w_enc, b_enc, k, implementation)
    return (values, indices), (x, w_enc, b_enc, values, indices)


def _backward(k, implementation, residuals, cotangents):
    x, w_enc, b_enc, values, indices = residuals
    # ReLU's gradient; a slot that is not in use passes nothing on.
    d_pre = jnp.where(values > 0, cotangents[0], 0)
    n = w_enc.shape[0]
    d_x = products.gather_sum(d_pre, indices, w_enc)
    d_w = products.scatter_sum(d_pre, indices, x, n)
    d_b = jnp.zeros(n, jnp.float32).at[indices.reshape(-1)].add(d_pre.reshape(-1).astype("float32"))
    return d_x.astype(x.dtype), d_w.astype(w_enc.dtype), d_b.astype(b_enc.dtype)


_encode.defvjp(_forward, _backward)
