"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), halves rotated as in Llama."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from emojax.lm.config import Rope


def inverse_frequencies(rope: Rope, head_dim: int) -> Float[np.ndarray, " half"]:
    """Radians per token of each pair of dimensions, scaled as `rope.kind` says."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = 1.0 / np.float32(rope.theta) ** exponents
    if rope.kind == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.kind == "llama3":
        # Turns that a pair makes within the original context: few -> scaled, many -> kept.
        turns = rope.original_context * frequencies / (2 * math.pi)
        ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        kept = np.clip(ramp, 0.0, 1.0)
        return (frequencies * (kept + (1 - kept) / rope.factor)).astype(np.float32)
    return frequencies


def tables(
    ropes: tuple[Rope, ...], head_dim: int, positions: Int[Array, "batch time"]
) -> tuple[Float[Array, "ropes batch time half"], Float[Array, "ropes batch time half"]]:
    """Cosines and sines of every rope at every position, in float32."""
    frequencies = jnp.asarray(np.stack([inverse_frequencies(r, head_dim) for r in ropes]))
    angles = positions[None, :, :, None].astype(jnp.float32) * frequencies[:, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "batch time heads head_dim"],
    cos: Float[Array, "batch time half"],
    sin: Float[Array, "batch time half"],
) -> Float[Array, "batch time heads head_dim"]:
    """Turns the pairs (x[i], x[i + head_dim / 2]) by their angles."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
