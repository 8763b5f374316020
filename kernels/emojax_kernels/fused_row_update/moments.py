"""How Adam's moments are kept: float32, bfloat16 or 8 bits, the latter two rounded stochastically.

Moments move by a part in a thousand per step, less than the spacing of short formats: rounding to
nearest would freeze them, rounding with the right chance keeps their mean exact.

Eight bits: columns in blocks of 128, each with a float32 scale s, its largest magnitude. The codes
are spaced finer near zero, since a block's entries differ by orders of magnitude:

    first moment   m = s * sign(c) * (c / 127)**2,    c in -127..127
    second moment  v = s * ((c + 1) / 256)**4,        c in 0..255

v spans the square of m's range, hence the fourth power; it is never 0 (unless its block is), so a
first moment that rounded up never meets a second that rounded to nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp

from emojax_kernels.fused_row_update import rounding

BLOCK = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blockwise:
    """Eight-bit codes `[n, d]` (int8 or uint8) and float32 scales `[n, ceil(d / 128)]`."""

    codes: jax.Array
    scales: jax.Array


Moment = jax.Array | Blockwise


def zeros(shape: tuple[int, ...], kind: str, *, signed: bool) -> Moment:
    """The moment before the first step.

    Args:
        shape: `(n, d)`.
        kind: "float32", "bfloat16" or "int8".
        signed: whether it is a first moment (of either sign) or a second (never negative).
    """
    if kind != "int8":
        return jnp.zeros(shape, kind)
    scales = jnp.zeros((shape[0], -(-shape[1] // BLOCK)), jnp.float32)
    return Blockwise(jnp.zeros(shape, jnp.int8 if signed else jnp.uint8), scales)


def load(moment: Moment) -> jax.Array:
    """The moment in float32, `[n, d]`."""
    if not isinstance(moment, Blockwise):
        return moment.astype(jnp.float32)
    return from_codes(moment.codes, _spread(moment.scales, moment.codes.shape[1]))


def store(array: jax.Array, like: Moment, bits: jax.Array) -> Moment:
    """A float32 moment `[n, d]` in the format of `like`, rounded by uint32 `bits [n, d]`."""
    if not isinstance(like, Blockwise):
        if like.dtype == jnp.bfloat16:
            return rounding.to_bfloat16(array, bits)
        return array
    n, d = array.shape
    padded = jnp.pad(jnp.abs(array), ((0, 0), (0, -d % BLOCK)))
    scales = padded.reshape(n, -1, BLOCK).max(-1)
    return Blockwise(to_codes(array, _spread(scales, d), like.codes.dtype, bits), scales)


def from_codes(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """What `codes` stand for, each with its own scale: float32."""
    decode = _first if codes.dtype == jnp.int8 else _second
    return scales * decode(codes.astype(jnp.float32))


def to_codes(array: jax.Array, scales: jax.Array, dtype: jnp.dtype, bits: jax.Array) -> jax.Array:
    """The codes of float32 `array` with a scale each: int8 of first moments, uint8 of second."""
    share = jnp.abs(array) / jnp.maximum(scales, jnp.finfo(jnp.float32).tiny)
    if dtype == jnp.int8:
        magnitude = _code(share, jnp.sqrt(share) * 127, 127, _first, bits)
        return jnp.where(array < 0, -magnitude, magnitude).astype(jnp.int8)
    place = jnp.sqrt(jnp.sqrt(share)) * 256 - 1
    return _code(share, place, 255, _second, bits).astype(jnp.uint8)


def _code(share, place, last, decode, bits):
    """The code below or above `place`, such that the decoded mean is `share`."""
    low = jnp.clip(jnp.floor(place), 0, last - 1)
    below, above = decode(low), decode(low + 1)
    return low + (rounding.uniform(bits) < (share - below) / (above - below))


def _first(code):
    return (code / 127) * jnp.abs(code / 127)


def _second(code):
    return ((code + 1) / 256) ** 4


def _spread(scales, d):
    return jnp.repeat(scales, BLOCK, axis=1)[:, :d]
