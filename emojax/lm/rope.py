"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), halves rotated as in Llama.

Two kinds, "dynamic" and "longrope", depend on how many tokens are read: every call takes them from
its own longest row, as `transformers` does with a model that has just been loaded (there a module
remembers the longest call until a short one comes). With a KV cache that is the length so far, so
that keys keep the turn they were written with, while later queries and keys turn by the frequencies
of the longer text. Generation here is the same: until the longest row crosses the original context
it equals a pass over the whole, and from there on the steps of `transformers` with its cache.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from emojax.lm.config import Rope


def inverse_frequencies(
    rope: Rope, rotary_dim: int, length: Int[Array, ""]
) -> Float[np.ndarray | Array, " half"]:
    """Radians per token of each pair of the rotated dimensions, scaled as `rope.kind` says.

    Traced where `length`, the tokens of the longest row, plays a part; else constants.
    """
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    frequencies = 1.0 / np.float32(rope.theta) ** exponents
    if rope.kind == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.kind == "llama3":
        # Turns that a pair makes within the original context: few -> scaled, many -> kept.
        turns = rope.original_context * frequencies / (2 * math.pi)
        ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        kept = np.clip(ramp, 0.0, 1.0)
        return (frequencies * (kept + (1 - kept) / rope.factor)).astype(np.float32)
    if rope.kind == "yarn":
        # The same, but the ramp is over dimensions: from where `beta_fast` turns are made (before
        # it: kept) to where `beta_slow` are (after it: scaled).
        def dimension(turns: float) -> float:
            ratio = rope.original_context / (turns * 2 * math.pi)
            return rotary_dim * math.log(ratio) / (2 * math.log(rope.theta))

        first, last = dimension(rope.beta_fast), dimension(rope.beta_slow)
        if rope.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, rotary_dim - 1)
        steps = np.arange(rotary_dim // 2, dtype=np.float32) - first
        kept = 1 - np.clip(steps / max(last - first, 1e-3), 0.0, 1.0)
        return (frequencies * (kept + (1 - kept) / rope.factor)).astype(np.float32)
    if rope.kind == "dynamic":
        # As if theta were times `stretch` ** (d / (d - 2)); 1 within the original context.
        beyond = jnp.maximum(length - rope.original_context, 0)
        stretch = 1 + rope.factor * beyond / rope.original_context
        return frequencies * stretch ** (-exponents * (rotary_dim / (rotary_dim - 2)))
    if rope.kind == "longrope":
        short = frequencies / np.array(rope.short_factor, np.float32)
        long = frequencies / np.array(rope.long_factor, np.float32)
        return jnp.where(length > rope.original_context, long, short)
    return frequencies


def tables(
    ropes: tuple[Rope, ...],
    rotary_dim: int,
    positions: Int[Array, "batch time"],
    length: Int[Array, ""],
) -> tuple[Float[Array, "ropes batch time half"], Float[Array, "ropes batch time half"]]:
    """Cosines and sines of every rope at every position, in float32; `length` as above."""
    found = [inverse_frequencies(rope, rotary_dim, length) for rope in ropes]
    frequencies = jnp.asarray(found, jnp.float32).reshape(len(ropes), rotary_dim // 2)
    gains = jnp.asarray([r.attention_factor for r in ropes], jnp.float32)[:, None, None, None]
    angles = positions[None, :, :, None].astype(jnp.float32) * frequencies[:, None, None, :]
    return jnp.cos(angles) * gains, jnp.sin(angles) * gains


def rotate(
    x: Float[Array, "batch time heads head_dim"],
    cos: Float[Array, "batch time half"],
    sin: Float[Array, "batch time half"],
) -> Float[Array, "batch time heads head_dim"]:
    """Turns the pairs (x[i], x[i + half]) by their angles; what is after 2 half stays."""
    half = cos.shape[-1]
    first, second = (x[..., i * half : (i + 1) * half].astype(jnp.float32) for i in (0, 1))
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)
