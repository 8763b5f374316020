"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), halves rotated as in Llama."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from emojax.lm.config import Rope


def inverse_frequencies(rope: Rope, rotary_dim: int) -> Float[np.ndarray, " half"]:
    """Radians per token of each pair of the rotated dimensions, scaled as `rope.kind` says."""
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

        first = max(math.floor(dimension(rope.beta_fast)), 0)
        last = min(math.ceil(dimension(rope.beta_slow)), rotary_dim - 1)
        steps = np.arange(rotary_dim // 2, dtype=np.float32) - first
        kept = 1 - np.clip(steps / max(last - first, 1e-3), 0.0, 1.0)
        return (frequencies * (kept + (1 - kept) / rope.factor)).astype(np.float32)
    return frequencies


def tables(
    ropes: tuple[Rope, ...], rotary_dim: int, positions: Int[Array, "batch time"]
) -> tuple[Float[Array, "ropes batch time half"], Float[Array, "ropes batch time half"]]:
    """Cosines and sines of every rope at every position, in float32."""
    frequencies = np.array([inverse_frequencies(r, rotary_dim) for r in ropes], np.float32)
    frequencies = frequencies.reshape(len(ropes), rotary_dim // 2)
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
