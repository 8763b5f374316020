"""How far a spliced model's next-token distributions are from the clean one's."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from emojax.lm import decoder
from emojax.lm.config import DecoderConfig
from emojax.lm.loss import Splice

# Logits of each of the two models in memory at once: 64 MiB of float32.
_LOGITS = 2**24


def divergence(
    config: DecoderConfig,
    params: decoder.Params,
    tokens: Int[Any, "batch time"],
    mask: Bool[Any, "batch time"],
    splice: Splice,
) -> Float[Array, "batch predictions"]:
    """KL(clean ‖ spliced), in nats, of each next token given those before it; 0 at padding."""
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


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _divergence(config, site, function, params, tokens, mask, at, args):
    def splice(where: str, layer: Array, h: Array) -> Array:
        if where != site:
            return h
        return lax.cond(layer == at, function, lambda _, h: h, args, h)

    def states(visit) -> Array:
        h = decoder.normed(config, params, tokens, mask, visit)[:, :-1]
        return h.reshape(-1, h.shape[-1])

    clean, spliced = states(lambda where, layer, h: h), states(splice)
    size = max(1, min(len(clean), _LOGITS // config.vocab_size))

    def chunk(pair: tuple[Array, Array]) -> Array:
        p, q = (jax.nn.log_softmax(decoder.unembed(config, params, h)) for h in pair)
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    padded = [
        jnp.pad(h, ((0, -len(h) % size), (0, 0))).reshape(-1, size, h.shape[-1])
        for h in (clean, spliced)
    ]
    kl = lax.map(chunk, tuple(padded)).reshape(-1)[: len(clean)]
    return jnp.where(mask[:, 1:] & mask[:, :-1], kl.reshape(tokens.shape[0], -1), 0.0)
