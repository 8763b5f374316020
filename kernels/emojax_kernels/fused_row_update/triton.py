"""The rows' update on an NVIDIA GPU: one program per latent, each parameter read and written once.

A program holds its decoder row, sums both gradients over the tokens that use the latent, and
applies projection, Adam and norm before it writes. No gradient `[n, d]` exists. The lists of
latents that fire on many tokens are cut into chunks, summed by programs of their own before.
"""

import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from emojax_kernels.fused_row_update import moments, rounding
from emojax_kernels.fused_row_update.moments import Blockwise, Moment
from emojax_kernels.fused_row_update.state import RowAdam, RowState
from emojax_kernels.row_products.lists import latent_lists
from emojax_kernels.row_products.triton import CHUNK, chunk_bounds
from emojax_kernels.triton_launch import launch

# A first moment has a sign, a second has none.
FIRST = tl.constexpr(True)
SECOND = tl.constexpr(False)


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
    block = max(moments.BLOCK, triton.next_power_of_2(d))
    sizes = {"K": indices.shape[1], "D": d, "CHUNK": CHUNK, "BLOCK": block}
    num_warps = min(16, max(4, block // 512))
    lists = latent_lists(indices, n, CHUNK)
    chunks = lists.chunk_latent.size
    # Each entry's place is written by the one program that meets the entry.
    d_pre = jax.ShapeDtypeStruct((max(1, indices.size),), jnp.float32)
    part_dec, part_enc, part_bias, of_chunks = launch(
        row_chunk_kernel,
        rows.w_dec,
        x,
        error,
        values,
        lists.entry,
        lists.start,
        lists.chunk_latent,
        lists.chunk_start,
        out=[
            jax.ShapeDtypeStruct((chunks, d), jnp.float32),
            jax.ShapeDtypeStruct((chunks, d), jnp.float32),
            jax.ShapeDtypeStruct((chunks,), jnp.float32),
            d_pre,
        ],
        grid=(chunks,),
        num_warps=num_warps,
        N=n,
        **sizes,
    )
    step = rows.step + 1
    time = step.astype(jnp.float32)
    scalars = jnp.stack([learning_rate, 1 - settings.b1**time, 1 - settings.b2**time])
    salts = jnp.stack([rounding.salt(settings.seed, step, array) for array in range(6)])
    state = _flat(rows)
    *new, d_pre = launch(
        row_kernel,
        *state,
        of_chunks,
        x,
        error,
        values,
        lists.entry,
        lists.start,
        lists.chunk_start,
        part_dec,
        part_enc,
        part_bias,
        scalars,
        salts,
        out=[*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in state), d_pre],
        grid=(n,),
        aliases={i: i for i in range(len(state) + 1)},
        num_warps=num_warps,
        B1=settings.b1,
        B2=settings.b2,
        EPS=settings.eps,
        UNIT=settings.unit_norm_decoder,
        EIGHT_BIT=settings.moments == "int8",
        SCALE_BLOCK=moments.BLOCK,
        SHADOW=settings.shadow is not None,
        **sizes,
    )
    return _restored(rows, new, step), d_pre[: indices.size].reshape(indices.shape)


def _flat(rows: RowState) -> list[jax.Array]:
    """The state as the kernel takes it: a placeholder where there is nothing."""
    kept = [rows.m_enc, rows.v_enc, rows.m_dec, rows.v_dec]
    shadows = [rows.shadow_enc, rows.shadow_dec]
    return [
        rows.w_enc,
        rows.w_dec,
        rows.b_enc,
        *(m.codes if isinstance(m, Blockwise) else m for m in kept),
        *(m.scales if isinstance(m, Blockwise) else jnp.zeros((1, 1), jnp.float32) for m in kept),
        rows.m_bias,
        rows.v_bias,
        *(jnp.zeros((1, 1), jnp.bfloat16) if s is None else s for s in shadows),
    ]


def _restored(rows: RowState, flat: list[jax.Array], step: jax.Array) -> RowState:
    def moment(i: int, like: Moment) -> Moment:
        return Blockwise(flat[3 + i], flat[7 + i]) if isinstance(like, Blockwise) else flat[3 + i]

    return dataclasses.replace(
        rows,
        w_enc=flat[0],
        w_dec=flat[1],
        b_enc=flat[2],
        m_enc=moment(0, rows.m_enc),
        v_enc=moment(1, rows.v_enc),
        m_dec=moment(2, rows.m_dec),
        v_dec=moment(3, rows.v_dec),
        m_bias=flat[11],
        v_bias=flat[12],
        shadow_enc=None if rows.shadow_enc is None else flat[13],
        shadow_dec=None if rows.shadow_dec is None else flat[14],
        step=step,
    )


@triton.jit
@no_type_check
def row_gradients(
    decoder,
    x,
    error,
    values,
    entry,
    first,
    last,
    column,
    d_pre,
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of a latent's decoder row, encoder row and bias from entries first..last-1.

    Writes the gradient of each entry's pre-activation on the way.
    """
    inside = column < D
    g_dec = tl.zeros([BLOCK], tl.float32)
    g_enc = tl.zeros([BLOCK], tl.float32)
    g_bias = tl.sum(g_dec)
    for place in range(first, last):
        position = tl.load(entry + place)
        token = (position // K).to(tl.int64)
        value = tl.load(values + position).to(tl.float32)
        e = tl.load(error + token * D + column, mask=inside, other=0).to(tl.float32)
        read = tl.load(x + token * D + column, mask=inside, other=0).to(tl.float32)
        dz = tl.where(value > 0, tl.sum(e * decoder), 0)
        tl.store(d_pre + position, dz)
        g_dec += value * e
        g_enc += dz * read
        g_bias += dz
    return g_dec, g_enc, g_bias


@triton.jit
@no_type_check
def row_chunk_kernel(
    w_dec,
    x,
    error,
    values,
    entry,
    start,
    chunk_latent,
    chunk_start,
    part_dec,
    part_enc,
    part_bias,
    d_pre,
    N: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the gradients that one chunk of a long list gives."""
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    latent, first, last = chunk_bounds(chunk, start, chunk_latent, chunk_start, N, CHUNK)
    decoder = tl.load(w_dec + latent.to(tl.int64) * D + column, mask=inside, other=0)
    g_dec, g_enc, g_bias = row_gradients(
        decoder.to(tl.float32), x, error, values, entry, first, last, column, d_pre, K, D, BLOCK
    )
    tl.store(part_dec + chunk * D + column, g_dec, mask=inside)
    tl.store(part_enc + chunk * D + column, g_enc, mask=inside)
    tl.store(part_bias + chunk, g_bias)


@triton.jit
@no_type_check
def mix(bits):
    """`rounding.mix`."""
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    return bits ^ (bits >> 16)


@triton.jit
@no_type_check
def draw(salts, array, latent, column, D: tl.constexpr):
    """`rounding.draw` for one row."""
    position = latent.to(tl.uint32) * D + column.to(tl.uint32)
    return mix(position ^ tl.load(salts + array))


@triton.jit
@no_type_check
def stochastic_bfloat16(total, bits):
    """`rounding.to_bfloat16`."""
    raw = total.to(tl.uint32, bitcast=True)
    rounded = ((raw + (bits & 0xFFFF)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return tl.where(tl.abs(total) < float("inf"), rounded, total.to(tl.bfloat16))


@triton.jit
@no_type_check
def first_code(code):
    """Share of the scale that a first moment's code stands for."""
    share = code / 127
    return tl.where(code < 0, -share * share, share * share)


@triton.jit
@no_type_check
def second_code(code):
    """Share of the scale that a second moment's code stands for."""
    root = (code + 1) / 256
    return (root * root) * (root * root)


@triton.jit
@no_type_check
def load_moment(
    codes,
    scales,
    latent,
    column,
    D: tl.constexpr,
    SIGNED: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
):
    """`moments.load` for one row."""
    inside = column < D
    code = tl.load(codes + latent * D + column, mask=inside, other=0).to(tl.float32)
    if EIGHT_BIT:
        blocks: tl.constexpr = (D + SCALE_BLOCK - 1) // SCALE_BLOCK
        scale = tl.load(scales + latent * blocks + column // SCALE_BLOCK, mask=inside, other=0)
        code = scale * first_code(code) if SIGNED else scale * second_code(code)
    return tl.where(inside, code, 0)


@triton.jit
@no_type_check
def store_moment(
    total,
    bits,
    codes,
    scales,
    latent,
    column,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SIGNED: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
):
    """`moments.store` for one row."""
    inside = column < D
    at = codes + latent * D + column
    if EIGHT_BIT:
        blocks: tl.constexpr = (D + SCALE_BLOCK - 1) // SCALE_BLOCK
        size = tl.where(inside, tl.abs(total), 0)
        scale = tl.max(tl.reshape(size, [BLOCK // SCALE_BLOCK, SCALE_BLOCK]), 1)
        block = tl.arange(0, BLOCK // SCALE_BLOCK)
        tl.store(scales + latent * blocks + block, scale, mask=block < blocks)
        spread = tl.broadcast_to(scale[:, None], [BLOCK // SCALE_BLOCK, SCALE_BLOCK])
        share = size / tl.maximum(tl.reshape(spread, [BLOCK]), 1.1754943508222875e-38)
        chance = (bits >> 8).to(tl.float32) * 5.960464477539063e-08
        if SIGNED:
            low = tl.minimum(tl.maximum(tl.floor(tl.sqrt(share) * 127), 0), 126)
            below, above = first_code(low), first_code(low + 1)
        else:
            low = tl.minimum(tl.maximum(tl.floor(tl.sqrt(tl.sqrt(share)) * 256 - 1), 0), 254)
            below, above = second_code(low), second_code(low + 1)
        code = low + tl.where(chance < (share - below) / (above - below), 1.0, 0.0)
        if SIGNED:
            code = tl.where(total < 0, -code, code)
        tl.store(at, code.to(codes.dtype.element_ty), mask=inside)
    else:
        if codes.dtype.element_ty == tl.bfloat16:
            tl.store(at, stochastic_bfloat16(total, bits), mask=inside)
        else:
            tl.store(at, total, mask=inside)


@triton.jit
@no_type_check
def store_weight(
    total, bits, weights, shadow, latent, column, D: tl.constexpr, SHADOW: tl.constexpr
):
    """Write a row of weights, rounded where they are bfloat16, and its copy for the products."""
    inside = column < D
    at = latent * D + column
    if weights.dtype.element_ty == tl.bfloat16:
        total = stochastic_bfloat16(total, bits)
    tl.store(weights + at, total, mask=inside)
    if SHADOW:
        tl.store(shadow + at, total.to(tl.bfloat16), mask=inside)


@triton.jit
@no_type_check
def row_kernel(
    w_enc,
    w_dec,
    b_enc,
    m_enc,
    v_enc,
    m_dec,
    v_dec,
    m_enc_scales,
    v_enc_scales,
    m_dec_scales,
    v_dec_scales,
    m_bias,
    v_bias,
    shadow_enc,
    shadow_dec,
    of_chunks,
    x,
    error,
    values,
    entry,
    start,
    chunk_start,
    part_dec,
    part_enc,
    part_bias,
    scalars,
    salts,
    new_w_enc,
    new_w_dec,
    new_b_enc,
    new_m_enc,
    new_v_enc,
    new_m_dec,
    new_v_dec,
    new_m_enc_scales,
    new_v_enc_scales,
    new_m_dec_scales,
    new_v_dec_scales,
    new_m_bias,
    new_v_bias,
    new_shadow_enc,
    new_shadow_dec,
    d_pre,
    B1: tl.constexpr,
    B2: tl.constexpr,
    EPS: tl.constexpr,
    UNIT: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    SHADOW: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: all that one latent owns."""
    latent = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    rate = tl.load(scalars)
    correct_m = tl.load(scalars + 1)
    correct_v = tl.load(scalars + 2)

    decoder = tl.load(w_dec + latent * D + column, mask=inside, other=0).to(tl.float32)
    first = tl.load(start + latent)
    last = tl.load(start + latent + 1)
    if last - first > CHUNK:
        g_dec = tl.zeros([BLOCK], tl.float32)
        g_enc = tl.zeros([BLOCK], tl.float32)
        g_bias = tl.sum(g_dec)
        for chunk in range(tl.load(chunk_start + latent), tl.load(chunk_start + latent + 1)):
            at = tl.cast(chunk, tl.int64) * D + column
            g_dec += tl.load(part_dec + at, mask=inside, other=0)
            g_enc += tl.load(part_enc + at, mask=inside, other=0)
            g_bias += tl.load(part_bias + chunk)
    else:
        g_dec, g_enc, g_bias = row_gradients(
            decoder, x, error, values, entry, first, last, column, d_pre, K, D, BLOCK
        )

    # Encoder row.
    m = load_moment(m_enc, m_enc_scales, latent, column, D, FIRST, EIGHT_BIT, SCALE_BLOCK)
    v = load_moment(v_enc, v_enc_scales, latent, column, D, SECOND, EIGHT_BIT, SCALE_BLOCK)
    m = B1 * m + (1 - B1) * g_enc
    v = B2 * v + (1 - B2) * g_enc * g_enc
    total = tl.load(w_enc + latent * D + column, mask=inside, other=0).to(tl.float32)
    total -= rate * (m / correct_m) / (tl.sqrt(v / correct_v) + EPS)
    bits = draw(salts, 0, latent, column, D)
    store_moment(
        m,
        bits,
        new_m_enc,
        new_m_enc_scales,
        latent,
        column,
        D,
        BLOCK,
        FIRST,
        EIGHT_BIT,
        SCALE_BLOCK,
    )
    bits = draw(salts, 1, latent, column, D)
    store_moment(
        v,
        bits,
        new_v_enc,
        new_v_enc_scales,
        latent,
        column,
        D,
        BLOCK,
        SECOND,
        EIGHT_BIT,
        SCALE_BLOCK,
    )
    bits = draw(salts, 2, latent, column, D)
    store_weight(total, bits, new_w_enc, new_shadow_enc, latent, column, D, SHADOW)

    # Decoder row.
    if UNIT:
        norm2 = tl.sum(decoder * decoder)
        g_dec -= decoder * (tl.sum(g_dec * decoder) / tl.where(norm2 == 0, 1, norm2))
    m = load_moment(m_dec, m_dec_scales, latent, column, D, FIRST, EIGHT_BIT, SCALE_BLOCK)
    v = load_moment(v_dec, v_dec_scales, latent, column, D, SECOND, EIGHT_BIT, SCALE_BLOCK)
    m = B1 * m + (1 - B1) * g_dec
    v = B2 * v + (1 - B2) * g_dec * g_dec
    total = decoder - rate * (m / correct_m) / (tl.sqrt(v / correct_v) + EPS)
    if UNIT:
        norm2 = tl.sum(tl.where(inside, total * total, 0))
        total = total / tl.sqrt(tl.where(norm2 == 0, 1, norm2))
    bits = draw(salts, 3, latent, column, D)
    store_moment(
        m,
        bits,
        new_m_dec,
        new_m_dec_scales,
        latent,
        column,
        D,
        BLOCK,
        FIRST,
        EIGHT_BIT,
        SCALE_BLOCK,
    )
    bits = draw(salts, 4, latent, column, D)
    store_moment(
        v,
        bits,
        new_v_dec,
        new_v_dec_scales,
        latent,
        column,
        D,
        BLOCK,
        SECOND,
        EIGHT_BIT,
        SCALE_BLOCK,
    )
    bits = draw(salts, 5, latent, column, D)
    store_weight(total, bits, new_w_dec, new_shadow_dec, latent, column, D, SHADOW)

    # Encoder bias.
    m = B1 * tl.load(m_bias + latent) + (1 - B1) * g_bias
    v = B2 * tl.load(v_bias + latent) + (1 - B2) * g_bias * g_bias
    tl.store(new_m_bias + latent, m)
    tl.store(new_v_bias + latent, v)
    change = rate * (m / correct_m) / (tl.sqrt(v / correct_v) + EPS)
    tl.store(new_b_enc + latent, tl.load(b_enc + latent) - change)
