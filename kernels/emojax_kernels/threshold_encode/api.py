"""The threshold encoder (JumpReLU, BatchTopK at inference) with its gradient."""

import jax

from emojax_kernels import checks, encoder, implementations


def threshold_encode(
    x: jax.Array,
    w_enc: jax.Array,
    b_enc: jax.Array,
    threshold: jax.Array,
    k: int,
    *,
    mask: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The latents whose pre-activation lies above a threshold, in k slots per token.

    `pre * (pre > threshold)` of a JumpReLU SAE (Rajamanoharan et al. 2024, arXiv 2407.14435,
    eq. 3), or of a BatchTopK SAE at inference (Bussmann et al. 2024, arXiv 2412.06410), where one
    threshold serves all latents. A pre-activation that is not positive is never kept.
    A token may have more latents above threshold than slots: then the k largest are kept, and
    `count` says so, for it is always the whole number.

    Differentiable in x, w_enc and b_enc through the kept values; no gradient reaches the
    threshold (it trains through `jumprelu`).

    Args:
        x: `[tokens, d]`, float32 or bfloat16.
        w_enc: `[n, d]`, one row per latent, of x's dtype.
        b_enc: `[n]`, of x's dtype or float32.
        threshold: `[n]`, of x's dtype or float32; compared with pre-activations rounded to x's.
        k: slots per token, 1 <= k <= n; static.
        mask: `[n]`, bool; latents where it is False are neither kept nor counted.
        implementation: as in `topk_encode`.

    Returns:
        values: `[tokens, k]`, of x's dtype, non-negative, descending; 0 in unused slots.
        indices: `[tokens, k]`, int32.
        count: `[tokens]`, int32, the latents above threshold; more than k means that some are lost.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes that do not agree, k outside 1..n or an unknown implementation.
    """
    op = "threshold_encode"
    name = implementations.chosen(op, implementation)
    forward = implementations.find(op, name)
    encoder.check(op, x, w_enc, b_enc, k)
    b_enc = encoder.masked(op, b_enc, mask)
    checks.shapes(op, {"b_enc": (b_enc, "n"), "threshold": (threshold, "n")})
    checks.dtypes(op, {"x": x, "w_enc": w_enc}, {"threshold": threshold})
    if name == "reference":
        return forward(x, w_enc, b_enc, threshold, k)
    values, indices, count = encoder.encode(forward, k, name, x, w_enc, b_enc, threshold)
    return values, indices, count
