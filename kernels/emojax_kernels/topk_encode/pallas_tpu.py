"""TopK encoder on a TPU: tiles of pre-activations are selected from as they are made.

Pre-activations never leave vector memory. A tile holds latents along sublanes and tokens along
lanes, so that a token's best latent is an element-wise maximum over registers. Each token keeps a
sorted list of its best latents so far. While a tile has, for any token, an entry above the last of
its list, every token's highest entry is moved from the tile to its place in the list. Latents come
in ascending order and enter behind their equals, so ties go to the lower index.

Entries are compared as integers in float32's order, where a NaN is above all else.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emojax_kernels import varying
from emojax_kernels.pallas_launch import launch

# Tokens and latents of a tile, by bytes per element.
_TILE = {2: 512, 4: 256}
# Bytes of x, and of w_enc, that a step reads.
_READ = 4 << 20
# Below every number, -inf included.
EMPTY = jnp.iinfo(jnp.int32).min
_NAN = 0x7FC00000


def topk_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """See `emojax_kernels.topk_encode`."""
    values, indices, _ = stream(merge_best, x, w_enc, b_enc, None, k)
    return values, indices


def stream(
    merge: Callable[..., None],
    x: jax.Array,
    w_enc: jax.Array,
    b_enc: jax.Array,
    threshold: jax.Array | None,
    k: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Encode tile by tile.

    Args:
        merge: `merge(keys, latent, best, where, k)` takes the tile `keys [latents, tokens]`
            (references), whose first latent is `latent`, into the `k` first rows of `best` and
            `where` `[at least k, tokens]`: keys and indices.
        x: `[tokens, d]`.
        w_enc: `[n, d]`.
        b_enc: `[n]`.
        threshold: `[n]`, or None; an entry that does not exceed its latent's is EMPTY.
        k: latents kept per token.

    Returns:
        values: `[tokens, k]`, of x's dtype, non-negative; 0 for EMPTY.
        indices: `[tokens, k]`, int32.
        count: `[tokens]`, int32, the entries that are not EMPTY.
    """
    (tokens, d), n = x.shape, w_enc.shape[0]
    if not tokens:
        nothing = jnp.zeros((0, k), x.dtype), jnp.zeros((0, k), jnp.int32)
        return *nothing, jnp.zeros(0, jnp.int32)
    size = x.dtype.itemsize
    tile = _TILE[size]
    latents, rows = min(tile, n), min(tile, tokens)
    columns = d if d * tile * size <= _READ else _READ // (tile * size)
    room = -(-k // 8) * 8
    per_latent = [a.astype(jnp.float32)[None] for a in (b_enc, threshold) if a is not None]

    def kernel(x, w_enc, *refs: Any) -> None:
        *per_latent, values, indices, count, total, keys, best, where = refs
        first, column = pl.program_id(1) * latents, pl.program_id(2)

        @pl.when((pl.program_id(1) == 0) & (column == 0))
        def _() -> None:
            best[...] = jnp.full_like(best, EMPTY)
            where[...] = jnp.zeros_like(where)
            count[...] = jnp.zeros_like(count)

        part = _product(w_enc, x, d, columns, column)
        total[...] = jnp.where(column == 0, part, total[...] + part)

        @pl.when(column == pl.num_programs(2) - 1)
        def _() -> None:
            pre = total[...] + _column(per_latent[0])
            pre = pre.astype(x.dtype).astype(jnp.float32)
            latent = first + lax.broadcasted_iota(jnp.int32, pre.shape, 0)
            token = pl.program_id(0) * rows + lax.broadcasted_iota(jnp.int32, pre.shape, 1)
            used = (latent < n) & (token < tokens)
            if threshold is not None:
                used &= ~(pre <= _column(per_latent[1]))  # a NaN stays visible
            keys[...] = jnp.where(used, _key(pre), EMPTY)
            count[...] += used.astype(jnp.int32).sum(0, keepdims=True)
            merge(keys, first, best, where, k)

        @pl.when((pl.program_id(1) == pl.num_programs(1) - 1) & (column == pl.num_programs(2) - 1))
        def _() -> None:
            key = best[:k]
            value = lax.bitcast_convert_type(jnp.maximum(key, 0), jnp.float32)
            values[...] = value.astype(values.dtype)
            indices[...] = where[:k]

    values, indices, count = launch(
        kernel,
        *varying.alike(x, w_enc, *per_latent),
        out=[
            jax.ShapeDtypeStruct((k, tokens), x.dtype),
            jax.ShapeDtypeStruct((k, tokens), jnp.int32),
            jax.ShapeDtypeStruct((1, tokens), jnp.int32),
        ],
        semantics=("parallel", "arbitrary", "arbitrary"),
        num_scalar_prefetch=0,
        grid=(pl.cdiv(tokens, rows), pl.cdiv(n, latents), pl.cdiv(d, columns)),
        in_specs=[
            pl.BlockSpec((rows, columns), lambda t, j, c: (t, c)),
            pl.BlockSpec((latents, columns), lambda t, j, c: (j, c)),
            *(pl.BlockSpec((1, latents), lambda t, j, c: (0, j)) for _ in per_latent),
        ],
        out_specs=[
            pl.BlockSpec((k, rows), lambda t, j, c: (0, t)),
            pl.BlockSpec((k, rows), lambda t, j, c: (0, t)),
            pl.BlockSpec((1, rows), lambda t, j, c: (0, t)),
        ],
        scratch_shapes=[
            pltpu.VMEM((latents, rows), jnp.float32),
            pltpu.VMEM((latents, rows), jnp.int32),
            pltpu.VMEM((room, rows), jnp.int32),
            pltpu.VMEM((room, rows), jnp.int32),
        ],
    )
    return values.T, indices.T, count[0]


def merge_best(keys: Any, first: Any, best: Any, where: Any, k: int) -> None:
    """Keep the lists `best [room, tokens]` sorted; rows from k on are spare, and mean nothing."""
    latent = lax.broadcasted_iota(jnp.int32, keys.shape, 0)
    top = lax.broadcasted_iota(jnp.int32, best.shape, 0) == 0

    def promising(highest: jax.Array) -> jax.Array:
        return jnp.max((highest > best[k - 1 : k]).astype(jnp.int32)) > 0

    def move(highest: jax.Array) -> jax.Array:
        tile = keys[...]
        at = jnp.min(jnp.where(tile == highest, latent, keys.shape[0]), 0, keepdims=True)
        tile = jnp.where(latent == at, EMPTY, tile)
        keys[...] = tile
        above = jnp.where(top, jnp.iinfo(jnp.int32).max, pltpu.roll(best[...], 1, 0))
        above_where = pltpu.roll(where[...], 1, 0)
        stays, enters = best[...] >= highest, above >= highest
        where[...] = jnp.where(stays, where[...], jnp.where(enters, first + at, above_where))
        best[...] = jnp.where(stays, best[...], jnp.where(enters, highest, above))
        return tile.max(0, keepdims=True)

    lax.while_loop(promising, move, keys[...].max(0, keepdims=True))


def _product(w_enc, x, d, columns, column):
    """`w_enc @ x.T` of two blocks: float32, and float32 throughout where they are."""
    a, b = w_enc[...], x[...]
    if d % columns:  # what lies past the last column is not zero
        inside = lax.broadcasted_iota(jnp.int32, (1, columns), 1) < d - column * columns
        a, b = jnp.where(inside, a, 0), jnp.where(inside, b, 0)
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _column(row):
    """A row of numbers `[1, latents]`, one per sublane: `[latents, 1]`."""
    return jnp.broadcast_to(row[...], (8, row.shape[1])).T[:, :1]


def _key(pre):
    """Integers in the order of float32, every NaN above all else."""
    bits = lax.bitcast_convert_type(pre, jnp.int32)
    ordered = bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))
    return jnp.where(pre != pre, _NAN, ordered)
