"""Writing text: one jitted loop with a key-value cache, rows and interventions side by side."""

import dataclasses
import numbers
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from emojax.errors import UserError
from emojax.lm import decoder, intervene, kv_cache, sharding
from emojax.lm.batching import check_rows, pad, padded_length
from emojax.lm.config import DecoderConfig
from emojax.lm.intervene import Intervention, Prepared
from emojax.lm.intervention_checks import prepare
from emojax.lm.kv_cache import Cache
from emojax.lm.model import LanguageModel
from emojax.lm.sampling import Sampling, sample
from emojax.lm.text import Prompts, prompt_rows

# Room for new tokens comes in steps of this many, so that other numbers rarely compile again.
_ROOM = 32
# A seed is 32 bits.
_SEEDS = 2**32


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
        _check_types(self)
        allowed = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < np.inf, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty < np.inf, "above 0"),
            "seed": (0 <= self.seed < _SEEDS, f"at least 0 and at most {_SEEDS - 1}"),
        }
        for name, (fine, rule) in allowed.items():
            if not fine:
                raise UserError(
                    f"The generation setting {name} is {getattr(self, name)}; make it {rule}."
                )


def _check_types(settings: GenerateSettings) -> None:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "stop_tokens":
            fine = value is None or (
                isinstance(value, tuple | list)
                and all(isinstance(token, numbers.Integral) for token in value)
            )
            rule = "a tuple of token ids, such as (1,), or None"
        else:
            whole = isinstance(field.default, int)
            fine = isinstance(value, numbers.Integral if whole else numbers.Real)
            rule = "a whole number" if whole else "a number"
        if not fine:
            raise UserError(f"The generation setting {field.name} is {value!r}; make it {rule}.")


# What is written by where nothing is said of it.
DEFAULT = GenerateSettings()


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
    prompts: Prompts,
    settings: GenerateSettings = DEFAULT,
    interventions: Sequence[Intervention] = (),
    seeds: Sequence[int] | None = None,
) -> Generation:
    """Continues every prompt, all in one batch.

    A row's tokens depend on its own prompt, seed and interventions, not on the rows beside it, but
    for the ropes "dynamic" and "longrope", which go by the longest row (`rope`).

    Args:
      lm: the language model.
      prompts: texts (which `text.tokenize` begins), or token ids as they are (`chat.chat_rows`).
      settings: how to write; by default `GenerateSettings()`.
      interventions: rows are numbered as the prompts are; generated tokens are those after the
        prompt, which phase "generated" edits as they are read back.
      seeds: one per prompt, instead of `settings.seed` + its number.

    Raises:
      UserError: there is no prompt, one is empty or too long, an intervention does not fit, or a
        seed is not one of 32 bits.
    """
    tokens, mask, room, run = begin(lm, prompts, settings, interventions, seeds)
    most = jnp.asarray(settings.max_new_tokens)
    found = _generate(
        lm.config, room, lm.params, decoder.by_layer(lm.params), tokens, mask, most, run
    )
    new, logprobs, counts = (np.asarray(array)[: len(prompts)] for array in found)
    written = [row[:n].tolist() for row, n in zip(new, counts, strict=True)]
    return Generation(
        tokens=written,
        texts=[lm.tokenizer.decode(row, skip_special_tokens=True) for row in written],
        logprobs=[row[:n] for row, n in zip(logprobs, counts, strict=True)],
    )


def begin(
    lm: LanguageModel,
    prompts: Prompts,
    settings: GenerateSettings,
    interventions: Sequence[Intervention],
    seeds: Sequence[int] | None,
) -> tuple[Int[Array, "batch time"], Bool[Array, "batch time"], int, "Run"]:
    """Checks what `generate` was given; the prompts, their mask, the room for new tokens, the rest.

    Over a mesh there may be more rows than prompts (`sharding.spread`).

    Raises:
      UserError: as `generate`.
    """
    _check_settings(lm.config, settings)
    rows = prompt_rows(lm, prompts)
    check_rows(lm.config, rows, room=settings.max_new_tokens)
    time = padded_length(max(map(len, rows)))
    room = -(-settings.max_new_tokens // _ROOM) * _ROOM
    prepared = prepare(lm.config, interventions, list(map(len, rows)), time + room)
    if seeds is None:
        seeds = [settings.seed + i for i in range(len(rows))]
    seeds = checked_seeds(seeds, len(rows))
    stop = lm.config.eos_token_ids if settings.stop_tokens is None else settings.stop_tokens
    # -1 is no token: models without a stop token, or with several, compile alike.
    stops = np.full(-(-max(len(stop), 1) // 8) * 8, -1, np.int32)
    stops[: len(stop)] = stop
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    prepared, (tokens, mask, keys) = sharding.spread(
        lm.params, prepared, *pad(rows, len(rows), time), keys
    )
    run = Run(
        keys=keys,
        stop=jnp.asarray(stops),
        sampling=Sampling(
            temperature=jnp.float32(settings.temperature),
            top_k=jnp.int32(settings.top_k),
            top_p=jnp.float32(settings.top_p),
            repetition_penalty=jnp.float32(settings.repetition_penalty),
        ),
        interventions=prepared,
    )
    return tokens, mask, room, run


def checked_seeds(seeds: Any, rows: int) -> list[int]:
    """One seed for each of so many rows.

    Raises:
      UserError: they are not whole numbers, not as many, or one is not one of 32 bits.
    """
    try:
        found = [operator.index(seed) for seed in seeds]
    except TypeError:
        raise UserError(
            f"The seeds are {seeds!r:.60}; give a whole number for each prompt."
        ) from None
    if len(found) != rows:
        raise UserError(f"There are {len(found)} seeds for {rows} prompts; give one for each.")
    if outside := [seed for seed in found if not 0 <= seed < _SEEDS]:
        raise UserError(
            f"A row's seed is {outside[0]}; make every one at least 0 and at most {_SEEDS - 1}."
        )
    return found


def _check_settings(config: DecoderConfig, settings: Any) -> None:
    if not isinstance(settings, GenerateSettings):
        raise UserError(
            f"The settings are a {type(settings).__name__}; give GenerateSettings(...), and "
            "interventions by their name: interventions=[...]."
        )
    outside = [t for t in settings.stop_tokens or () if not 0 <= t < config.vocab_size]
    if outside:
        raise UserError(
            f"The stop token {outside[0]} is outside 0 to {config.vocab_size - 1}; "
            "use the model's own tokenizer."
        )


class Run(NamedTuple):
    """What stays the same while rows are written."""

    keys: Key[Array, " batch"]
    stop: Int[Array, " stops"]
    sampling: Sampling
    interventions: tuple[Prepared, ...]


class State(NamedTuple):
    """What has been written: slots of `tokens` are the prompt's, padded on the right, then new."""

    step: Int[Array, ""]  # how many tokens have been chosen
    token: Int[Array, " batch"]  # the last of them, which the cache does not hold yet
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
    interventions: tuple[Prepared, ...] = (),
) -> tuple[Float[Array, "batch d_model"], Cache]:
    """Reads the prompts: what the unembedding reads at each row's last token, and the cache.

    `interventions` have been through `intervention_checks.prepare`. Padding may be on either side;
    `slots` is how many tokens the cache has room for, padding included.
    """
    time = tokens.shape[1]
    lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
    # In the cache rows end together, so that slots apart are tokens apart.
    first = jnp.argmax(mask, axis=1)
    order = (jnp.arange(time) - time + (lengths + first)[:, None]) % time
    tokens = jnp.take_along_axis(tokens, order, axis=1)
    mask = jnp.arange(time) >= time - lengths[:, None]
    positions = decoder.positions_of(mask)
    context = decoder.context_of(config, positions, positions, mask)
    h = decoder.embed(config, params, tokens, positions)
    cache = kv_cache.empty(config, lengths, slots, h.dtype)
    h, cache = _through_layers(
        config, params, h, cache, time, context, jnp.zeros_like(mask), interventions
    )
    cache = cache._replace(used=jnp.asarray(time, jnp.int32))
    last = positions[:, -1:]
    return _final(
        config, params, h[:, -1:], last, jnp.zeros_like(mask[:, :1]), interventions
    ), cache


def decode_step(
    config: DecoderConfig,
    params: decoder.Params,
    tokens: Int[Array, " batch"],
    slots: int,
    cache: Cache,
    interventions: tuple[Prepared, ...] = (),
) -> tuple[Float[Array, "batch d_model"], Cache]:
    """Reads one more token per row into the cache, made with `slots`; else as `prefill`."""
    used, lengths = cache.used + 1, cache.lengths + 1
    key_positions = jnp.arange(slots) - used + lengths[:, None]
    key_mask = (key_positions >= 0) & (jnp.arange(slots) < used)
    positions = cache.lengths[:, None]
    context = decoder.context_of(config, positions, key_positions, key_mask)
    generated = jnp.ones_like(positions, bool)
    h = decoder.embed(config, params, tokens[:, None], positions)
    h, cache = _through_layers(config, params, h, cache, slots, context, generated, interventions)
    cache = cache._replace(used=used, lengths=lengths)
    return _final(config, params, h, positions, generated, interventions), cache


def _through_layers(
    config: DecoderConfig,
    params: decoder.Params,
    h: Float[Array, "batch time d_model"],
    cache: Cache,
    slots: int,
    context: decoder.Context,
    generated: Bool[Array, "batch time"],
    interventions: tuple[Prepared, ...],
) -> tuple[Float[Array, "batch time d_model"], Cache]:
    """All layers; new keys go to the cache, and if they are not all of `slots` come from there."""

    def visit(site: str, layer: Array, h: Array) -> Array:
        return intervene.apply(interventions, site, layer, h, context.positions, generated)

    def step(layer: Array, p: decoder.Params, carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
        h, cache = carry
        kept = cache

        def store(layer: Array, k: Array, v: Array) -> tuple[Array, Array]:
            nonlocal kept
            kept = kv_cache.put(config, cache, layer, k, v)
            return (k, v) if k.shape[2] == slots else kv_cache.get(config, kept, layer, slots)

        h = decoder.block(config, p, layer, h, context, visit, store)
        return h, kept

    return decoder.scan_layers(params, (h, cache), step)


def _final(
    config: DecoderConfig,
    params: decoder.Params,
    h: Float[Array, "batch 1 d_model"],
    positions: Int[Array, "batch 1"],
    generated: Bool[Array, "batch 1"],
    interventions: tuple[Prepared, ...],
) -> Float[Array, "batch d_model"]:
    last = jnp.asarray(config.n_layers - 1)
    h = decoder.final_norm(config, params, h)
    return intervene.apply(interventions, "final_norm", last, h, positions, generated)[:, 0]


def first(
    config: DecoderConfig,
    room: int,
    params: decoder.Params,
    prompts: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    run: Run,
) -> State:
    """The prompts, padded on the right, and the first new token, with room for more."""
    batch, time = prompts.shape
    h, cache = prefill(config, params, prompts, mask, time + room, run.interventions)
    state = State(
        step=jnp.asarray(0),
        token=jnp.zeros(batch, jnp.int32),
        tokens=jnp.pad(prompts, ((0, 0), (0, room))),
        logprobs=jnp.zeros((batch, room)),
        done=jnp.zeros(batch, bool),
        counts=jnp.zeros(batch, jnp.int32),
        cache=cache,
    )
    return _choose(config, params, mask, run, state, h)


def write(
    config: DecoderConfig,
    params: decoder.Params,
    mask: Bool[Array, "batch time"],
    run: Run,
    state: State,
) -> State:
    """One more token per row."""
    slots = state.tokens.shape[1]
    h, cache = decode_step(config, params, state.token, slots, state.cache, run.interventions)
    return _choose(config, params, mask, run, state._replace(cache=cache), h)


def _choose(
    config: DecoderConfig,
    params: decoder.Params,
    mask: Bool[Array, "batch time"],
    run: Run,
    state: State,
    h: Float[Array, "batch d_model"],
) -> State:
    """The state with one more token per row, from what the unembedding reads."""
    step, (batch, time) = state.step, mask.shape
    slots = state.tokens.shape[1]
    new = jnp.broadcast_to(jnp.arange(slots - time) < step, (batch, slots - time))
    known = jnp.concatenate([mask, new], axis=1)
    keys = jax.vmap(jax.random.fold_in, (0, None))(run.keys, step)
    logits = decoder.unembed(config, params, h)
    token, logprob = sample(logits, state.tokens, known, keys, run.sampling)
    token = jnp.where(state.done, 0, token)
    return state._replace(
        step=step + 1,
        token=token,
        tokens=lax.dynamic_update_slice(state.tokens, token[:, None], (0, time + step)),
        logprobs=lax.dynamic_update_slice(state.logprobs, logprob[:, None], (0, step)),
        done=state.done | jnp.any(token[:, None] == run.stop, axis=1),
        counts=state.counts + ~state.done,
    )


@partial(jax.jit, static_argnums=(0, 1))
def _generate(
    config: DecoderConfig,
    room: int,
    params: decoder.Params,
    step_params: decoder.Params,
    prompts: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    max_new: Int[Array, ""],
    run: Run,
) -> tuple[Int[Array, "batch room"], Float[Array, "batch room"], Int[Array, " batch"]]:
    """New tokens, their log-probabilities, and how many of them each row has.

    The prompts go through `params`; the steps, which are many, through the same as `by_layer`.
    """

    def go_on(state: State) -> Bool[Array, ""]:
        return (state.step < max_new) & ~jnp.all(state.done)

    state = lax.while_loop(
        go_on,
        partial(write, config, step_params, mask, run),
        first(config, room, params, prompts, mask, run),
    )
    return state.tokens[:, prompts.shape[1] :], state.logprobs, state.counts
