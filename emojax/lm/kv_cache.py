"""The keys and values of what a model has read, so that one more token costs one token.

Layers that see everything keep every slot. Where a window is shorter than that, its layers share a
ring: slot s lies at s modulo the largest window, so that their memory ends with it. That is the
memory between steps: a step still lays a ring out by slot (`get`) and masks what the window passed.

All layers' are stacked for a loop over layers, or apart (`by_layer`) for layers that are apart.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from emojax.lm.config import DecoderConfig

Stored = Float[Array, "layers batch slots kv_heads head_dim"]
Ring = Float[Array, "ring_layers batch ring_slots kv_heads head_dim"]
LayerKeys = Float[Array, "*batch_and_heads head_dim _"]
LayerValues = Float[Array, "*batch_and_heads _ head_dim"]
KeysOrValues = Float[Array, "batch keys kv_heads head_dim"]


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


class CacheByLayer(NamedTuple):
    """As `Cache`, for the layers that `decoder.by_layer` took apart: steps of one token each.

    Every layer has arrays of its own, in the very shape in which the products of one query read
    them, without an axis for a single head. XLA's CPU compiler would copy a layer out of the stack
    and transpose it at every step; of arrays in another shape it copies what it could update.

    Attributes:
      layers: keys and values of each layer, of as many slots as `Cache` keeps of it. The layer at
        work is the first: `put` moves it to the end, so that after all layers they are in order.
      lengths: as in `Cache`.
      used: as in `Cache`.
    """

    layers: tuple[tuple[LayerKeys, LayerValues], ...]
    lengths: Int[Array, " batch"]
    used: Int[Array, ""]


def empty(
    config: DecoderConfig, lengths: Int[Array, " batch"], slots: int, dtype: jnp.dtype
) -> Cache:
    """A cache for rows that will have `lengths` tokens after the first pass, with `slots` slots."""
    windows = np.asarray(config.windows)
    largest = int(windows.max())
    in_ring = (windows > 0) & (largest < slots)
    tail = (config.n_kv_heads, config.head_dim)

    def pair(layers: int, slots: int) -> tuple[Array, Array]:
        shape = (layers, len(lengths), slots, *tail)
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)

    return Cache(
        whole=pair(int((~in_ring).sum()), slots),
        ring=pair(int(in_ring.sum()), min(largest, slots)),
        lengths=lengths,
        used=jnp.asarray(0, jnp.int32),
    )


def by_layer(config: DecoderConfig, cache: Cache) -> CacheByLayer:
    """The same cache with a pair of arrays for each layer."""
    in_ring, numbers = _places(config, cache)
    layers = []
    for ring, number in zip(in_ring, numbers, strict=True):
        keys, values = cache.ring if ring else cache.whole
        keys, values = keys[number].transpose(0, 2, 3, 1), values[number].swapaxes(1, 2)
        layers.append((keys[:, 0], values[:, 0]) if config.n_kv_heads == 1 else (keys, values))
    return CacheByLayer(tuple(layers), cache.lengths, cache.used)


def put(
    config: DecoderConfig,
    cache: Cache | CacheByLayer,
    layer: Int[Array, ""],
    k: KeysOrValues,
    v: KeysOrValues,
) -> Cache | CacheByLayer:
    """The cache with the layer's new keys and values after those in use."""
    if isinstance(cache, CacheByLayer):
        (keys, values), *others = cache.layers
        slot, (k, v) = cache.used % keys.shape[-1], (x.reshape(keys.shape[:-1]) for x in (k, v))
        keys = lax.dynamic_update_slice_in_dim(keys, k[..., None], slot, axis=-1)
        values = lax.dynamic_update_slice_in_dim(values, v[..., None, :], slot, axis=-2)
        return cache._replace(layers=(*others, (keys, values)))
    in_ring, index = _place(config, cache, layer)
    (whole_k, whole_v), (ring_k, ring_v) = cache.whole, cache.ring
    if len(whole_k):
        whole_k = _write(whole_k, k, index, cache.used, ~in_ring)
        whole_v = _write(whole_v, v, index, cache.used, ~in_ring)
    if len(ring_k):
        ring_k = _write_ring(ring_k, k, index, cache.used, in_ring)
        ring_v = _write_ring(ring_v, v, index, cache.used, in_ring)
    return cache._replace(whole=(whole_k, whole_v), ring=(ring_k, ring_v))


def get(
    config: DecoderConfig, cache: Cache | CacheByLayer, layer: Int[Array, ""], slots: int
) -> tuple[KeysOrValues, KeysOrValues]:
    """The layer's keys and values by slot, after `put`; what a window has passed is not its own."""
    if isinstance(cache, CacheByLayer):
        keys, values = cache.layers[-1]
        heads = (-1, config.n_kv_heads)
        keys = keys.reshape(*heads, *keys.shape[-2:]).transpose(0, 3, 1, 2)
        values = values.reshape(*heads, *values.shape[-2:]).swapaxes(1, 2)
        return _by_slot(keys, slots), _by_slot(values, slots)
    in_ring, index = _place(config, cache, layer)

    def one(whole: Stored, ring: Ring) -> KeysOrValues:
        if not len(ring):
            return whole[index]
        unrolled = _by_slot(ring[index], slots)
        if not len(whole):
            return unrolled
        return jnp.where(in_ring, unrolled, whole[index])

    return one(cache.whole[0], cache.ring[0]), one(cache.whole[1], cache.ring[1])


def _by_slot(
    stored: Float[Array, "batch stored kv_heads head_dim"], slots: int
) -> Float[Array, "batch slots kv_heads head_dim"]:
    """A ring laid out; all slots stay as they are."""
    around = -(-slots // stored.shape[1])
    return jnp.concatenate([stored] * around, axis=1)[:, :slots] if around > 1 else stored


def _places(
    config: DecoderConfig, cache: Cache
) -> tuple[Bool[np.ndarray, " layers"], Int[np.ndarray, " layers"]]:
    """Whether each layer is in the ring, and its number among those that are kept alike."""
    in_ring = (np.asarray(config.windows) > 0) & (len(cache.ring[0]) > 0)
    return in_ring, np.where(in_ring, np.cumsum(in_ring), np.cumsum(~in_ring)) - 1


def _place(
    config: DecoderConfig, cache: Cache, layer: Int[Array, ""]
) -> tuple[Bool[Array, ""], Int[Array, ""]]:
    in_ring, numbers = _places(config, cache)
    return jnp.asarray(in_ring)[layer], jnp.asarray(numbers)[layer]


def _write(
    stored: Stored,
    new: KeysOrValues,
    index: Int[Array, ""],
    slot: Int[Array, ""],
    wanted: Bool[Array, ""],
) -> Stored:
    """Overwrites slots from `slot` on if `wanted`, in place either way."""
    at = (jnp.minimum(index, len(stored) - 1), 0, slot, 0, 0)
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
    size, time = stored.shape[2], new.shape[1]
    if time == 1:
        return _write(stored, new, index, slot % size, wanted)
    if time > size:
        # Only the last slots stay; slot s lies at s modulo the size.
        new = jnp.roll(new[:, -size:], (time - size) % size, axis=1)
    return _write(stored, new, index, jnp.zeros_like(slot), wanted)
