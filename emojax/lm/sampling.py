"""Choosing next tokens from logits: penalty, temperature, top-k, top-p; every setting is data.

Nothing here sorts the vocabulary: a cut lies within the highest scores or is found by bisection,
and a token by inverting the cumulative distribution, block by block: few passes over 262,144
logits.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

_BLOCKS = 512
_BISECTIONS = 40
_HIGHEST = 2048  # scores that are looked through for a cut before all of them are


class Sampling(NamedTuple):
    """How to choose; `top_k` 0, `top_p` 1 and `repetition_penalty` 1 change nothing."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]


def sample(
    logits: Float[Array, "batch vocab"],
    context: Int[Array, "batch keys"],
    context_mask: Bool[Array, "batch keys"],
    keys: Key[Array, " batch"],
    sampling: Sampling,
) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """One token per row, and its log-probability by the model itself (before any setting).

    The order is that of `transformers`: repetition penalty (Keskar et al. 2019, arXiv:1909.05858)
    over the row's context, temperature, top-k, top-p (Holtzman et al. 2020, arXiv:1904.09751).
    Temperature 0 takes the largest logit.
    """
    penalty = sampling.repetition_penalty

    def choose(scores: Float[Array, "batch vocab"]) -> Int[Array, " batch"]:
        scores = lax.cond(
            penalty != 1,
            lambda scores: _penalised(scores, context, context_mask, penalty),
            lambda scores: scores,
            scores,
        )
        return lax.cond(
            sampling.temperature == 0,
            _largest,
            lambda scores: _draw(scores, keys, sampling),
            scores,
        )

    # The commonest choice is on its own: it copies no logits.
    plain = (sampling.temperature == 0) & (penalty == 1)
    tokens = lax.cond(plain, _largest, choose, logits)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)


def _penalised(
    scores: Float[Array, "batch vocab"],
    context: Int[Array, "batch keys"],
    context_mask: Bool[Array, "batch keys"],
    penalty: Float[Array, ""],
) -> Float[Array, "batch vocab"]:
    seen = jnp.take_along_axis(scores, context, axis=-1)
    lower = jnp.where(seen > 0, seen / penalty, seen * penalty)
    nowhere = jnp.where(context_mask, context, scores.shape[-1])
    return scores.at[jnp.arange(len(scores))[:, None], nowhere].set(lower, mode="drop")


def _largest(scores: Float[Array, "batch vocab"]) -> Int[Array, " batch"]:
    """The first of the largest scores; blocks' maxima cost a CPU a tenth of one long argmax."""
    blocks = _in_blocks(scores, -jnp.inf)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return (block * blocks.shape[-1] + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def _in_blocks(
    numbers: Float[Array, "batch vocab"], padding: float
) -> Float[Array, "batch blocks size"]:
    room = -numbers.shape[-1] % _BLOCKS
    padded = jnp.pad(numbers, ((0, 0), (0, room)), constant_values=padding)
    return padded.reshape(len(numbers), _BLOCKS, -1)


def _draw(
    scores: Float[Array, "batch vocab"], keys: Key[Array, " batch"], sampling: Sampling
) -> Int[Array, " batch"]:
    scores = scores / sampling.temperature
    scores = scores - jnp.max(scores, axis=-1, keepdims=True)
    scores = lax.cond(
        sampling.top_k > 0,
        lambda s: _cut(s, jnp.ones_like, sampling.top_k.astype(jnp.float32)),
        lambda s: s,
        scores,
    )
    scores = lax.cond(
        sampling.top_p < 1,
        lambda s: _cut(s, lambda s: jax.nn.softmax(s, axis=-1), sampling.top_p),
        lambda s: s,
        scores,
    )
    uniforms = jax.vmap(jax.random.uniform)(keys)
    return _invert(jnp.exp(scores), uniforms)


def _cut(
    scores: Float[Array, "batch vocab"],
    weigh: Callable[[Float[Array, "batch vocab"]], Float[Array, "batch vocab"]],
    target: Float[Array, ""],
) -> Float[Array, "batch vocab"]:
    """The highest scores that together weigh `target` at least; the others become -inf.

    Scores are at most 0. Equal scores are kept or cut together.
    """
    weights = weigh(scores)
    highest, where = lax.top_k(scores, min(_HIGHEST, scores.shape[-1]))
    total = jnp.cumsum(jnp.take_along_axis(weights, where, axis=-1), axis=-1)
    within = jnp.all(total[:, -1] >= target)
    last = jnp.argmax(total >= target, axis=-1)[:, None]
    low = lax.cond(
        within,
        lambda: jnp.take_along_axis(highest, last, axis=-1)[:, 0],
        lambda: _bisected(scores, weights, target),
    )
    return jnp.where(scores >= low[:, None], scores, -jnp.inf)


def _bisected(
    scores: Float[Array, "batch vocab"],
    weights: Float[Array, "batch vocab"],
    target: Float[Array, ""],
) -> Float[Array, " batch"]:
    """The lowest score that `_cut` keeps, however many are above it."""
    lowest = jnp.min(jnp.where(scores > -jnp.inf, scores, 0.0), axis=-1)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        enough = jnp.sum(jnp.where(scores >= middle[:, None], weights, 0.0), axis=-1) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    return lax.fori_loop(0, _BISECTIONS, halve, (lowest, jnp.zeros_like(lowest)))[0]


def _invert(
    weights: Float[Array, "batch vocab"], uniforms: Float[Array, " batch"]
) -> Int[Array, " batch"]:
    """The token at which the cumulative weight first exceeds `uniforms` of the whole."""
    blocks = _in_blocks(weights, 0.0)
    ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    block, rest = _first_above(ends, uniforms * ends[:, -1])
    inside = jnp.cumsum(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
    token, _ = _first_above(inside, rest)
    return block * blocks.shape[-1] + token


def _first_above(
    ends: Float[Array, "batch n"], targets: Float[Array, " batch"]
) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """The first index whose cumulative weight exceeds the target, and what is left of the target.

    Rounding may leave a target at or above the whole: it is moved just below.
    """
    targets = jnp.minimum(targets, jnp.nextafter(ends[:, -1], 0.0))
    index = jnp.argmax(ends > targets[:, None], axis=-1).astype(jnp.int32)
    before = jnp.take_along_axis(ends, jnp.maximum(index - 1, 0)[:, None], axis=-1)[:, 0]
    return index, targets - jnp.where(index > 0, before, 0.0)
