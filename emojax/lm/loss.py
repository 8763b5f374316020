"""What a splice or an intervention costs: next-token cross entropy, KL from the clean model.

All logits are never held at once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from emojax.lm import decoder, intervene
from emojax.lm.batching import check_tokens
from emojax.lm.capture import Tap, check_taps
from emojax.lm.config import DecoderConfig
from emojax.lm.intervene import Intervention, Prepared
from emojax.lm.intervention_checks import prepare

# Logits in memory at once: 128 MiB of float32.
_LOGITS = 2**25


class Splice(NamedTuple):
    """A function put into the pass: at `tap`, `h` becomes `function(args, h)`.

    Attributes:
      tap: where.
      function: pure, `[batch, time, d_model]` to the same shape. It is part of what is compiled:
        give one and the same function with different `args`, not a new lambda each time.
      args: a pytree of arrays.
    """

    tap: Tap
    function: Callable[
        [Any, Float[Array, "batch time d_model"]], Float[Array, "batch time d_model"]
    ]
    args: Any


def next_token_loss(
    config: DecoderConfig,
    params: decoder.Params,
    tokens: Int[Any, "batch time"],
    mask: Bool[Any, "batch time"],
    interventions: Sequence[Intervention] = (),
    splice: Splice | None = None,
) -> Float[Array, "batch predictions"]:
    """Cross entropy, in nats, of each token given those before it: `[batch, time - 1]`.

    Entry t is the loss of token t + 1; it is 0 where token t or t + 1 is padding, so divide sums by
    the number of pairs of real tokens. Gradients flow to parameters, interventions and
    `splice.args`.

    Raises:
      UserError: a row is empty or too long, or a splice or intervention does not fit the model.
    """
    check_tokens(config, tokens, mask)
    prepared = prepare(config, interventions, mask.sum(axis=1), tokens.shape[1])
    if splice is not None:
        check_taps(config, [splice.tap])
    site = None if splice is None else splice.tap.site
    function = None if splice is None else splice.function
    return _loss(
        config,
        site,
        function,
        params,
        jnp.asarray(tokens),
        jnp.asarray(mask),
        prepared,
        jnp.asarray(0 if splice is None else splice.tap.layer),
        None if splice is None else splice.args,
    )


def divergence(
    config: DecoderConfig,
    params: decoder.Params,
    tokens: Int[Any, "batch time"],
    mask: Bool[Any, "batch time"],
    splice: Splice,
) -> Float[Array, "batch predictions"]:
    """KL(clean ‖ spliced), in nats, of each next token given those before it; 0 at padding.

    Raises:
      UserError: a row is empty or too long, or the splice does not fit the model.
    """
    check_tokens(config, tokens, mask)
    check_taps(config, [splice.tap])
    return _divergence(
        config,
        splice.tap.site,
        splice.function,
        params,
        jnp.asarray(tokens),
        jnp.asarray(mask),
        jnp.asarray(splice.tap.layer),
        splice.args,
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def _loss(
    config: DecoderConfig,
    splice_site: str | None,
    function: Callable[[Any, Array], Array] | None,
    params: decoder.Params,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    interventions: tuple[Prepared, ...],
    splice_layer: Int[Array, ""],
    args: Any,
) -> Float[Array, "batch predictions"]:
    positions = decoder.positions_of(mask)

    def visit(site: str, layer: Array, h: Array) -> Array:
        h = intervene.apply(interventions, site, layer, h, positions, jnp.zeros_like(mask))
        if function is None or site != splice_site:
            return h
        return _spliced(function, layer == splice_layer, args, h)

    # A backward pass makes each chunk's logits again.
    @jax.checkpoint
    def chunk(h: Array, targets: Array) -> Array:
        logits = decoder.unembed(config, params, h)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    h = _states(config, params, tokens, mask, visit)
    return _of_pairs(
        mask, _in_chunks(_LOGITS // config.vocab_size, chunk, h, tokens[:, 1:].ravel())
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def _divergence(
    config: DecoderConfig,
    splice_site: str,
    function: Callable[[Any, Array], Array],
    params: decoder.Params,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    splice_layer: Int[Array, ""],
    args: Any,
) -> Float[Array, "batch predictions"]:
    def visit(site: str, layer: Array, h: Array) -> Array:
        return _spliced(function, layer == splice_layer, args, h) if site == splice_site else h

    def chunk(*h: Array) -> Array:
        p, q = (jax.nn.log_softmax(decoder.unembed(config, params, x)) for x in h)
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    both = [
        _states(config, params, tokens, mask, through)
        for through in (lambda site, layer, h: h, visit)
    ]
    # The logits of two models are held, so half as many tokens.
    return _of_pairs(mask, _in_chunks(_LOGITS // config.vocab_size // 2, chunk, *both))


def _spliced(function: Callable[[Any, Array], Array], here: Array, args: Any, h: Array) -> Array:
    return lax.cond(here, function, lambda _, h: h, args, h)


def _states(
    config: DecoderConfig, params: decoder.Params, tokens: Array, mask: Array, visit: Callable
) -> Float[Array, "predictions d_model"]:
    """What the next tokens are predicted from, all rows in one."""
    h = decoder.normed(config, params, tokens, mask, visit)[:, :-1]
    return h.reshape(-1, h.shape[-1])


def _of_pairs(
    mask: Bool[Array, "batch time"], values: Float[Array, " predictions"]
) -> Float[Array, "batch time-1"]:
    """Rows again, with 0 where one of the two tokens is padding."""
    return jnp.where(mask[:, 1:] & mask[:, :-1], values.reshape(len(mask), -1), 0.0)


def _in_chunks(size: int, chunk: Callable[..., Array], *arrays: Array) -> Array:
    """`chunk` of so many tokens at a time, whose logits are all that is in memory."""
    count = len(arrays[0])
    size = max(1, min(count, size))

    def cut(array: Array) -> Array:
        padding = [(0, -count % size)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(-1, size, *array.shape[1:])

    return lax.map(lambda xs: chunk(*xs), tuple(map(cut, arrays))).reshape(-1)[:count]
