"""Reading activations: jitted, only as deep as asked, without the unembedding.

Which layers are read is data, so other layers do not compile again, and memory does not grow with
the layers that are not asked for. `run_with_cache` is the way in for a notebook.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from emojax.errors import UserError
from emojax.lm import decoder, intervene, sharding
from emojax.lm.batching import Batch, batches, check_rows, check_tokens
from emojax.lm.config import DecoderConfig
from emojax.lm.intervene import Intervention, Prepared
from emojax.lm.intervention_checks import check, check_place, prepare
from emojax.lm.model import LanguageModel

_BATCH_TOKENS = 2048
# Of a batch, what a CPU takes through a layer at once.
_PART_TOKENS = 512
# More parts than these make a part larger, since each is compiled.
_MOST_PARTS = 8


class Tap(NamedTuple):
    """Where to read: a layer, from 0, and one of `decoder.SITES`."""

    layer: int
    site: str = "resid_post"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activations:
    """What one tap read of some tokens, padding removed.

    Attributes:
      values: `[tokens, width]`, as wide as the site (`decoder.site_width`).
      token_ids: `[tokens]`.
      positions: `[tokens]`, each token's number in its row, from 0.
      rows: `[tokens]`, the number of the row in the list that was asked for.
    """

    values: Float[np.ndarray, "tokens width"]
    token_ids: Int[np.ndarray, " tokens"]
    positions: Int[np.ndarray, " tokens"]
    rows: Int[np.ndarray, " tokens"]


def capture(
    config: DecoderConfig,
    params: decoder.Params,
    tokens: Int[Any, "batch time"],
    mask: Bool[Any, "batch time"],
    taps: Sequence[Tap],
    interventions: Sequence[Intervention] = (),
) -> dict[Tap, Float[Array, "batch time _"]]:
    """The activations at every tap, from a pass that stops after the last layer asked for.

    Where it stops is data, which reverse-mode differentiation does not allow. With `final_norm` of
    the last layer among the taps every layer runs, and `jax.grad` goes through it: to the
    parameters and to the numbers of interventions. `run_with_cache` always reads it.

    Args:
      config: the decoder's traits.
      params: its parameters.
      tokens: token ids, padded on either side.
      mask: True where a token is real; values at padding have no meaning.
      taps: what to read, in any order; a tap reads what interventions at its site left.
      interventions: as `intervene.direction` and its neighbours make them.

    Raises:
      UserError: a tap or an intervention does not fit the model, a row is empty or longer than the
        model's context, or a token id is not in the vocabulary.
    """
    check_taps(config, taps)
    check_tokens(config, tokens, mask)
    prepared = prepare(config, interventions, mask.sum(axis=1), tokens.shape[1])
    return _dispatch(config, params, tokens, mask, taps, prepared)


def stream(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    taps: Sequence[Tap],
    batch_tokens: int = _BATCH_TOKENS,
    label: str | None = None,
    interventions: Sequence[Intervention] = (),
) -> Iterator[dict[Tap, Activations]]:
    """The activations of rows of tokens, batch by batch, rows of a length together.

    Args:
      lm: the language model.
      rows: token ids, of any lengths.
      taps: what to read.
      batch_tokens: how many tokens, padding included, a pass takes (one row at least).
      label: what the progress bar says; without it there is none.
      interventions: as in `capture`; what they give per row is in the order of `rows`.

    Raises:
      UserError: as `capture`, or `batch_tokens` is no number of tokens.
    """
    check_taps(lm.config, taps)
    check_rows(lm.config, rows)
    check(lm.config, interventions, list(map(len, rows)))
    if not isinstance(batch_tokens, int | np.integer) or batch_tokens < 1:
        raise UserError(
            f"A pass of capture.stream should take {batch_tokens!r} tokens; give batch_tokens as a "
            "whole number from 1."
        )
    for batch, read in _passes(lm, rows, taps, batch_tokens, label, interventions):
        real = batch.mask
        where = np.nonzero(real)
        ids = batch.tokens[real]
        positions = (np.cumsum(real, axis=1) - 1)[real].astype(np.int32)
        numbers = batch.rows[where[0]]
        yield {
            tap: Activations(np.asarray(values)[real], ids, positions, numbers)
            for tap, values in read.items()
        }


@overload
def last_token(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    taps: Tap,
    label: str | None = None,
    done: Callable[[int], object] | None = None,
    interventions: Sequence[Intervention] = (),
) -> Float[np.ndarray, "rows width"]: ...
@overload
def last_token(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    taps: list[Tap],
    label: str | None = None,
    done: Callable[[int], object] | None = None,
    interventions: Sequence[Intervention] = (),
) -> dict[Tap, Float[np.ndarray, "rows _"]]: ...
def last_token(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    taps: Tap | list[Tap],
    label: str | None = None,
    done: Callable[[int], object] | None = None,
    interventions: Sequence[Intervention] = (),
) -> Float[np.ndarray, "rows width"] | dict[Tap, Float[np.ndarray, "rows _"]]:
    """The activation of each row's last token, in the order of the rows, as float32.

    Args:
      lm: the language model.
      rows: token ids, of any lengths.
      taps: one tap, which gives an array, or a list of taps, which gives a dictionary.
      label: what the progress bar says; without it there is none.
      done: told after every batch how many rows were read, for a bar of the caller's own.
      interventions: as in `capture`; what they give per row is in the order of `rows`.

    Raises:
      UserError: as `capture`.
    """
    wanted = [taps] if isinstance(taps, Tap) else taps
    check_taps(lm.config, wanted)
    check_rows(lm.config, rows)
    check(lm.config, interventions, list(map(len, rows)))
    widths = {tap: decoder.site_width(lm.config, tap.site) for tap in wanted}
    found = {tap: np.zeros((len(rows), width), np.float32) for tap, width in widths.items()}
    for batch, read in _passes(lm, rows, wanted, _BATCH_TOKENS, label, interventions):
        last = np.maximum(batch.mask.sum(axis=1) - 1, 0)[: len(batch.rows)]
        for tap, values in read.items():
            found[tap][batch.rows] = np.asarray(values)[np.arange(len(last)), last]
        if done is not None:
            done(len(batch.rows))
    return found[taps] if isinstance(taps, Tap) else found


def check_taps(config: DecoderConfig, taps: Any) -> None:
    """Refuses taps where the model has nothing to read.

    Raises:
      UserError: there is no tap, one stands alone or is none, or its site or layer does not exist.
    """
    check_tap_list(taps)
    if not taps:
        raise UserError("No tap was given to capture; name at least one layer and site.")
    for tap in taps:
        if not isinstance(tap, Tap):
            raise UserError(
                f"{tap!r:.80} among the taps is no Tap; write it as Tap(9, 'resid_post'), with the "
                "layer first."
            )
        check_place(config, tap.site, tap.layer, "A tap")


def check_tap_list(taps: Any) -> None:
    """Refuses one tap where a list of them is meant.

    Raises:
      UserError: the message says what to write.
    """
    if isinstance(taps, str | Tap):
        raise UserError(f"{taps!r:.80} is a single tap where a list is needed; put it in brackets.")


def _passes(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    taps: Sequence[Tap],
    batch_tokens: int,
    label: str | None,
    interventions: Sequence[Intervention],
) -> Iterator[tuple[Batch, dict[Tap, Array]]]:
    """Each batch with what the taps read; the next one is under way while one is looked at."""
    under_way: tuple[Batch, dict[Tap, Array]] | None = None
    with tqdm(
        total=sum(map(len, rows)), desc=label, unit="token", unit_scale=True, disable=label is None
    ) as bar:
        for batch in batches(rows, batch_tokens):
            # Rows that only fill the batch up get what is meant for its first.
            numbers = np.full(len(batch.mask), batch.rows[0])
            numbers[: len(batch.rows)] = batch.rows
            prepared = prepare(
                lm.config,
                intervene.of_rows(interventions, numbers),
                batch.mask.sum(axis=1),
                batch.mask.shape[1],
            )
            read = _dispatch(lm.config, lm.params, batch.tokens, batch.mask, taps, prepared)
            if under_way is not None:
                bar.update(int(under_way[0].mask.sum()))
                yield under_way
            under_way = batch, read
        if under_way is not None:
            bar.update(int(under_way[0].mask.sum()))
            yield under_way


def _dispatch(
    config: DecoderConfig,
    params: decoder.Params,
    tokens: Int[Any, "batch time"],
    mask: Bool[Any, "batch time"],
    taps: Sequence[Tap],
    interventions: tuple[Prepared, ...],
) -> dict[Tap, Float[Array, "batch time _"]]:
    """Splits taps into what is compiled (how many at a site) and what is data (their layers)."""
    layers: dict[str, list[int]] = {}
    for tap in sorted(set(taps)):
        layers.setdefault(tap.site, []).append(tap.layer)
    wanted = {site: np.array(layers[site], np.int32) for site in sorted(layers)}
    interventions, (spread, real) = sharding.spread(params, interventions, tokens, mask)
    read = _capture(config, params, spread, real, wanted, interventions)
    batch = np.shape(tokens)[0]
    return {tap: read[tap.site][layers[tap.site].index(tap.layer), :batch] for tap in taps}


class _Part(NamedTuple):
    """Rows that go through a layer together, and what is done to them."""

    context: decoder.Context
    prompt: Bool[Array, "batch time"]
    edits: tuple[Prepared, ...]


# A part's residual stream, and what has been read of it.
_State = tuple[Float[Array, "_ time d_model"], dict[str, Float[Array, "_ _ time _"]]]
_Wanted = dict[str, Int[Any, " _"]]


@partial(jax.jit, static_argnums=0)
def _capture(
    config: DecoderConfig,
    params: decoder.Params,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    wanted: _Wanted,
    interventions: tuple[Prepared, ...],
) -> dict[str, Float[Array, "_ batch time _"]]:
    """Per site the activations of the wanted layers, which ascend."""
    parts, states = _begin(config, params, tokens, mask, wanted, interventions)

    def step(layer: Array, p: decoder.Params, states: list[_State]) -> list[_State]:
        pairs = zip(parts, states, strict=True)
        return [_through(config, wanted, layer, p, part, state) for part, state in pairs]

    if "final_norm" in wanted:  # All layers run at any rate, so that gradients may flow.
        states = decoder.scan_layers(params, states, step)
    else:
        stop = jnp.max(jnp.concatenate(list(wanted.values()))) + 1
        states = decoder.loop_layers(params, states, stop, step)
    return _end(config, params, mask, wanted, interventions, states)


def _begin(
    config: DecoderConfig,
    params: decoder.Params,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    wanted: _Wanted,
    interventions: tuple[Prepared, ...],
) -> tuple[list[_Part], list[_State]]:
    """The batch in parts, each before layer 0 and with room for what will be read of it."""
    positions = decoder.positions_of(mask)
    prompt = jnp.zeros_like(mask)
    h = decoder.embed(config, params, tokens, positions)
    longest = jnp.max(positions) + 1
    parts, states = [], []
    for rows in _parts(*mask.shape):
        at = positions[rows]
        context = decoder.context_of(config, at, at, mask[rows], longest)
        parts.append(_Part(context, prompt[rows], intervene.of_part(interventions, rows)))
        shape = h[rows].shape[:2]
        room = {
            site: jnp.zeros((len(layers), *shape, decoder.site_width(config, site)), h.dtype)
            for site, layers in wanted.items()
            if site != "final_norm"
        }
        states.append((h[rows], room))
    return parts, states


def _through(
    config: DecoderConfig,
    wanted: _Wanted,
    layer: Int[Array, ""],
    p: decoder.Params,
    part: _Part,
    state: _State,
) -> _State:
    """A part after one more layer."""
    h, kept = state
    kept = dict(kept)

    def visit(site: str, layer: Array, h: Array) -> Array:
        h = intervene.apply(part.edits, site, layer, h, part.context.positions, part.prompt)
        if site in kept:
            kept[site] = _keep(kept[site], wanted[site], layer, h)
        return h

    return decoder.block(config, p, layer, h, part.context, visit, decoder.keep_nothing), kept


def _end(
    config: DecoderConfig,
    params: decoder.Params,
    mask: Bool[Array, "batch time"],
    wanted: _Wanted,
    interventions: tuple[Prepared, ...],
    states: list[_State],
) -> dict[str, Float[Array, "_ batch time _"]]:
    """What was read of all parts, the final norm included."""
    kept = jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *[kept for _, kept in states])
    if "final_norm" in wanted:
        last, prompt = jnp.asarray(config.n_layers - 1), jnp.zeros_like(mask)
        h = decoder.final_norm(config, params, jnp.concatenate([h for h, _ in states]))
        positions = decoder.positions_of(mask)
        h = intervene.apply(interventions, "final_norm", last, h, positions, prompt)
        kept["final_norm"] = h[None]
    return kept


def _parts(batch: int, time: int) -> list[slice]:
    """The rows that go through a layer together.

    A CPU is fastest where a part's numbers stay in its caches and where parts that do not wait for
    each other fill its cores; an accelerator takes the whole batch.
    """
    if jax.default_backend() != "cpu":
        return [slice(0, batch)]
    rows = max(1, _PART_TOKENS // time, -(-batch // _MOST_PARTS))
    return [slice(first, min(first + rows, batch)) for first in range(0, batch, rows)]


def _keep(
    buffer: Float[Array, "layers batch time width"],
    layers: Int[Any, " layers"],
    layer: Int[Array, ""],
    h: Float[Array, "batch time width"],
) -> Float[Array, "layers batch time width"]:
    """The buffer with `h` in its place, if `layer` is among those wanted.

    One slice is written per layer, in place: memory grows with what is asked for, not with depth.
    """
    slot = jnp.minimum(jnp.searchsorted(layers, layer), len(layers) - 1)
    old = lax.dynamic_index_in_dim(buffer, slot, keepdims=False)
    new = jnp.where(layers[slot] == layer, h, old)
    return lax.dynamic_update_index_in_dim(buffer, new, slot, 0)
