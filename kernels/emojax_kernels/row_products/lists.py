"""For each latent the tokens that use it: the code turned latent-major.

A few latents of a real dictionary fire on almost every token. So that none of them holds a kernel
up, lists longer than `chunk` are cut into chunks that are summed apart and then together.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatentLists:
    """Entries sorted by latent, and by token within one: `entry[start[j]:start[j + 1]]` for j.

    Attributes:
        entry: `[tokens * k]`, int32, positions in the flattened code.
        start: `[n + 1]`, int32.
        chunk_latent: `[chunks]`, int32, the latent that a chunk belongs to, n for chunks unused.
        chunk_start: `[n + 1]`, int32, the first chunk of each latent; a short list has none.
    """

    entry: jax.Array
    start: jax.Array
    chunk_latent: jax.Array
    chunk_start: jax.Array


def latent_lists(indices: jax.Array, n: int, chunk: int) -> LatentLists:
    """The lists of a code.

    Args:
        indices: `[tokens, k]`, int32, each within 0..n-1.
        n: latents.
        chunk: entries in the longest list that is not cut, and in each chunk of one that is.
    """
    flat = indices.reshape(-1)
    position = jnp.arange(flat.size, dtype=jnp.int32)
    _, entry = lax.sort((flat, position), num_keys=1, is_stable=True)
    counts = jnp.zeros(n, jnp.int32).at[flat].add(1)
    chunks = jnp.where(counts > chunk, -(-counts // chunk), 0)
    chunk_start = _offsets(chunks)
    # A cut list is longer than one chunk, so it has fewer than 2 / chunk chunks per entry.
    most = 2 * flat.size // chunk
    latent = jnp.searchsorted(chunk_start, jnp.arange(most, dtype=jnp.int32), side="right") - 1
    return LatentLists(
        entry=entry,
        start=_offsets(counts),
        chunk_latent=latent.astype(jnp.int32),
        chunk_start=chunk_start,
    )


def _offsets(counts):
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
