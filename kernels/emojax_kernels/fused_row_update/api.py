"""Both gradients of every latent, its norm and its Adam step, as one operation."""

import jax
import jax.numpy as jnp

from emojax_kernels import checks, implementations
from emojax_kernels.fused_row_update.state import RowAdam, RowState, check_rows


def fused_row_update(
    rows: RowState,
    x: jax.Array,
    error: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    *,
    learning_rate: jax.Array | float,
    settings: RowAdam,
    implementation: str | None = None,
) -> tuple[RowState, jax.Array]:
    """One training step of the dictionary, from a code and the cotangent of its reconstruction.

    With `dz[t, s] = <error[t], w_dec[j]> * (values[t, s] > 0)` and j = indices[t, s], the
    gradients are `sum values * error` for w_dec[j], `sum dz * x` for w_enc[j] and `sum dz` for
    b_enc[j]. Then, row by row: the decoder gradient's projection, Adam with bias correction
    (as `optax.adam`), and the decoder's renormalisation. b_dec is not a row. Its gradient is
    `error.sum(0)`; where the encoder reads `x - b_dec`, less `dz` summed by latent (b_enc's
    gradient) times the w_enc of before the step, and so dz is returned.

    Several losses on the same rows (AuxK, Matryoshka prefixes) are one call with their tokens
    stacked: x, error, values and indices concatenated over the token axis.

    Two runs give the same bits. Donate `rows` under `jax.jit` to update in place.

    Args:
        rows: the dictionary and its optimiser state, from `init_rows` with the same moments and
            shadow in its settings.
        x: `[tokens, d]`, what the encoder read, float32 or bfloat16.
        error: `[tokens, d]`, cotangent of the reconstruction, of x's dtype: for the mean squared
            error, `decode_error`'s error times `2 / (tokens * d)`.
        values: `[tokens, k]`, of x's dtype.
        indices: `[tokens, k]`, int32.
        learning_rate: scalar.
        settings: of Adam; static.
        implementation: as in `topk_encode`.

    Returns:
        rows: the next `RowState`.
        d_pre: `[tokens, k]`, float32, the dz above: the cotangent of the pre-activations.

    Raises:
        TypeError: for a dtype that is not supported.
        ValueError: for shapes that do not agree, rows of other settings, unknown moments or
            shadow, or an unknown implementation.
    """
    op = "fused_row_update"
    forward = implementations.find(op, implementations.chosen(op, implementation))
    check_rows(op, rows, settings)
    checks.shapes(
        op,
        {
            "w_enc": (rows.w_enc, "n d"),
            "x": (x, "tokens d"),
            "error": (error, "tokens d"),
            "values": (values, "tokens k"),
            "indices": (indices, "tokens k"),
        },
    )
    checks.dtypes(op, {"x": x, "error": error, "values": values}, {})
    checks.indices(op, indices)
    rate = jnp.asarray(learning_rate, jnp.float32)
    return forward(rows, x, error, values, indices, rate, settings)
