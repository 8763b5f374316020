"""Writing text: one jitted loop with a key-value cache, rows and interventions side by side."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from emojax.errors import UserError
from emojax.lm import decoder, intervene
from emojax.lm.batching import check_rows, pad, padded_length
from emojax.lm.config import DecoderConfig
from emojax.lm.intervene import Intervention
from emojax.lm.model import LanguageModel
from emojax.lm.sampling import Sampling, sample
from emojax.lm.text import tokenize

# Room for new tokens comes in steps of this many, so that other numbers rarely compile again.
_ROOM = 32


@dataclasses.dataclass(frozen=True)
class GenerateSettings:
    """How to write.

    Attributes:
      max_new_tokens: tokens per row, at most.
      temperature: what logits are divided by; 0 takes the likeliest token.
      top_k: how many of the likeliest tokens to choose from; 0 is all.
      top_p: how much probability the likeliest tokens to choose from hold; 1 is all.
      repetition_penalty: divides positive and multiplies negative logits of tokens in the context.
      seed: row i draws from seed + i.
      stop_tokens: ids that end a row; None is the model's own end-of-text tokens.
    """

    max_new_tokens: int = 40
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_tokens: tuple[int, ...] | None = None

    def __post_init__(self):
        """Refuses settings without meaning.

        Raises:
          UserError: the message names the setting.
        """
        allowed = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < np.inf, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty < np.inf, "above 0"),
        }
        for name, (fine, rule) in allowed.items():
            if not fine:
                raise UserError(
                    f"The generation setting {name} is {getattr(self, name)}; make it {rule}."
                )


@dataclasses.dataclass(frozen=True)
class Generation:
    """What was written, one entry per prompt.

    Attributes:
      tokens: new token ids, a stop token included.
      texts: the new tokens as text, without special tokens.
      logprobs: natural log-probability of each new token, by the model with its interventions at
        temperature 1, before penalty and cuts.
    """

    tokens: list[list[int]]
    texts: list[str]
    logprobs: list[Float[np.ndarray, " _"]]


def generate(
    lm: LanguageModel,
    prompts: Sequence[str | Sequence[int]],
    settings: GenerateSettings,
    interventions: Sequence[Intervention] = (),
    seeds: Sequence[int] | None = None,
) -> Generation:
    """Continues every prompt, all in one batch.

    A row's tokens depend on its own prompt, seed and interventions, not on the rows beside it.

    Args:
      lm: the language model.
      prompts: texts (BOS is put before them), or token ids as they are.
      settings: how to write.
      interventions: rows are numbered as the prompts are; generated tokens are those after the
        prompt, which phase "generated" edits as they are read back.
      seeds: one per prompt, instead of `settings.seed` + its number.

    Raises:
      UserError: there is no prompt, one is empty or too long, or an intervention does not fit.
    """
    if not prompts:
        raise UserError("There is no prompt to continue; give at least one.")
    rows = [tokenize(lm, [p])[0] if isinstance(p, str) else list(p) for p in prompts]
    check_rows(lm.config, rows, room=settings.max_new_tokens)
    prepared = intervene.prepare(lm.config, interventions, len(rows))
    if seeds is None:
        seeds = [settings.seed + i for i in range(len(rows))]
    if len(seeds) != len(rows):
        raise UserError(f"There are {len(seeds)} seeds for {len(rows)} prompts; give one for each.")
    stop = lm.config.eos_token_ids if settings.stop_tokens is None else settings.stop_tokens
    # -1 is no token: models without a stop token, or with several, compile alike.
    stops = np.full(-(-max(len(stop), 1) // 8) * 8, -1, np.int32)
    stops[: len(stop)] = stop

    tokens, mask = pad(rows, len(rows), padded_length(max(map(len, rows))))
    new, logprobs, counts = _generate(
        lm.config,
        -(-settings.max_new_tokens // _ROOM) * _ROOM,
        lm.params,
        jnp.asarray(tokens),
        jnp.asarray(mask),
        jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)),
        jnp.asarray(settings.max_new_tokens),
        jnp.asarray(stops),
        Sampling(
            temperature=jnp.float32(settings.temperature),
            top_k=jnp.int32(settings.top_k),
            top_p=jnp.float32(settings.top_p),
            repetition_penalty=jnp.float32(settings.repetition_penalty),
        ),
        prepared,
    )
    new, logprobs, counts = np.asarray(new), np.asarray(logprobs), np.asarray(counts)
    written = [row[:n].tolist() for row, n in zip(new, counts, strict=True)]
    return Generation(
        tokens=written,
        texts=[lm.tokenizer.decode(row, skip_special_tokens=True) for row in written],
        logprobs=[row[:n] for row, n in zip(logprobs, counts, strict=True)],
    )


class Cache(NamedTuple):
    """Keys (turned by their positions) and values of every layer; slots are prompt, then new."""

    k: Float[Array, "layers batch slots kv_heads head_dim"]
    v: Float[Array, "layers batch slots kv_heads head_dim"]


class _State(NamedTuple):
    step: Int[Array, ""]
    h: Float[Array, "batch d_model"]  # what the unembedding reads next
    tokens: Int[Array, "batch slots"]
    logprobs: Float[Array, "batch room"]
    done: Bool[Array, " batch"]
    counts: Int[Array, " batch"]
    cache: Cache


def prefill(
    config: DecoderConfig,
    params: decoder.Params,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    slots: int,
    interventions: tuple[Intervention, ...] = (),
) -> tuple[Float[Array, "batch d_model"], Cache]:
    """Reads the prompts: what the unembedding reads at each row's last token, and the cache.

    `interventions` have been through `intervene.prepare`. Padding may be on either side.
    """
    positions = decoder.positions_of(mask)
    context = decoder.context_of(config, positions, positions, mask)
    last = jnp.max(jnp.where(mask, jnp.arange(mask.shape[1]), 0), axis=1)
    shape = (config.n_layers, len(tokens), slots, config.n_kv_heads, config.head_dim)
    h = decoder.embed(config, params, tokens, positions)
    h, cache = _through_layers(
        config,
        params,
        h,
        Cache(jnp.zeros(shape, h.dtype), jnp.zeros(shape, h.dtype)),
        jnp.asarray(0),
        tokens.shape[1],
        context,
        jnp.zeros_like(mask),
        interventions,
    )
    h, at = (jnp.take_along_axis(x, last[:, None, None], 1) for x in (h, positions[..., None]))
    return _final(config, params, h, at[..., 0], jnp.zeros((len(h), 1), bool), interventions), cache


def decode_step(
    config: DecoderConfig,
    params: decoder.Params,
    tokens: Int[Array, " batch"],
    positions: Int[Array, " batch"],
    key_positions: Int[Array, "batch slots"],
    key_mask: Bool[Array, "batch slots"],
    slot: Int[Array, ""],
    cache: Cache,
    interventions: tuple[Intervention, ...] = (),
) -> tuple[Float[Array, "batch d_model"], Cache]:
    """Reads one more token per row, into the cache's `slot`; else as `prefill`.

    `key_positions` and `key_mask` describe all slots, the new one included.
    """
    context = decoder.context_of(config, positions[:, None], key_positions, key_mask)
    generated = jnp.ones((len(tokens), 1), bool)
    h = decoder.embed(config, params, tokens[:, None], positions[:, None])
    slots = cache.k.shape[2]
    h, cache = _through_layers(
        config, params, h, cache, slot, slots, context, generated, interventions
    )
    return _final(config, params, h, positions[:, None], generated, interventions), cache


def _through_layers(
    config: DecoderConfig,
    params: decoder.Params,
    h: Float[Array, "batch time d_model"],
    cache: Cache,
    slot: Int[Array, ""],
    keys: int,
    context: decoder.Context,
    generated: Bool[Array, "batch time"],
    interventions: tuple[Intervention, ...],
) -> tuple[Float[Array, "batch time d_model"], Cache]:
    """All layers; new keys go to `slot` and on, and the first `keys` slots are attended to."""

    def visit(site: str, layer: Array, h: Array) -> Array:
        return intervene.apply(interventions, site, layer, h, context.positions, generated)

    def step(layer: Array, p: decoder.Params, carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
        h, cache = carry
        kept = cache

        def store(layer: Array, k: Array, v: Array) -> tuple[Array, Array]:
            nonlocal kept
            kept = Cache(*(_put(a, new, layer, slot) for a, new in zip(cache, (k, v), strict=True)))
            if k.shape[1] == keys:
                return k, v
            return kept.k[layer][:, :keys], kept.v[layer][:, :keys]

        h = decoder.block(config, p, layer, h, context, visit, store)
        return h, kept

    return decoder.scan_layers(params, (h, cache), step)


def _put(
    cache: Float[Array, "layers batch slots kv_heads head_dim"],
    new: Float[Array, "batch time kv_heads head_dim"],
    layer: Int[Array, ""],
    slot: Int[Array, ""],
) -> Float[Array, "layers batch slots kv_heads head_dim"]:
    return lax.dynamic_update_slice(cache, new[None], (layer, 0, slot, 0, 0))


def _final(
    config: DecoderConfig,
    params: decoder.Params,
    h: Float[Array, "batch 1 d_model"],
    positions: Int[Array, "batch 1"],
    generated: Bool[Array, "batch 1"],
    interventions: tuple[Intervention, ...],
) -> Float[Array, "batch d_model"]:
    last = jnp.asarray(config.n_layers - 1)
    h = decoder.final_norm(config, params, h)
    return intervene.apply(interventions, "final_norm", last, h, positions, generated)[:, 0]


@partial(jax.jit, static_argnums=(0, 1))
def _generate(
    config: DecoderConfig,
    room: int,
    params: decoder.Params,
    prompts: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    keys: Key[Array, " batch"],
    max_new: Int[Array, ""],
    stop: Int[Array, " stops"],
    sampling: Sampling,
    interventions: tuple[Intervention, ...],
) -> tuple[Int[Array, "batch room"], Float[Array, "batch room"], Int[Array, " batch"]]:
    """New tokens, their log-probabilities, and how many of them each row has."""
    batch, time = prompts.shape
    lengths = jnp.sum(mask, axis=1)
    # The slots' positions are known beforehand: the prompt's own, then on from its length.
    new_positions = lengths[:, None] + jnp.arange(room)
    key_positions = jnp.concatenate([decoder.positions_of(mask), new_positions], axis=1)

    def known(step: Int[Array, ""]) -> Bool[Array, "batch slots"]:
        new = jnp.broadcast_to(jnp.arange(room) < step, (batch, room))
        return jnp.concatenate([mask, new], axis=1)

    def go_on(state: _State) -> Bool[Array, ""]:
        return (state.step < max_new) & ~jnp.all(state.done)

    def write(state: _State) -> _State:
        step = state.step
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        logits = decoder.unembed(config, params, state.h)
        token, logprob = sample(logits, state.tokens, known(step), step_keys, sampling)
        token = jnp.where(state.done, 0, token)
        tokens = lax.dynamic_update_slice(state.tokens, token[:, None], (0, time + step))
        logprobs = lax.dynamic_update_slice(state.logprobs, logprob[:, None], (0, step))
        h, cache = decode_step(
            config,
            params,
            token,
            lengths + step,
            key_positions,
            known(step + 1),
            time + step,
            state.cache,
            interventions,
        )
        return _State(
            step=step + 1,
            h=h,
            tokens=tokens,
            logprobs=logprobs,
            done=state.done | jnp.any(token[:, None] == stop, axis=1),
            counts=state.counts + ~state.done,
            cache=cache,
        )

    h, cache = prefill(config, params, prompts, mask, time + room, interventions)
    state = _State(
        step=jnp.asarray(0),
        h=h,
        tokens=jnp.pad(prompts, ((0, 0), (0, room))),
        logprobs=jnp.zeros((batch, room)),
        done=jnp.zeros(batch, bool),
        counts=jnp.zeros(batch, jnp.int32),
        cache=cache,
    )
    state = lax.while_loop(go_on, write, state)
    return state.tokens[:, time:], state.logprobs, state.counts
