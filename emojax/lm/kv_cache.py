"""The keys and values of what a model has read, so that one more token costs one token.

Layers that see everything keep every slot. Where a window is shorter than that, its layers share a
ring: slot s lies at s modulo the largest window, so that their memory ends with it. That is the
memory between steps: a step still lays a ring out by slot (`get`) and masks what the window passed.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from emojax.lm.config import DecoderConfig
from emojax.lm.decoder import KeysOrValues

Stored = Float[Array, "layers batch kv_heads slots head_dim"]
Ring = Float[Array, "ring_layers batch kv_heads ring_slots head_dim"]


class Cache(NamedTuple):
    """Keys, turned by their positions, and values; all rows end at the same slot.

    Attributes:
      whole: keys and values of the layers that keep every slot.
      ring: those of the layers with a window, if that is shorter; else it has no layers.
      lengths: how many tokens each row has.
      used: how many slots are in use; a row's tokens are in the last of them.
    """

    whole: tuple[Stored, Stored]
    ring: tuple[Ring, Ring]
    lengths: Int[Array, " batch"]
    used: Int[Array, ""]


def empty(
    config: DecoderConfig, lengths: Int[Array, " batch"], slots: int, dtype: jnp.dtype
) -> Cache:
    """A cache for rows that will have `lengths` tokens after the first pass, with `slots` slots."""
    windows = np.asarray(config.windows)
    largest = int(windows.max())
    in_ring = (windows > 0) & (largest < slots)

    def pair(layers: int, slots: int) -> tuple[Array, Array]:
        shape = (layers, len(lengths), config.n_kv_heads, slots, config.head_dim)
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)

    return Cache(
        whole=pair(int((~in_ring).sum()), slots),
        ring=pair(int(in_ring.sum()), min(largest, slots)),
        lengths=lengths,
        used=jnp.asarray(0, jnp.int32),
    )


def put(
    config: DecoderConfig, cache: Cache, layer: Int[Array, ""], k: KeysOrValues, v: KeysOrValues
) -> Cache:
    """The cache with the layer's new keys and values after those in use."""
    in_ring, index = _places(config, cache, layer)
    (whole_k, whole_v), (ring_k, ring_v) = cache.whole, cache.ring
    if len(whole_k):
        whole_k = _write(whole_k, k, index, cache.used, ~in_ring)
        whole_v = _write(whole_v, v, index, cache.used, ~in_ring)
    if len(ring_k):
        ring_k = _write_ring(ring_k, k, index, cache.used, in_ring)
        ring_v = _write_ring(ring_v, v, index, cache.used, in_ring)
    return cache._replace(whole=(whole_k, whole_v), ring=(ring_k, ring_v))


def get(
    config: DecoderConfig, cache: Cache, layer: Int[Array, ""], slots: int
) -> tuple[KeysOrValues, KeysOrValues]:
    """The layer's keys and values by slot; those that a window has passed are not its own."""
    in_ring, index = _places(config, cache, layer)

    def one(whole: Stored, ring: Ring) -> KeysOrValues:
        if not len(ring):
            return whole[index]
        around = -(-slots // ring.shape[3])
        unrolled = jnp.concatenate([ring[index]] * around, axis=2)[:, :, :slots]
        if not len(whole):
            return unrolled
        return jnp.where(in_ring, unrolled, whole[index])

    return one(cache.whole[0], cache.ring[0]), one(cache.whole[1], cache.ring[1])


def _places(
    config: DecoderConfig, cache: Cache, layer: Int[Array, ""]
) -> tuple[Bool[Array, ""], Int[Array, ""]]:
    """Whether a layer is in the ring, and its number among those that are kept alike."""
    windowed = (np.asarray(config.windows) > 0) & (len(cache.ring[0]) > 0)
    number = np.where(windowed, np.cumsum(windowed), np.cumsum(~windowed)) - 1
    return jnp.asarray(windowed)[layer], jnp.asarray(number)[layer]


def _write(
    stored: Stored,
    new: KeysOrValues,
    index: Int[Array, ""],
    slot: Int[Array, ""],
    wanted: Bool[Array, ""],
) -> Stored:
    """Overwrites slots from `slot` on if `wanted`, in place either way."""
    at = (jnp.minimum(index, len(stored) - 1), 0, 0, slot, 0)
    old = lax.dynamic_slice(stored, at, (1, *new.shape))
    return lax.dynamic_update_slice(stored, jnp.where(wanted, new[None], old), at)


def _write_ring(
    stored: Stored,
    new: KeysOrValues,
    index: Int[Array, ""],
    slot: Int[Array, ""],
    wanted: Bool[Array, ""],
) -> Stored:
    """As `_write`, around the ring; several slots are written only from slot 0 on."""
    size, time = stored.shape[3], new.shape[2]
    if time == 1:
        return _write(stored, new, index, slot % size, wanted)
    if time > size:
        # Only the last slots stay; slot s lies at s modulo the size.
        new = jnp.roll(new[:, :, -size:], (time - size) % size, axis=2)
    return _write(stored, new, index, jnp.zeros_like(slot), wanted)
