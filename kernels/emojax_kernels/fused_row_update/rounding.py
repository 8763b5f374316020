"""Random bits by counting, and stochastic rounding with them.

The bits are a function of seed, step, array and position alone, so that every implementation draws
the same ones, a step can be repeated, and no generator state is kept.
"""

import jax
import jax.numpy as jnp
from jax import lax


def mix(bits: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3, a bijection of uint32 whose every output bit looks random."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def salt(seed: int, step: jax.Array, array: int) -> jax.Array:
    """uint32 that tells apart seeds, steps and the six arrays that are rounded."""
    return mix(mix(step.astype(jnp.uint32) * 8 + array) + jnp.uint32(seed))


def draw(salt: jax.Array, shape: tuple[int, ...], first: jax.Array | int = 0) -> jax.Array:
    """uint32 `shape` (rows, columns): one draw per position; `first` is the first row's number."""
    row = (lax.broadcasted_iota(jnp.int32, shape, 0) + first).astype(jnp.uint32)
    column = lax.broadcasted_iota(jnp.int32, shape, 1).astype(jnp.uint32)
    return mix((row * jnp.uint32(shape[1]) + column) ^ salt)


def uniform(bits: jax.Array) -> jax.Array:
    """float32 in [0, 1), from the upper 24 bits."""
    return (bits >> 8).astype(jnp.int32).astype(jnp.float32) * jnp.float32(2**-24)


def to_bfloat16(array: jax.Array, bits: jax.Array) -> jax.Array:
    """One of the two bfloat16 neighbours, with the chance that makes the mean exact.

    Args:
        array: float32.
        bits: uint32 of array's shape, of which the lower 16 are used.
    """
    raw = lax.bitcast_convert_type(array, jnp.uint32)
    up = (raw + (bits & jnp.uint32(0xFFFF))) & jnp.uint32(0xFFFF0000)
    rounded = lax.bitcast_convert_type(up, jnp.float32)
    return jnp.where(jnp.abs(array) < jnp.inf, rounded, array).astype(jnp.bfloat16)
