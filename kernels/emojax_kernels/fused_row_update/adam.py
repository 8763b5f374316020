"""One update of every row, given its gradients: Adam (Kingma & Ba 2015, algorithm 1) and norms."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emojax_kernels.fused_row_update import moments, rounding
from emojax_kernels.fused_row_update.moments import Moment
from emojax_kernels.fused_row_update.state import RowAdam, RowState


class Pace(NamedTuple):
    """What all rows of a step share: float32 scalars.

    Attributes:
        learning_rate: of the step.
        correct_m: of the first moment's bias.
        correct_v: of the second moment's bias.
    """

    learning_rate: jax.Array
    correct_m: jax.Array
    correct_v: jax.Array


def corrections(step: jax.Array, settings: RowAdam) -> tuple[jax.Array, jax.Array]:
    """What Adam divides its moments by at the given step, the first being 1."""
    time = step.astype(jnp.float32)
    return 1 - settings.b1**time, 1 - settings.b2**time


def moved(
    w: jax.Array, m: jax.Array, v: jax.Array, g: jax.Array, pace: Pace, settings: RowAdam
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights and moments after a step along gradient `g`, all float32 of one shape."""
    m = settings.b1 * m + (1 - settings.b1) * g
    v = settings.b2 * v + (1 - settings.b2) * g**2
    change = (m / pace.correct_m) / (jnp.sqrt(v / pace.correct_v) + settings.eps)
    return w - pace.learning_rate * change, m, v


def moved_rows(
    w: jax.Array,
    m: jax.Array,
    v: jax.Array,
    g: jax.Array,
    pace: Pace,
    settings: RowAdam,
    unit: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`moved`, for rows that keep to unit norm if `unit`."""
    if unit:
        g = g - (g * w).sum(-1, keepdims=True) / _norm2(w) * w
    w, m, v = moved(w, m, v, g, pace, settings)
    if unit:
        w = w / jnp.sqrt(_norm2(w))
    return w, m, v


def update(
    rows: RowState,
    g_enc: jax.Array,
    g_dec: jax.Array,
    g_bias: jax.Array,
    learning_rate: jax.Array,
    settings: RowAdam,
) -> RowState:
    """The next state.

    Args:
        rows: the state before.
        g_enc: `[n, d]`, float32, gradient of w_enc.
        g_dec: `[n, d]`, float32, gradient of w_dec.
        g_bias: `[n]`, float32, gradient of b_enc.
        learning_rate: float32 scalar.
        settings: of Adam.
    """
    step = rows.step + 1
    pace = Pace(learning_rate, *corrections(step, settings))

    def matrix(
        w: jax.Array, m: Moment, v: Moment, g: jax.Array, array: int, unit: bool
    ) -> tuple[jax.Array, Moment, Moment]:
        wide, new_m, new_v = moved_rows(
            w.astype(jnp.float32), moments.load(m), moments.load(v), g, pace, settings, unit
        )
        bits = [
            rounding.draw(rounding.salt(settings.seed, step, array + i), w.shape) for i in (0, 1, 2)
        ]
        if w.dtype == jnp.bfloat16:
            wide = rounding.to_bfloat16(wide, bits[2])
        return wide, moments.store(new_m, m, bits[0]), moments.store(new_v, v, bits[1])

    w_enc, m_enc, v_enc = matrix(rows.w_enc, rows.m_enc, rows.v_enc, g_enc, 0, False)
    w_dec, m_dec, v_dec = matrix(
        rows.w_dec, rows.m_dec, rows.v_dec, g_dec, 3, settings.unit_norm_decoder
    )
    b_enc, m_bias, v_bias = moved(rows.b_enc, rows.m_bias, rows.v_bias, g_bias, pace, settings)
    shadow = settings.shadow
    return dataclasses.replace(
        rows,
        w_enc=w_enc,
        w_dec=w_dec,
        b_enc=b_enc,
        m_enc=m_enc,
        v_enc=v_enc,
        m_dec=m_dec,
        v_dec=v_dec,
        m_bias=m_bias,
        v_bias=v_bias,
        shadow_enc=None if shadow is None else w_enc.astype(shadow),
        shadow_dec=None if shadow is None else w_dec.astype(shadow),
        step=step,
    )


def _norm2(rows):
    # A row of zeros has no direction: leave it.
    squared = (rows**2).sum(-1, keepdims=True)
    return jnp.where(squared == 0, 1, squared)
