"""JumpReLU and its step, with straight-through gradients of the threshold.

Rajamanoharan et al. 2024, arXiv 2407.14435: eq. 3 and 4 (forward), 11 and 12 (gradients), with
their kernel K, the rectangle of width 1. Element-wise, so XLA fuses it with its neighbours on
every platform: there is one implementation.
"""

import functools

import jax
import jax.numpy as jnp

from emojax_kernels import checks, varying


def jumprelu(pre: jax.Array, threshold: jax.Array, bandwidth: float) -> jax.Array:
    """`pre * (pre > threshold)`; NaN where pre is.

    Gradients: `(pre > threshold)` for pre, and `-(threshold / bandwidth) * K(u)` for the threshold
    with `u = (pre - threshold) / bandwidth` and `K(u) = (|u| < 1/2)`.

    Args:
        pre: `[tokens, n]` pre-activations, float32 or bfloat16.
        threshold: `[n]`, positive, of pre's dtype or float32.
        bandwidth: width of the kernel, positive, in the unit of `pre`; static.

    Returns:
        `[tokens, n]`, of pre's dtype.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes that do not agree or a bandwidth that is not positive.
    """
    _check("jumprelu", pre, threshold, bandwidth)
    return _jumprelu(*varying.alike(pre, threshold), bandwidth)


def step(pre: jax.Array, threshold: jax.Array, bandwidth: float) -> jax.Array:
    """`1 if pre > threshold else 0`, whose sum over latents is the L0 penalty.

    Gradients: none for pre, and `-K(u) / bandwidth` for the threshold. Arguments, shapes and errors
    as in `jumprelu`.
    """
    _check("step", pre, threshold, bandwidth)
    return _step(*varying.alike(pre, threshold), bandwidth)


def _check(op, pre, threshold, bandwidth):
    checks.shapes(op, {"pre": (pre, "tokens n"), "threshold": (threshold, "n")})
    checks.dtypes(op, {"pre": pre}, {"threshold": threshold})
    if not bandwidth > 0:
        raise ValueError(f"{op}: bandwidth={bandwidth}; supported: a positive number.")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _jumprelu(pre, threshold, bandwidth):
    return jnp.where(pre <= threshold, 0, pre)  # a NaN stays one


def _jumprelu_forward(pre, threshold, bandwidth):
    return _jumprelu(pre, threshold, bandwidth), (pre, threshold)


def _jumprelu_backward(bandwidth, residuals, cotangent):
    pre, threshold = residuals
    wide = cotangent.astype(jnp.float32)
    d_threshold = -(threshold / bandwidth) * (wide * _near(pre, threshold, bandwidth)).sum(0)
    return jnp.where(pre > threshold, cotangent, 0), d_threshold.astype(threshold.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _step(pre, threshold, bandwidth):
    return (pre > threshold).astype(pre.dtype)


def _step_forward(pre, threshold, bandwidth):
    return _step(pre, threshold, bandwidth), (pre, threshold)


def _step_backward(bandwidth, residuals, cotangent):
    pre, threshold = residuals
    wide = cotangent.astype(jnp.float32)
    d_threshold = -(wide * _near(pre, threshold, bandwidth)).sum(0) / bandwidth
    return jnp.zeros_like(pre), d_threshold.astype(threshold.dtype)


def _near(pre, threshold, bandwidth):
    return jnp.abs(pre - threshold) < bandwidth / 2


_jumprelu.defvjp(_jumprelu_forward, _jumprelu_backward)
_step.defvjp(_step_forward, _step_backward)
