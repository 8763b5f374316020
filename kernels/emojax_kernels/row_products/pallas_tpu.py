"""The products on a TPU: rows travel from main memory one by one, as they are used.

While a chunk's rows are summed by the matrix unit, those of the next are on their way. Which entry
adds to which row of the output block is a matrix of zeros and weights, made in registers.

A row of bfloat16 shares its 32-bit words with its neighbour, so pairs of rows travel, and a chunk
of entries has two lanes per entry, of which one is used.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emojax_kernels import pallas_launch, varying
from emojax_kernels.blocks import map_blocks
from emojax_kernels.row_products import visits as work
from emojax_kernels.row_products.visits import BLOCK, Visits


def gather_sum(values: jax.Array, indices: jax.Array, rows: jax.Array) -> jax.Array:
    """`out[t] = sum_s values[t, s] * rows[indices[t, s]]`: float32 `[tokens, d]`."""
    (tokens, k), d = indices.shape, rows.shape[1]
    if not tokens:
        return jnp.zeros((0, d), jnp.float32)
    chunk = work.chunk_size(d, 1)

    def of(values: jax.Array, indices: jax.Array) -> jax.Array:
        return _sum(values, work.by_token(indices, chunk), rows, values.shape[0])

    return map_blocks(of, work.most_tokens(k, chunk), values, indices)


def scatter_sum(values: jax.Array, indices: jax.Array, e: jax.Array, n: int) -> jax.Array:
    """`out[j] = sum of values[t, s] * e[t] over indices[t, s] == j`: float32 `[n, d]`.

    The entries of a latent are summed in the order of their tokens, so two runs are bitwise equal.
    """
    if not e.shape[0]:
        return jnp.zeros((n, e.shape[1]), jnp.float32)
    chunk = work.chunk_size(e.shape[1], 1)
    check_entries(indices, n, chunk)
    return _sum(values, work.by_latent(indices, n, chunk), e, n)


def gather_dot(e: jax.Array, indices: jax.Array, rows: jax.Array) -> jax.Array:
    """`out[t, s] = <e[t], rows[indices[t, s]]>`: float32 `[tokens, k]`."""
    tokens, k = indices.shape
    if not tokens:
        return jnp.zeros((0, k), jnp.float32)
    chunk = work.chunk_size(rows.shape[1], 1)

    def of(e: jax.Array, indices: jax.Array) -> jax.Array:
        return _dot(e, indices, rows, chunk)

    return map_blocks(of, work.most_tokens(k, chunk), e, indices)


def check_entries(indices: jax.Array, n: int, chunk: int) -> None:
    """Raise ValueError if a code has more entries than the scalar memory can keep account of."""
    most = work.most_entries(n, chunk)
    if indices.size > most:
        raise ValueError(
            f"implementation='pallas_tpu': tokens * k is {indices.size} with n={n}; supported: at "
            f"most {max(most, 0)}."
        )


def _sum(values, visits, rows, out_rows):
    d, pack = rows.shape[1], pack_of(rows)

    def kernel(*refs: Any) -> None:
        prefetched, (target, weight, table, out, waiting, arrived) = refs[:5], refs[5:]
        at, begin, end = fetch(prefetched, [(table, waiting)], arrived, pack)

        @pl.when(starts(prefetched))
        def _() -> None:
            out[...] = jnp.zeros_like(out)

        @pl.when(end > begin)
        def _() -> None:
            mine = owned(prefetched, target)
            weights = jnp.where(mine, weight[0], 0)
            part = multiply(weights.astype(rows.dtype), unpacked(waiting, at, pack), 0)
            finite = jnp.max((~(jnp.abs(part) < jnp.inf)).astype(jnp.int32)) == 0

            @pl.when(finite)
            def _() -> None:
                out[...] += part

            # Zero times what is not finite is not zero, and may have spoilt a neighbour.
            @pl.when(~finite)
            def _() -> None:
                lanes = lax.broadcasted_iota(jnp.int32, mine.shape, 1)

                def add(row: jax.Array, _: None) -> None:
                    for half, read in enumerate(halves(waiting[at, pl.ds(row, 1)], pack)):
                        here = mine & (lanes == row * pack + half)
                        scale = jnp.where(here, weight[0], 0).sum(1, keepdims=True)
                        hit = here.astype(jnp.int32).max(1, keepdims=True) > 0
                        out[...] += jnp.where(hit, scale * read, 0)

                lax.fori_loop(begin, end, add, None)

    weight = values.reshape(-1).astype(jnp.float32)[visits.position]
    (total,) = visit_all(
        kernel,
        visits,
        [spread(visits.target, visits.source, pack, -1), spread(weight, visits.source, pack, 0)],
        tables=[rows],
        out=[jax.ShapeDtypeStruct((out_rows, d), jnp.float32)],
        out_specs=[rows_spec(d)],
    )
    return total


def _dot(e, indices, rows, chunk):
    tokens, k = indices.shape
    pack = pack_of(rows)
    visits = work.by_token(indices, chunk)
    chunks = visits.source.shape[0]

    def kernel(*refs: Any) -> None:
        prefetched, (target, error, table, out, waiting, arrived) = refs[:5], refs[5:]
        at, begin, end = fetch(prefetched, [(table, waiting)], arrived, pack)

        @pl.when(opens(prefetched, chunks))
        def _() -> None:
            out[...] = jnp.zeros_like(out)

        @pl.when(end > begin)
        def _() -> None:
            every = multiply(error[...], unpacked(waiting, at, pack), 1)
            own = jnp.where(owned(prefetched, target), every, 0)
            out[...] += own.sum(0, keepdims=True)[None]

    lanes = chunk * pack
    (out,) = visit_all(
        kernel,
        visits,
        [spread(visits.target, visits.source, pack, -1)],
        blocks=(e,),
        tables=[rows],
        out=[jax.ShapeDtypeStruct((chunks, 1, lanes), jnp.float32)],
        out_specs=[lanes_spec(chunks, lanes)],
    )
    return of_lanes(out, pack).reshape(-1)[: tokens * k].reshape(tokens, k)


# What the row kernels share.


def visit_all(
    kernel: Callable[..., None],
    visits: Visits,
    per_entry: list[jax.Array],
    *,
    tables: list[jax.Array],
    out: list[jax.ShapeDtypeStruct],
    out_specs: list[pl.BlockSpec],
    scalars: tuple[jax.Array, ...] = (),
    blocks: tuple[jax.Array, ...] = (),
    unread: tuple[jax.Array, ...] = (),
    aliases: dict[int, int] | None = None,
    scratch_shapes: tuple[Any, ...] = (),
) -> list[jax.Array]:
    """Run a row kernel once per visit.

    Args:
        kernel: of references to block, chunk and start of the visits, the source rows of this
            visit and of the next, the arrays per entry, the scalars, the blocks, what is unread,
            the tables, the outputs, for each table the two chunks of its rows that wait, their
            semaphores, and the scratch.
        visits: the work list.
        per_entry: `[chunks, 1, lanes]`, from `spread`.
        tables: `[rows, d]` each, whose rows `source` names.
        out: shapes and dtypes.
        out_specs: of the outputs.
        scalars: small arrays for the scalar memory.
        blocks: `[out rows, columns]` each, read block by block.
        unread: arrays that only give their memory to an output.
        aliases: position among `blocks` and `unread` to position in `out`.
        scratch_shapes: more scratch memory.
    """
    pack = pack_of(tables[0])
    chunks, chunk = visits.source.shape
    d = tables[0].shape[1]
    words = jnp.uint32 if pack == 2 else jnp.float32
    # In bfloat16, an odd last row gets the neighbour that it travels with.
    tables = [jnp.pad(t, ((0, t.shape[0] % pack), (0, 0))) for t in tables]
    if pallas_launch.MODE == "interpret":
        # What the interpreter lacks: words of a table, and aliases whose last block is cut.
        tables = [_words(t) for t in tables]
        aliases = None if any(a.shape[0] % BLOCK for a in blocks) else aliases
    row = (visits.source // pack)[:, None]
    last = visits.block.size - 1

    def rows_of(ahead: int) -> pl.BlockSpec:
        def at(v: Any, block: Any, chunk: Any, start: Any) -> tuple[Any, ...]:
            return jnp.minimum(chunk[jnp.minimum(v + ahead, last)], chunks - 1), 0, 0

        return pl.BlockSpec((1, 1, chunk), at, memory_space=pltpu.SMEM)

    work_list = [visits.block, visits.chunk, visits.start, row, row]
    inputs = [*work_list, *per_entry, *scalars, *blocks, *unread, *tables]
    first = len(work_list) + len(per_entry) + len(scalars)
    return pallas_launch.launch(
        kernel,
        *varying.alike(*inputs),
        out=out,
        semantics=("arbitrary",),
        aliases={first + i: o for i, o in (aliases or {}).items()},
        num_scalar_prefetch=3,
        grid=(last + 1,),
        in_specs=[
            rows_of(0),
            rows_of(1),
            *(lanes_spec(chunks, a.shape[2]) for a in per_entry),
            *(pl.BlockSpec(memory_space=pltpu.SMEM) for _ in scalars),
            *(rows_spec(a.shape[1]) for a in blocks),
            *(pl.BlockSpec(memory_space=pl.ANY) for _ in (*unread, *tables)),
        ],
        out_specs=out_specs,
        scratch_shapes=[
            *(pltpu.VMEM((2, chunk, d), words) for _ in tables),
            pltpu.SemaphoreType.DMA((2,)),
            *scratch_shapes,
        ],
    )


def rows_spec(columns: int) -> pl.BlockSpec:
    """The visit's block of output rows."""
    return pl.BlockSpec((BLOCK, columns), lambda v, block, chunk, start: (block[v], 0))


def lanes_spec(chunks: int, lanes: int) -> pl.BlockSpec:
    """The visit's chunk of entries."""
    return pl.BlockSpec(
        (1, 1, lanes),
        lambda v, block, chunk, start: (jnp.minimum(chunk[v], chunks - 1), 0, 0),
    )


def pack_of(table: jax.Array) -> int:
    """Rows that share 32-bit words."""
    return 4 // table.dtype.itemsize


def spread(array: jax.Array, source: jax.Array, pack: int, fill: int) -> jax.Array:
    """Entries `[chunks, chunk]` to lanes `[chunks, 1, chunk * pack]`, `fill` in those not used."""
    used = source[:, :, None] % pack == jnp.arange(pack)
    return jnp.where(used, array[:, :, None], fill).reshape(array.shape[0], 1, -1)


def of_lanes(array: jax.Array, pack: int) -> jax.Array:
    """Lanes `[chunks, 1, chunk * pack]`, 0 in those not used, to entries `[chunks, chunk]`."""
    return array.reshape(array.shape[0], -1, pack).sum(-1)


def fetch(
    prefetched: Any, tables: list[tuple[Any, Any]], arrived: Any, pack: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Send for the next visit's rows, wait for this one's.

    Args:
        prefetched: the first five references of a row kernel.
        tables: for each table, its reference and that of its waiting rows `[2, chunk, d]`.
        arrived: semaphores `[2]`.
        pack: rows that share words.

    Returns:
        which of the two waiting chunks it is, and its first and last entry that the block owns.
    """
    block, chunk, start, now, ahead = prefetched
    v, last = pl.program_id(0), pl.num_programs(0) - 1
    at = lax.rem(v, 2)

    def bounds(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        size = now.shape[2]
        before = chunk[v] * size
        begin = jnp.maximum(start[block[v]] - before, 0)
        return begin, jnp.minimum(start[block[v] + 1] - before, size)

    def copies(source: Any, row: jax.Array, at: jax.Array) -> list[Any]:
        views = [(t if t.dtype == w.dtype else t.bitcast(w.dtype), w) for t, w in tables]
        return [
            pltpu.make_async_copy(
                table.at[pl.ds(source, 1)], waiting.at[at, pl.ds(row, 1)], arrived.at[at]
            )
            for table, waiting in views
        ]

    def send(v: jax.Array, rows: Any, at: jax.Array) -> None:
        def one(row: jax.Array, _: None) -> None:
            for copy in copies(rows[0, 0, row], row, at):
                copy.start()

        lax.fori_loop(*bounds(v), one, None)

    @pl.when(v == 0)
    def _() -> None:
        # Rows that never came must not hold what is not a number.
        for _, waiting in tables:
            waiting[...] = jnp.zeros_like(waiting)
        send(v, now, at)

    @pl.when(v < last)
    def _() -> None:
        send(v + 1, ahead, 1 - at)

    begin, end = bounds(v)

    def wait(row: jax.Array, _: None) -> None:
        for copy in copies(0, row, at):
            copy.wait()

    lax.fori_loop(begin, end, wait, None)
    return at, begin, end


def starts(prefetched: Any) -> jax.Array:
    """Whether this is the first visit of its block."""
    block, v = prefetched[0], pl.program_id(0)
    return (v == 0) | (block[jnp.maximum(v - 1, 0)] != block[v])


def ends(prefetched: Any) -> jax.Array:
    """Whether this is the last visit of its block."""
    block, v, last = prefetched[0], pl.program_id(0), pl.num_programs(0) - 1
    return (v == last) | (block[jnp.minimum(v + 1, last)] != block[v])


def opens(prefetched: Any, chunks: int) -> jax.Array:
    """Whether this is the first visit of its chunk, of which there are so many."""
    chunk, v = prefetched[1], pl.program_id(0)
    return ((v == 0) | (chunk[jnp.maximum(v - 1, 0)] != chunk[v])) & (chunk[v] < chunks)


def owned(prefetched: Any, target: Any) -> jax.Array:
    """Which entry adds to which row of the block: bool `[BLOCK, lanes]`."""
    first = prefetched[0][pl.program_id(0)] * BLOCK
    shape = (BLOCK, target.shape[2])
    return first + lax.broadcasted_iota(jnp.int32, shape, 0) == target[0]


def unpacked(waiting: Any, at: jax.Array, pack: int) -> jax.Array:
    """The rows that came, one per lane of the entries: `[chunk * pack, d]`."""
    return pltpu.bitcast(waiting[at], jnp.bfloat16) if pack == 2 else waiting[at]


def _words(table: jax.Array) -> jax.Array:
    """The rows as they lie in a TPU's memory: pairs of bfloat16 rows in 32-bit words."""
    if table.dtype == jnp.float32:
        return table
    pairs = table.reshape(-1, 2, table.shape[1]).swapaxes(1, 2)
    return lax.bitcast_convert_type(pairs, jnp.uint32)


def halves(words: jax.Array, pack: int) -> list[jax.Array]:
    """The rows that share words, in float32."""
    if pack == 1:
        return [words]
    both = [words << 16, words & jnp.uint32(0xFFFF0000)]
    return [lax.bitcast_convert_type(half, jnp.float32) for half in both]


def multiply(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """`a @ b` (axis 0) or `a @ b.T` (axis 1), float32 throughout unless both are bfloat16."""
    if a.dtype == b.dtype == jnp.bfloat16:
        precision = None
    else:
        a, b, precision = a.astype(jnp.float32), b.astype(jnp.float32), lax.Precision.HIGHEST
    return lax.dot_general(
        a, b, (((1,), (axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
