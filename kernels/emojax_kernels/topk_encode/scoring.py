"""TopK encoder whose candidates are scored in 8 bits and decided in float32 (option `scoring`).

1. x and w_enc as float8_e4m3fn with one float32 scale per row; their product scores all latents.
2. The best `SPARE * k` latents of a token are candidates; their pre-activations are computed again
   in float32 from x and w_enc as they came, and the k best of those are taken.
3. A token is certified if its k-th pre-activation exceeds the best score left out by `MARGIN`
   standard deviations of the scores' error. The error is measured on the token's own candidates
   and scaled to the longest row. All other tokens (few, or every one) are encoded exactly.

Rounding errors are taken to be alike for candidates and for the rest. That is what makes the result
exact; it is a statement about rounding at `MARGIN` deviations, not a proof: the worst case (Cauchy
and Schwarz) is sqrt(d) times as large and would certify no token.
"""

import jax
import jax.numpy as jnp
from jax import lax

from emojax_kernels.blocks import map_blocks
from emojax_kernels.repair import repaired
from emojax_kernels.topk_encode import xla

# Candidates as a multiple of k.
SPARE = 4
# Deviations of the error between the k-th pre-activation and what was left out.
MARGIN = 8.0
_LARGEST = 448.0
# Elements of gathered rows held at once: what the CPU's caches hold, elsewhere what keeps it busy.
_GATHERED = {"cpu": 1 << 19, "default": 1 << 27}


def topk_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """See `emojax_kernels.topk_encode`."""
    tokens, n = x.shape[0], w_enc.shape[0]
    if not tokens or SPARE * k >= n:
        return xla.topk_encode(x, w_enc, b_enc, k)
    values, indices, certified = candidates(x, w_enc, b_enc, k)
    return repaired(
        ~certified, (values, indices), lambda rows: xla.topk_encode(x[rows], w_enc, b_enc, k)
    )


def candidates(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k best candidates, and whether they are the k best of all.

    Args:
        x: `[tokens, d]`.
        w_enc: `[n, d]`.
        b_enc: `[n]`.
        k: latents kept; `SPARE * k` must be less than n.

    Returns:
        values: `[tokens, k]`, of x's dtype, ReLU'd, descending.
        indices: `[tokens, k]`, int32.
        certified: `[tokens]`, bool.
    """
    narrow_w, scale_w = narrow(w_enc)
    bias = b_enc.astype(jnp.float32)
    longest = jnp.sqrt((w_enc.astype(jnp.float32) ** 2).sum(1))

    def encode(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        narrow_x, scale_x = narrow(x)
        product = lax.dot_general(
            narrow_x, narrow_w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        scores = product * scale_x * scale_w.T + bias
        score, chosen = xla.select(scores, SPARE * k)
        # In order of latents, so that ties go to the lower one; the worst score is kept before.
        left_out = score[:, -1]
        order = jnp.argsort(chosen, axis=1)
        score, chosen = (jnp.take_along_axis(a, order, axis=1) for a in (score, chosen))
        exact = _dots(x, chosen, w_enc) + bias[chosen]
        values, place = lax.top_k(exact.astype(x.dtype), k)
        worst = values[:, -1].astype(jnp.float32)
        relative = (exact - score) / jnp.maximum(longest[chosen], jnp.finfo(jnp.float32).tiny)
        deviation = jnp.sqrt((relative**2).mean(1)) * longest.max()
        # Two pre-activations that differ by less than their dtype resolves would tie.
        unresolved = jnp.abs(worst) * (2 * float(jnp.finfo(x.dtype).eps))
        certified = worst - unresolved > left_out + MARGIN * deviation
        return jax.nn.relu(values), jnp.take_along_axis(chosen, place, axis=1), certified

    return map_blocks(encode, max(1, xla.ELEMENTS // w_enc.shape[0]), x)


def narrow(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows `[rows, d]` as float8_e4m3fn, and the float32 scales `[rows, 1]` that undo it."""
    wide = rows.astype(jnp.float32)
    scale = jnp.abs(wide).max(1, keepdims=True) / _LARGEST
    scale = jnp.where(scale == 0, 1, scale)
    return (wide / scale).astype(jnp.float8_e4m3fn), scale


def _dots(x, chosen, w_enc):
    """`<x[t], w_enc[chosen[t, s]]>`, float32, as exact as a float32 GEMM."""

    def dots(x, chosen):
        rows = w_enc.at[chosen].get(mode="promise_in_bounds").astype(jnp.float32)
        return jnp.einsum("td,tsd->ts", x.astype(jnp.float32), rows, precision="highest")

    def on(platform):
        block = max(1, _GATHERED[platform] // (chosen.shape[1] * x.shape[1]))
        return lambda x, chosen: map_blocks(dots, block, x, chosen)

    return lax.platform_dependent(x, chosen, cpu=on("cpu"), default=on("default"))
