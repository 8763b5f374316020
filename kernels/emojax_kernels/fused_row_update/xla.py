"""The rows' update on XLA: two sparse products, then one fused pass over the rows.

Unlike the kernels, this holds the two gradients `[n, d]`.
"""

import jax
import jax.numpy as jnp

from emojax_kernels.fused_row_update import adam
from emojax_kernels.fused_row_update.state import RowAdam, RowState
from emojax_kernels.row_products import xla as products


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
    n = rows.w_enc.shape[0]
    d_pre = jnp.where(values > 0, products.gather_dot(error, indices, rows.w_dec), 0)
    g_dec = products.scatter_sum(values, indices, error, n)
    g_enc = products.scatter_sum(d_pre, indices, x, n)
    g_bias = products.latent_sums(d_pre, indices, n)
    return adam.update(rows, g_enc, g_dec, g_bias, learning_rate, settings), d_pre
