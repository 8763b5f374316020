"""The rows' update on a TPU: a block of latents at a time, each parameter read and written once.

The entries of a block, chunk by chunk, bring the rows of the error and of x that they use (see
`row_products.pallas_tpu`); three small products make both gradients of the block, which stay in
vector memory. After its last chunk come projection, Adam and norm, and the state is written in
place. No gradient `[n, d]` exists. Only b_enc's, `[n]`, and the code's leave the kernel.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emojax_kernels.fused_row_update import adam, moments, rounding
from emojax_kernels.fused_row_update.moments import Blockwise, Moment
from emojax_kernels.fused_row_update.state import RowAdam, RowState
from emojax_kernels.row_products import pallas_tpu as products
from emojax_kernels.row_products import visits as work
from emojax_kernels.row_products.visits import BLOCK

# Columns at which a block of float32 state and its successor still fit in vector memory.
_MOST_COLUMNS = 4096


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
    n, d = rows.w_enc.shape
    if d > _MOST_COLUMNS:
        raise ValueError(
            f"fused_row_update: implementation='pallas_tpu' with d={d}; supported: d up to "
            f"{_MOST_COLUMNS}, or implementation='xla'."
        )
    if not x.shape[0]:  # no work, but moments decay: one token that adds nothing
        x, error, values, indices = (
            jnp.zeros((1, a.shape[1]), a.dtype) for a in (x, error, values, indices)
        )
        rows, d_pre = fused_row_update(rows, x, error, values, indices, learning_rate, settings)
        return rows, d_pre[:0]
    chunk = work.chunk_size(d, 2)
    products.check_entries(indices, n, chunk)
    visits = work.by_latent(indices, n, chunk)
    pack, blocks = products.pack_of(x), visits.start.size - 1
    chunks, lanes = visits.source.shape[0], chunk * products.pack_of(x)
    weight = values.reshape(-1).astype(jnp.float32)[visits.position]

    step = rows.step + 1
    pace = adam.Pace(learning_rate, *adam.corrections(step, settings))
    salts = jnp.stack([rounding.salt(settings.seed, step, array) for array in range(6)])
    matrices = (
        (rows.w_enc, _parts(rows.m_enc), _parts(rows.v_enc)),
        (rows.w_dec, _parts(rows.m_dec), _parts(rows.v_dec)),
    )
    state, layout = jax.tree.flatten(matrices)
    shadows = [s for s in (rows.shadow_enc, rows.shadow_dec) if s is not None]
    kept = len(state) + len(shadows)

    def kernel(*refs: Any) -> None:
        prefetched, (target, value, shared, salt), refs = refs[:5], refs[5:9], refs[9:]
        before, (error, x), refs = refs[: len(state)], refs[kept : kept + 2], refs[kept + 2 :]
        after, new_shadows, refs = refs[: len(state)], refs[len(state) : kept], refs[kept:]
        g_bias, d_pre, error_rows, x_rows, arrived, g_enc, g_dec = refs
        before, after = jax.tree.unflatten(layout, before), jax.tree.unflatten(layout, after)
        tables = [(error, error_rows), (x, x_rows)]
        at, begin, end = products.fetch(prefetched, tables, arrived, pack)

        @pl.when(products.starts(prefetched))
        def _() -> None:
            for gradient in (g_enc, g_dec, g_bias):
                gradient[...] = jnp.zeros_like(gradient)

        @pl.when(products.opens(prefetched, chunks))
        def _() -> None:
            d_pre[...] = jnp.zeros_like(d_pre)

        @pl.when(end > begin)
        def _() -> None:
            mine = products.owned(prefetched, target)
            e = products.unpacked(error_rows, at, pack)
            weights = jnp.where(mine, value[0], 0)
            dz = products.multiply(before[1][0][...], e, 1)
            dz = jnp.where(weights > 0, dz, 0)
            d_pre[...] += dz.sum(0, keepdims=True)[None]
            g_dec[...] += products.multiply(weights.astype(e.dtype), e, 0)
            g_enc[...] += products.multiply(dz, products.unpacked(x_rows, at, pack), 0)
            ones = jnp.ones((8, lanes), jnp.float32)
            g_bias[...] += products.multiply(ones, dz, 1)[:1][None]

        @pl.when(products.ends(prefetched))
        def _() -> None:
            pace = adam.Pace(shared[0], shared[1], shared[2])
            first = prefetched[0][pl.program_id(0)] * BLOCK
            for array, gradient in enumerate((g_enc, g_dec)):
                w, m, v = before[array]
                wide, m, v = adam.moved_rows(
                    w[...].astype(jnp.float32),
                    _load(m),
                    _load(v),
                    gradient[...],
                    pace,
                    settings,
                    settings.unit_norm_decoder and array == 1,
                )
                bits = [rounding.draw(salt[3 * array + i], wide.shape, first) for i in (0, 1, 2)]
                new_w, new_m, new_v = after[array]
                _store(new_m, m, bits[0])
                _store(new_v, v, bits[1])
                _store((new_w,), wide, bits[2])
                for shadow in new_shadows[array : array + 1]:
                    shadow[...] = new_w[...].astype(shadow.dtype)

    out = products.visit_all(
        kernel,
        visits,
        [
            products.spread(visits.target, visits.source, pack, -1),
            products.spread(weight, visits.source, pack, 0),
        ],
        scalars=(jnp.stack(pace), salts),
        blocks=tuple(state),
        unread=tuple(shadows),
        tables=[error, x],
        out=[
            *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (*state, *shadows)),
            jax.ShapeDtypeStruct((blocks, 1, BLOCK), jnp.float32),
            jax.ShapeDtypeStruct((chunks, 1, lanes), jnp.float32),
        ],
        out_specs=[
            *(products.rows_spec(a.shape[1]) for a in (*state, *shadows)),
            pl.BlockSpec((1, 1, BLOCK), lambda v, block, chunk, start: (block[v], 0, 0)),
            products.lanes_spec(chunks, lanes),
        ],
        aliases={i: i for i in range(kept)},
        scratch_shapes=(pltpu.VMEM((BLOCK, d), jnp.float32), pltpu.VMEM((BLOCK, d), jnp.float32)),
    )
    (w_enc, m_enc, v_enc), (w_dec, m_dec, v_dec) = jax.tree.unflatten(layout, out[: len(state)])
    shadow_enc, shadow_dec = out[len(state) : kept] or (None, None)
    g_bias = out[kept].reshape(-1)[:n]
    b_enc, m_bias, v_bias = adam.moved(rows.b_enc, rows.m_bias, rows.v_bias, g_bias, pace, settings)
    # Back from the order of latents to that of the code.
    entries = (visits.position, products.of_lanes(out[kept + 1], pack))
    _, d_pre = lax.sort([a.reshape(-1)[: indices.size] for a in entries], num_keys=1)
    new = dataclasses.replace(
        rows,
        w_enc=w_enc,
        w_dec=w_dec,
        b_enc=b_enc,
        m_enc=_whole(m_enc),
        v_enc=_whole(v_enc),
        m_dec=_whole(m_dec),
        v_dec=_whole(v_dec),
        m_bias=m_bias,
        v_bias=v_bias,
        shadow_enc=shadow_enc,
        shadow_dec=shadow_dec,
        step=step,
    )
    return new, d_pre.reshape(indices.shape)


def _parts(moment: Moment) -> tuple[jax.Array, ...]:
    """A moment's arrays."""
    return (moment.codes, moment.scales) if isinstance(moment, Blockwise) else (moment,)


def _whole(parts: tuple[jax.Array, ...]) -> Moment:
    """The moment of which these are the arrays."""
    return Blockwise(*parts) if len(parts) == 2 else parts[0]


def _load(parts: tuple[Any, ...]) -> jax.Array:
    """`moments.load`, from references."""
    codes = parts[0][...]
    if len(parts) == 1:
        return codes.astype(jnp.float32)
    return moments.from_codes(codes, _spread(parts[1][...], codes.shape[1]))


def _store(parts: tuple[Any, ...], array: jax.Array, bits: jax.Array) -> None:
    """`moments.store`, into references; and weights, which are never of 8 bits."""
    into = parts[0]
    if len(parts) == 2:
        d = array.shape[1]
        scales = [
            jnp.abs(array[:, c : min(c + moments.BLOCK, d)]).max(1, keepdims=True)
            for c in range(0, d, moments.BLOCK)
        ]
        scales = jnp.concatenate(scales, 1)
        parts[1][...] = scales
        into[...] = moments.to_codes(array, _spread(scales, d), into.dtype, bits)
    elif into.dtype == jnp.bfloat16:
        into[...] = rounding.to_bfloat16(array, bits)
    else:
        into[...] = array


def _spread(scales, d):
    return jnp.concatenate(
        [
            jnp.broadcast_to(scales[:, i : i + 1], (BLOCK, min(moments.BLOCK, d - c)))
            for i, c in enumerate(range(0, d, moments.BLOCK))
        ],
        1,
    )
