"""Next-token cross entropy, without ever holding all logits, and with room for a splice."""

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
        return lax.cond(layer == splice_layer, function, lambda _, h: h, args, h)

    h = decoder.normed(config, params, tokens, mask, visit)[:, :-1]
    losses = _cross_entropy(config, params, h.reshape(-1, h.shape[-1]), tokens[:, 1:].reshape(-1))
    return jnp.where(mask[:, 1:] & mask[:, :-1], losses.reshape(h.shape[:2]), 0.0)


def _cross_entropy(
    config: DecoderConfig,
    params: decoder.Params,
    h: Float[Array, "tokens d_model"],
    targets: Int[Array, " tokens"],
) -> Float[Array, " tokens"]:
    """A chunk of tokens at a time; a backward pass makes each chunk's logits again."""
    size = max(1, min(len(h), _LOGITS // config.vocab_size))
    padding = -len(h) % size

    @jax.checkpoint
    def chunk(h: Array, targets: Array) -> Array:
        logits = decoder.unembed(config, params, h)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    chunks = (
        jnp.pad(h, ((0, padding), (0, 0))).reshape(-1, size, h.shape[-1]),
        jnp.pad(targets, (0, padding)).reshape(-1, size),
    )
    return lax.map(lambda xs: chunk(*xs), chunks).reshape(-1)[: len(h)]
