"""Causal attention with grouped heads, an optional window, and padding anywhere in a row."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# Queries are attended to in blocks of this many, so that scores of long rows stay small.
_BLOCK = 512


def allowed(
    query_positions: Int[Array, "batch time"],
    key_positions: Int[Array, "batch keys"],
    key_mask: Bool[Array, "batch keys"],
    window: Int[Array, ""],
) -> Bool[Array, "batch time keys"]:
    """Which keys a query sees: real tokens, none later, the last `window` of them (0: all)."""
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    near = (window == 0) | (distance < window)
    return key_mask[:, None, :] & (distance >= 0) & near


def soft_cap(x: Float[Array, "*shape"], cap: float) -> Float[Array, "*shape"]:
    """`cap * tanh(x / cap)` (Gemma Team 2024, arXiv:2408.00118, section 2); 0 caps nothing."""
    return cap * jnp.tanh(x / cap) if cap else x


def attend(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch kv_heads keys head_dim"],
    v: Float[Array, "batch kv_heads keys head_dim"],
    query_positions: Int[Array, "batch time"],
    key_positions: Int[Array, "batch keys"],
    key_mask: Bool[Array, "batch keys"],
    window: Int[Array, ""],
    scale: float,
    softcap: float = 0.0,
) -> Float[Array, "batch time heads head_dim"]:
    """Softmax attention, scores in float32; each key head serves `heads / kv_heads` query heads.

    Scores are multiplied by `scale`, then held within `softcap` unless that is 0. A query that sees
    nothing (padding) gets finite numbers without meaning.
    """

    def block(
        q: Float[Array, "batch block heads head_dim"], positions: Int[Array, "batch block"]
    ) -> Float[Array, "batch block heads head_dim"]:
        seen = allowed(positions, key_positions, key_mask, window)
        return _attend_block(q, k, v, seen, scale, softcap)

    time = q.shape[1]
    if time <= 2 * _BLOCK:
        return block(q, query_positions)

    padding = -time % _BLOCK
    q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    positions = jnp.pad(query_positions, ((0, 0), (0, padding)))
    blocks = q.reshape(q.shape[0], -1, _BLOCK, *q.shape[2:]).swapaxes(0, 1)
    positions = positions.reshape(positions.shape[0], -1, _BLOCK).swapaxes(0, 1)
    # The scores of a block are made again in a backward pass rather than kept.
    out = lax.map(jax.checkpoint(lambda args: block(*args)), (blocks, positions))
    return out.swapaxes(0, 1).reshape(q.shape)[:, :time]


def _attend_block(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch kv_heads keys head_dim"],
    v: Float[Array, "batch kv_heads keys head_dim"],
    seen: Bool[Array, "batch time keys"],
    scale: float,
    softcap: float,
) -> Float[Array, "batch time heads head_dim"]:
    batch, time, heads, head_dim = q.shape
    kv_heads, keys = k.shape[1:3]
    # The query heads of one key head become rows of one matrix: one large product, not several.
    q = q.reshape(batch, time, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    rows = q.reshape(batch, kv_heads, -1, head_dim) * jnp.asarray(scale, q.dtype)
    scores = jnp.einsum("bkrh,bksh->bkrs", rows, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, -1, time, keys)
    scores = soft_cap(scores, softcap)
    scores = jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkrs,bksh->bkrh", weights.reshape(batch, kv_heads, -1, keys), v)
    out = out.reshape(batch, kv_heads, heads // kv_heads, time, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, head_dim)
