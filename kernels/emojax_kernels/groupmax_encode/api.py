"""The GroupMax encoder with its complete gradient."""

import jax

from emojax_kernels import encoder, implementations


def groupmax_encode(
    x: jax.Array,
    w_enc: jax.Array,
    b_enc: jax.Array,
    k: int,
    *,
    mask: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The largest latent of each of k groups of n/k neighbouring latents, passed through ReLU.

    A cheaper relative of TopK: no selection across groups. Ties go to the lower index.
    Differentiable in x, w_enc and b_enc.

    Args:
        x: `[tokens, d]`, float32 or bfloat16.
        w_enc: `[n, d]`, one row per latent, of x's dtype.
        b_enc: `[n]`, of x's dtype or float32.
        k: groups, and so latents per token; divides n; static.
        mask: `[n]`, bool; latents where it is False do not compete. A group of none but those has
            value 0 and the index of its first.
        implementation: as in `topk_encode`.

    Returns:
        values: `[tokens, k]`, of x's dtype, non-negative; slot g belongs to group g.
        indices: `[tokens, k]`, int32.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes that do not agree, a k that does not divide n or an unknown
            implementation.
    """
    op = "groupmax_encode"
    name = implementations.chosen(op, implementation)
    forward = implementations.find(op, name)
    n = encoder.check(op, x, w_enc, b_enc, k)
    if n % k:
        raise ValueError(f"{op}: k={k} with n={n} latents; supported: a k that divides n.")
    b_enc = encoder.masked(op, b_enc, mask)
    if name == "reference":
        return forward(x, w_enc, b_enc, k)
    values, indices = encoder.encode(forward, k, name, x, w_enc, b_enc)
    return values, indices
