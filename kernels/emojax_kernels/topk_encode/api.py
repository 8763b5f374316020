"""The TopK encoder with its complete gradient."""

import jax

from emojax_kernels import encoder, implementations
from emojax_kernels.topk_encode import scoring as scored

SCORING = ("float8_e4m3fn",)


def topk_encode(
    x: jax.Array,
    w_enc: jax.Array,
    b_enc: jax.Array,
    k: int,
    *,
    mask: jax.Array | None = None,
    implementation: str | None = None,
    scoring: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k largest latents of each token, exactly (TopK SAE: Gao et al. 2024, arXiv 2406.04093).

    Pre-activations `x @ w_enc.T + b_enc` are accumulated in float32 and rounded to x's dtype; the
    k largest of them are passed through ReLU. Ties go to the lower index. A token with fewer than
    k positive pre-activations has slots of value 0, whose indices are valid but mean nothing. A
    token that holds a NaN has NaN values; other tokens are not touched by it.

    Differentiable in x, w_enc and b_enc (reverse mode), with no `[tokens, n]` cotangent.

    Args:
        x: `[tokens, d]`, float32 or bfloat16.
        w_enc: `[n, d]`, one row per latent, of x's dtype.
        b_enc: `[n]`, of x's dtype or float32.
        k: latents kept per token, 1 <= k <= n; static.
        mask: `[n]`, bool; latents where it is False do not compete (AuxK: the dead ones are True).
        implementation: "reference" (plain `jax.numpy`, differentiated by JAX), "xla", "triton"
            (NVIDIA), "pallas_tpu" (TPU), or None for the fastest that is proven on the platform at
            hand.
        scoring: None, or "float8_e4m3fn" to score all latents in 8 bits and decide between the best
            4 k in float32 ("xla" only). Tokens whose gap does not certify the result are encoded
            again without it; see `scoring.py` for what the certificate is worth.

    Returns:
        values: `[tokens, k]`, of x's dtype, non-negative, descending.
        indices: `[tokens, k]`, int32.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes that do not agree, k outside 1..n, an unknown implementation, or a
            scoring that is unknown or not offered by the implementation.
        ImportError: for "triton" where it or jax-triton is not installed.
    """
    op = "topk_encode"
    name = implementations.chosen(op, implementation)
    forward = implementations.find(op, name)
    encoder.check(op, x, w_enc, b_enc, k)
    b_enc = encoder.masked(op, b_enc, mask)
    if scoring is not None:
        if scoring not in SCORING or name != "xla":
            raise ValueError(
                f"{op}: scoring={scoring!r} with implementation={name!r}; supported: None, or "
                f"{SCORING[0]!r} with 'xla'."
            )
        forward = scored.topk_encode
    if name == "reference":
        return forward(x, w_enc, b_enc, k)
    values, indices = encoder.encode(forward, k, name, x, w_enc, b_enc)
    return values, indices
