"""The products on an NVIDIA GPU: rows are gathered as they are used, sums stay in registers."""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from emojax_kernels.row_products.lists import latent_lists
from emojax_kernels.triton_launch import launch

# Columns that one program holds.
_COLUMNS = 1024
# Entries that one program sums.
CHUNK = 256


def gather_sum(values: jax.Array, indices: jax.Array, rows: jax.Array) -> jax.Array:
    """`out[t] = sum_s values[t, s] * rows[indices[t, s]]`: float32 `[tokens, d]`."""
    tokens, k = indices.shape
    d = rows.shape[1]
    block = min(_COLUMNS, triton.next_power_of_2(d))
    (out,) = launch(
        gather_sum_kernel,
        values,
        indices,
        rows,
        out=[jax.ShapeDtypeStruct((tokens, d), jnp.float32)],
        grid=(tokens, triton.cdiv(d, block)),
        K=k,
        D=d,
        BLOCK=block,
    )
    return out


def gather_dot(e: jax.Array, indices: jax.Array, rows: jax.Array) -> jax.Array:
    """`out[t, s] = <e[t], rows[indices[t, s]]>`: float32 `[tokens, k]`."""
    tokens, k = indices.shape
    d = rows.shape[1]
    (out,) = launch(
        gather_dot_kernel,
        e,
        indices,
        rows,
        out=[jax.ShapeDtypeStruct((tokens, k), jnp.float32)],
        grid=(tokens,),
        K=k,
        D=d,
        BLOCK=triton.next_power_of_2(d),
    )
    return out


def scatter_sum(values: jax.Array, indices: jax.Array, e: jax.Array, n: int) -> jax.Array:
    """`out[j] = sum of values[t, s] * e[t] over indices[t, s] == j`: float32 `[n, d]`.

    The entries of a latent are summed in the order of their tokens, so two runs are bitwise equal.
    """
    d, k = e.shape[1], indices.shape[1]
    block = min(_COLUMNS, triton.next_power_of_2(d))
    columns = triton.cdiv(d, block)
    sizes = {"K": k, "D": d, "CHUNK": CHUNK, "BLOCK": block}
    lists = latent_lists(indices, n, CHUNK)
    chunks = lists.chunk_latent.size
    (parts,) = launch(
        scatter_chunk_kernel,
        values,
        lists.entry,
        lists.start,
        lists.chunk_latent,
        lists.chunk_start,
        e,
        out=[jax.ShapeDtypeStruct((chunks, d), jnp.float32)],
        grid=(chunks, columns),
        N=n,
        **sizes,
    )
    (out,) = launch(
        scatter_kernel,
        values,
        lists.entry,
        lists.start,
        lists.chunk_start,
        e,
        parts,
        out=[jax.ShapeDtypeStruct((n, d), jnp.float32)],
        grid=(n, columns),
        **sizes,
    )
    return out


@triton.jit
@no_type_check
def gather_sum_kernel(
    values, indices, rows, out, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: one token, BLOCK columns."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < D
    total = tl.zeros([BLOCK], tl.float32)
    for slot in range(K):
        value = tl.load(values + token * K + slot).to(tl.float32)
        row = tl.load(indices + token * K + slot).to(tl.int64)
        total += value * tl.load(rows + row * D + column, mask=inside, other=0).to(tl.float32)
    tl.store(out + token * D + column, total, mask=inside)


@triton.jit
@no_type_check
def gather_dot_kernel(e, indices, rows, out, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """One program: one token, all columns."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    error = tl.load(e + token * D + column, mask=inside, other=0).to(tl.float32)
    for slot in range(K):
        row = tl.load(indices + token * K + slot).to(tl.int64)
        found = tl.load(rows + row * D + column, mask=inside, other=0).to(tl.float32)
        tl.store(out + token * K + slot, tl.sum(error * found))


@triton.jit
@no_type_check
def sum_entries(
    values, entry, e, first, last, column, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum of value times row of e over the entries first..last-1 of the sorted lists."""
    total = tl.zeros([BLOCK], tl.float32)
    for place in range(first, last):
        position = tl.load(entry + place)
        value = tl.load(values + position).to(tl.float32)
        row = e + (position // K).to(tl.int64) * D
        total += value * tl.load(row + column, mask=column < D, other=0).to(tl.float32)
    return total


@triton.jit
@no_type_check
def chunk_bounds(chunk, start, chunk_latent, chunk_start, N: tl.constexpr, CHUNK: tl.constexpr):
    """First and last entry of a chunk; none for a chunk that is not used."""
    latent = tl.load(chunk_latent + chunk)
    used = latent < N
    latent = tl.where(used, latent, 0)
    within = chunk - tl.load(chunk_start + latent)
    first = tl.load(start + latent) + within * CHUNK
    last = tl.minimum(first + CHUNK, tl.load(start + latent + 1))
    return latent, first, tl.where(used, last, first)


@triton.jit
@no_type_check
def scatter_chunk_kernel(
    values,
    entry,
    start,
    chunk_latent,
    chunk_start,
    e,
    parts,
    N: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: one chunk of a long list, BLOCK columns."""
    chunk = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    _latent, first, last = chunk_bounds(chunk, start, chunk_latent, chunk_start, N, CHUNK)
    total = sum_entries(values, entry, e, first, last, column, K, D, BLOCK)
    tl.store(parts + chunk.to(tl.int64) * D + column, total, mask=column < D)


@triton.jit
@no_type_check
def scatter_kernel(
    values,
    entry,
    start,
    chunk_start,
    e,
    parts,
    out,
    K: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: one latent, BLOCK columns."""
    latent = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first, last = tl.load(start + latent), tl.load(start + latent + 1)
    if last - first > CHUNK:
        total = tl.zeros([BLOCK], tl.float32)
        for chunk in range(tl.load(chunk_start + latent), tl.load(chunk_start + latent + 1)):
            part = parts + tl.cast(chunk, tl.int64) * D
            total += tl.load(part + column, mask=column < D, other=0)
    else:
        total = sum_entries(values, entry, e, first, last, column, K, D, BLOCK)
    tl.store(out + latent.to(tl.int64) * D + column, total, mask=column < D)
