"""A shuffling buffer in device memory: what is captured goes in, batches of what is old come out.

The buffer has a column of `depth` slots for each token of a batch. A step draws one slot of every
column at random, gives out what is in it, and puts a freshly captured token there. So every token
that was captured is given out at most once (all but those in the buffer at the end), and how many
steps it stays is geometric with mean `depth`, independently for every column: tokens that stood
side by side in a text go out together with probability 1 / (2 depth - 1). It is the ring buffer of
dictionary_learning and the mixing buffer of SAELens (half of it kept, half given out, in turns)
made smooth: a step costs the same as any other, nothing is moved but one batch, and no column's
token leaves its device.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from emojax.sae.store import Batch

EVERYWHERE = ("data", "latent")
TOKENS = P(None, EVERYWHERE)


class Fresh(NamedTuple):
    """A batch of tokens as they were captured; a transcoder's target is the second of two sites.

    Attributes:
      values: unit vectors, in the buffer's type.
      norms: what they were multiplied by.
      rows: each token's row, counted in the order of this process' text.
      positions: its number in the row.
    """

    values: Float[Array, "sites tokens width"]
    norms: Float[Array, "sites tokens"]
    rows: Int[Array, " tokens"]
    positions: Int[Array, " tokens"]


class Buffer(NamedTuple):
    """The columns, split over all devices.

    Attributes:
      values: unit vectors.
      norms: what they are multiplied by.
      filled: slots that hold a token.
      fault: row and position of the first token captured whose activation is not finite, and its
        place in its batch, which says whose text it is of; -1.
    """

    values: Float[Array, "sites tokens depth width"]
    norms: Float[Array, "sites tokens depth"]
    filled: Int[Array, ""]
    fault: Int[Array, "3"]


def shapes(mesh: Mesh, sites: int, tokens: int, depth: int, width: int, dtype: str) -> Buffer:
    """What a buffer is, without its numbers."""

    def array(shape: tuple[int, ...], kind: str, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, spec))

    arrays = (
        array((sites, tokens, depth, width), dtype, TOKENS),
        array((sites, tokens, depth), "float32", TOKENS),
        array((), "int32", P()),
        array((3,), "int32", P()),
    )
    return Buffer(*arrays)  # pyrefly: ignore [bad-argument-type]  # shapes for arrays


def empty(like: Buffer) -> Buffer:
    """A buffer of these shapes in which there is nothing yet."""

    def build() -> Buffer:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        return zeros._replace(fault=jnp.full(3, -1, jnp.int32))

    return jax.jit(build, out_shardings=jax.tree.map(lambda x: x.sharding, like))()


@functools.partial(jax.jit, static_argnums=(0, 1))
def slots(mesh: Mesh, shape: tuple[int, int], seed: Int[Any, ""], step: Int[Any, ""]) -> Array:
    """A slot of every column (`shape`: columns, depth): a function of seed and step."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    drawn = jax.random.randint(key, shape[:1], 0, shape[1])
    return jax.lax.with_sharding_constraint(drawn, NamedSharding(mesh, P(EVERYWHERE)))


@functools.partial(jax.jit, static_argnums=0)
def draw(mesh: Mesh, buffer: Buffer, slots: Int[Any, " tokens"]) -> Batch:
    """What is in those slots: raw activations in float32, split over `data`."""

    def own(old: Array, slots: Array) -> Array:
        return old[:, jnp.arange(len(slots)), slots]

    take = jax.shard_map(own, mesh=mesh, in_specs=(TOKENS, P(EVERYWHERE)), out_specs=TOKENS)
    # Halves of floats travel to the devices that share a batch, not floats.
    there = NamedSharding(mesh, P(None, "data"))
    values, norms = (
        jax.lax.with_sharding_constraint(take(part, slots), there)
        for part in (buffer.values, buffer.norms)
    )
    return Batch(*(values.astype(jnp.float32) * norms[..., None]))


# Not one program with `draw`: XLA would copy the buffer, there and back, to read and write it.
@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def put(mesh: Mesh, buffer: Buffer, fresh: Fresh, slots: Int[Any, " tokens"]) -> Buffer:
    """Fresh tokens in those slots; the buffer is changed in place."""

    def own(old: Array, new: Array, slots: Array) -> Array:
        return old.at[:, jnp.arange(len(slots)), slots].set(new)

    specs = (TOKENS, TOKENS, P(EVERYWHERE))
    write = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=TOKENS)
    broken = ~jnp.all(jnp.isfinite(fresh.norms), axis=0)
    first = jnp.argmax(broken)
    found = jnp.stack([fresh.rows[first], fresh.positions[first], first.astype(jnp.int32)])
    is_first = jnp.any(broken) & (buffer.fault[0] < 0)
    return Buffer(
        values=write(buffer.values, fresh.values, slots),
        norms=write(buffer.norms, fresh.norms, slots),
        filled=jnp.minimum(buffer.filled + fresh.rows.size, buffer.norms[0].size),
        fault=jnp.where(is_first, found, buffer.fault),
    )
