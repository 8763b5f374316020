"""TopK encoder on an NVIDIA GPU: one GEMM whose epilogue prepares an exact selection.

1. GEMM + bias; each pre-activation is written once, in x's dtype, and the maximum of each group of
   neighbouring latents beside it.
2. The k-th largest group maximum t of a row is a lower bound of its k-th largest entry, and an
   entry >= t lies in a group whose maximum is >= t. The k best groups (ties to the lower index)
   hold the k best entries: see `xla.select_by_groups`.
3. Scan those groups, compact the entries >= t, in order of index, into a buffer of 2k.
4. Top-k of the buffer. Rows with more survivors are counted, and selected from all of their
   candidates instead: exact either way.

In float32 a block of tokens is encoded at a time, so that no array is as large as `[tokens, n]`.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jax import lax

from emojax_kernels.blocks import map_blocks
from emojax_kernels.repair import repaired
from emojax_kernels.topk_encode.tiles import TILES, Tile
from emojax_kernels.topk_encode.xla import ELEMENTS
from emojax_kernels.triton_launch import INTERPRET, launch

# Latents per group.
GROUP = 64
# Survivors kept, as a multiple of k.
_SPARE = 2


def topk_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """See `emojax_kernels.topk_encode`."""
    no_threshold = jnp.full(w_enc.shape[0], -jnp.inf, jnp.float32)

    def encode(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, indices = select(*preactivations(rows, w_enc, b_enc, no_threshold), k)
        return jax.nn.relu(values), indices

    return by_tokens(encode, x, w_enc.shape[0])


def by_tokens(encode: Callable[[jax.Array], Any], x: jax.Array, n: int) -> Any:
    """`encode` of x `[tokens, d]` for n latents: in float32, of so many tokens at once as fit."""
    return map_blocks(encode, x.shape[0] if x.dtype == jnp.bfloat16 else max(1, ELEMENTS // n), x)


def preactivations(
    x: jax.Array,
    w_enc: jax.Array,
    b_enc: jax.Array,
    threshold: jax.Array,
    tile: Tile | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Pre-activations and the maxima of their groups.

    Args:
        x: `[tokens, d]`.
        w_enc: `[n, d]`.
        b_enc: `[n]`.
        threshold: `[n]`, float32; an entry that does not exceed it becomes -inf.
        tile: of the GEMM; None: the tuned one.

    Returns:
        pre: `[tokens, n]`, of x's dtype.
        best: `[tokens, ceil(n / GROUP)]`, of x's dtype, NaN where the group holds one.
    """
    tokens, d = x.shape
    n = w_enc.shape[0]
    tile = tile or TILES["bfloat16" if x.dtype == jnp.bfloat16 else "float32"]
    pre, best = launch(
        preactivation_kernel,
        x,
        w_enc,
        b_enc,
        threshold,
        out=[
            jax.ShapeDtypeStruct((tokens, n), x.dtype),
            jax.ShapeDtypeStruct((tokens, triton.cdiv(n, GROUP)), x.dtype),
        ],
        grid=(triton.cdiv(tokens, tile.rows) * triton.cdiv(n, tile.latents),),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        TOKENS=tokens,
        N=n,
        D=d,
        GROUPS=GROUP,
        ROWS=tile.rows,
        LATENTS=tile.latents,
        COLUMNS=tile.columns,
        # The interpreter cannot multiply bfloat16; in float32 the products are the same.
        WIDEN=INTERPRET,
    )
    return pre, best


def select(pre: jax.Array, best: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Exactly `lax.top_k(pre, k)`, from the groups' maxima."""
    tokens, n = pre.shape
    groups = best.shape[1]
    if groups < k:
        values, indices = lax.top_k(pre, k)
        return values, indices
    maxima, chosen = lax.top_k(best, k)
    chosen = jnp.sort(chosen, axis=1)
    room = triton.next_power_of_2(_SPARE * k)
    kept, where, count = launch(
        compact_kernel,
        pre,
        chosen,
        maxima[:, -1],
        out=[
            jax.ShapeDtypeStruct((tokens, room), pre.dtype),
            jax.ShapeDtypeStruct((tokens, room), jnp.int32),
            jax.ShapeDtypeStruct((tokens,), jnp.int32),
        ],
        grid=(tokens,),
        N=n,
        K=k,
        GROUPS=GROUP,
        SCANNED=max(1, 512 // GROUP),
        ROOM=room,
    )

    values, place = lax.top_k(kept, k)

    def of_candidates(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        latent = (chosen[rows][:, :, None] * GROUP + jnp.arange(GROUP)).reshape(-1, k * GROUP)
        entries = pre.at[rows[:, None], latent].get(mode="fill", fill_value=-jnp.inf)
        values, place = lax.top_k(entries, k)
        return values, jnp.take_along_axis(latent, place, axis=1)

    survivors = values, jnp.take_along_axis(where, place, axis=1)
    return repaired(count > room, survivors, of_candidates)


@triton.jit
@no_type_check
def larger(a, b):
    """Maximum in which a NaN wins."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
@no_type_check
def preactivation_kernel(
    x,
    w_enc,
    b_enc,
    threshold,
    pre,
    best,
    TOKENS: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    LATENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One program: ROWS tokens by LATENTS latents.

    Programs run down the tokens first, so that those at work share a few tiles of the dictionary,
    the larger operand.
    """
    blocks: tl.constexpr = (TOKENS + ROWS - 1) // ROWS
    token = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    first = (tl.program_id(0) // blocks) * LATENTS
    latent = first + tl.arange(0, LATENTS)
    column = tl.arange(0, COLUMNS)
    # Rows past the end repeat the last one and are not stored.
    x_row = x + tl.minimum(token, TOKENS - 1).to(tl.int64)[:, None] * D
    w_row = w_enc + tl.minimum(latent, N - 1).to(tl.int64)[None, :] * D
    total = tl.zeros([ROWS, LATENTS], tl.float32)
    for start in range(0, D, COLUMNS):
        inside = start + column < D
        a = tl.load(x_row + (start + column)[None, :], mask=inside[None, :], other=0)
        b = tl.load(w_row + (start + column)[:, None], mask=inside[:, None], other=0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        # Float32 stays float32 (no TF32): the selection must be that of the reference.
        total = tl.dot(a, b, total, input_precision="ieee")
    bias = tl.load(b_enc + latent, mask=latent < N, other=0).to(tl.float32)
    # Rounded as it will be stored, so that maxima and entries compare equal.
    total = (total + bias[None, :]).to(pre.dtype.element_ty).to(tl.float32)
    least = tl.load(threshold + latent, mask=latent < N, other=float("inf"))
    below = total <= least[None, :]
    total = tl.where(below | (latent >= N)[None, :], float("-inf"), total)
    stored = (token < TOKENS)[:, None] & (latent < N)[None, :]
    tl.store(pre + token.to(tl.int64)[:, None] * N + latent[None, :], total, mask=stored)
    grouped = tl.reshape(total, [ROWS, LATENTS // GROUPS, GROUPS])
    highest = tl.reduce(grouped, 2, larger)
    count: tl.constexpr = (N + GROUPS - 1) // GROUPS
    group = first // GROUPS + tl.arange(0, LATENTS // GROUPS)
    stored = (token < TOKENS)[:, None] & (group < count)[None, :]
    tl.store(best + token.to(tl.int64)[:, None] * count + group[None, :], highest, mask=stored)


@triton.jit
@no_type_check
def compact_kernel(
    pre,
    chosen,
    bound,
    kept,
    where,
    count,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    SCANNED: tl.constexpr,
    ROOM: tl.constexpr,
):
    """One program: one token; SCANNED groups at a time."""
    token = tl.program_id(0).to(tl.int64)
    least = tl.load(bound + token).to(tl.float32)
    slot = tl.arange(0, SCANNED * GROUPS)
    found = 0
    for start in range(0, K, SCANNED):
        member = start + slot // GROUPS
        group = tl.load(chosen + token * K + member, mask=member < K, other=0)
        latent = group * GROUPS + slot % GROUPS
        real = (member < K) & (latent < N)
        entry = tl.load(pre + token * N + latent, mask=real, other=0).to(tl.float32)
        # "Not below" rather than "at least": a NaN survives. What is -inf was ruled out.
        survives = real & ((entry < least) == 0) & (entry != float("-inf"))
        place = found + tl.cumsum(survives.to(tl.int32), 0) - 1
        room = survives & (place < ROOM)
        tl.store(kept + token * ROOM + place, entry, mask=room)
        tl.store(where + token * ROOM + place, latent, mask=room)
        found += tl.sum(survives.to(tl.int32))
    spare = tl.arange(0, ROOM)
    tl.store(kept + token * ROOM + spare, float("-inf"), mask=spare >= found)
    tl.store(where + token * ROOM + spare, 0, mask=spare >= found)
    tl.store(count + token, found)
