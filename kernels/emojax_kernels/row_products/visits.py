"""The work list of the TPU's row kernels: which entries of a code meet which rows of an output.

Entries are sorted by the output row that they add to. They are cut into chunks, output rows into
blocks, and a grid walks over the pairs that meet, in order, so that a block's sums stay in vector
memory until they are whole. A block that no entry meets is visited once, to write its zeros. The
number of pairs is at most that of blocks and chunks together, so a row that all tokens add to costs
what its entries cost and no more: its chunks follow one another.
"""

import dataclasses

import jax
import jax.numpy as jnp

from emojax_kernels.row_products.lists import latent_lists

# Output rows per block: whole tiles of every dtype that a row state holds.
BLOCK = 32
# Entries per chunk, of rows that are not very wide.
_CHUNK = 128
# Bytes of gathered rows that wait in vector memory.
_WAITING = 16 << 20
# 32-bit words of scalar memory, of 262,144, that a work list may take.
_WORDS = 220_000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visits:
    """Entries in the order of their output row, and who meets whom.

    Attributes:
        block: `[visits]`, int32, not descending.
        chunk: `[visits]`, int32; past the last chunk where a visit is not used.
        start: `[blocks + 1]`, int32, the first entry of each block.
        source: `[chunks, chunk]`, int32, the row that an entry reads.
        target: `[chunks, chunk]`, int32, the row that it adds to, -1 where there is no entry.
        position: `[chunks, chunk]`, int32, where the entry is in the flattened code.
    """

    block: jax.Array
    chunk: jax.Array
    start: jax.Array
    source: jax.Array
    target: jax.Array
    position: jax.Array


def chunk_size(d: int, tables: int) -> int:
    """Entries per chunk, such that two chunks of rows from each of `tables` fit."""
    most = _WAITING // (2 * 4 * d * tables)
    return max(8, min(_CHUNK, 1 << (most.bit_length() - 1)))


def most_entries(rows: int, chunk: int) -> int:
    """Entries whose work list fits in scalar memory, with so many output rows."""
    return (_WORDS - 3 * -(-rows // BLOCK)) // 2 * chunk


def most_tokens(k: int, chunk: int) -> int:
    """Tokens whose work list fits in scalar memory, where they are the output rows."""
    return int(_WORDS / (3 / BLOCK + 2 * k / chunk))


def by_token(indices: jax.Array, chunk: int) -> Visits:
    """Tokens add up rows of latents; `indices [tokens, k]`, at least one token."""
    tokens, k = indices.shape
    position = jnp.arange(tokens * k, dtype=jnp.int32)
    edges = jnp.minimum(jnp.arange(-(-tokens // BLOCK) + 1) * BLOCK, tokens)
    return _visits(
        (edges * k).astype(jnp.int32), indices.reshape(-1), position // k, position, chunk
    )


def by_latent(indices: jax.Array, n: int, chunk: int) -> Visits:
    """Latents add up rows of tokens, in the order of tokens; `indices [tokens, k]`."""
    lists = latent_lists(indices, n, chunk)
    edges = jnp.minimum(jnp.arange(-(-n // BLOCK) + 1) * BLOCK, n)
    k = indices.shape[1]
    target = indices.reshape(-1)[lists.entry]
    return _visits(lists.start[edges], lists.entry // k, target, lists.entry, chunk)


def _visits(start, source, target, position, chunk):
    entries, blocks = source.size, start.size - 1
    chunks = -(-entries // chunk)
    first = start[:-1] // chunk
    met = jnp.maximum(-(-start[1:] // chunk) - first, 1)
    begin = jnp.cumsum(met) - met
    visit = jnp.arange(blocks + chunks, dtype=jnp.int32)
    block = jnp.searchsorted(begin, visit, side="right").astype(jnp.int32) - 1

    def cut(array: jax.Array, fill: int) -> jax.Array:
        spare = chunks * chunk - entries
        return jnp.pad(array, (0, spare), constant_values=fill).reshape(chunks, chunk)

    return Visits(
        block=block,
        chunk=first[block] + visit - begin[block].astype(jnp.int32),
        start=start,
        source=cut(source, 0),
        target=cut(target, -1),
        position=cut(position, 0),
    )
