"""The rows' update through dense codes, as plain as it can be said."""

import jax
import jax.numpy as jnp

from emojax_kernels.fused_row_update import adam
from emojax_kernels.fused_row_update.state import RowAdam, RowState


def fused_row_update(
    rows: RowState,
    x: jax.Array,
    error: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    learning_rate: jax.Array,
    settings: RowAdam,
) -> tuple[RowState, jax.Array]:
    """See `emojax_kernels.fused_row_update`."""
    x, error, values = (a.astype(jnp.float32) for a in (x, error, values))
    token = jnp.arange(x.shape[0])[:, None]
    n = rows.w_enc.shape[0]
    codes = jnp.zeros((x.shape[0], n)).at[token, indices].add(values)
    active = jnp.zeros((x.shape[0], n)).at[token, indices].add(values > 0)
    dots = jnp.dot(error, rows.w_dec.astype(jnp.float32).T, precision="highest")
    d_codes = active * dots
    g_dec = jnp.dot(codes.T, error, precision="highest")
    g_enc = jnp.dot(d_codes.T, x, precision="highest")
    d_pre = jnp.where(values > 0, dots[token, indices], 0)
    return adam.update(rows, g_enc, g_dec, d_codes.sum(0), learning_rate, settings), d_pre
