"""Reading the residual stream: jitted, only as deep as asked, without the unembedding.

Which layers are read is data, so another layer does not compile again, and memory does not grow
with the layers that are not asked for.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from emojax.errors import UserError
from emojax.lm import decoder, intervene
from emojax.lm.batching import Batch, batches, check_rows, check_tokens
from emojax.lm.config import DecoderConfig
from emojax.lm.intervene import Intervention
from emojax.lm.model import LanguageModel

# Enough for full speed on a CPU; more only falls out of its caches.
_BATCH_TOKENS = 2048


class Tap(NamedTuple):
    """Where to read: a layer, from 0, and one of `decoder.SITES`."""

    layer: int
    site: str = "resid_post"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activations:
    """What one tap read of some tokens, padding removed.

    Attributes:
      values: `[tokens, d_model]`.
      token_ids: `[tokens]`.
      positions: `[tokens]`, each token's number in its row, from 0.
      rows: `[tokens]`, the number of the row in the list that was asked for.
    """

    values: Float[np.ndarray, "tokens d_model"]
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
) -> dict[Tap, Float[Array, "batch time d_model"]]:
    """The activations at every tap, from a pass that stops after the last layer asked for.

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
    prepared = intervene.prepare(config, interventions, tokens.shape[0])
    return _dispatch(config, params, tokens, mask, taps, prepared)


def stream(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    taps: Sequence[Tap],
    batch_tokens: int = _BATCH_TOKENS,
    label: str | None = None,
) -> Iterator[dict[Tap, Activations]]:
    """The activations of rows of tokens, batch by batch, rows of a length together.

    Args:
      lm: the language model.
      rows: token ids, of any lengths.
      taps: what to read.
      batch_tokens: how many tokens, padding included, a pass takes (one row at least).
      label: what the progress bar says; without it there is none.

    Raises:
      UserError: as `capture`.
    """
    check_taps(lm.config, taps)
    check_rows(lm.config, rows)
    for batch, read in _passes(lm, rows, taps, batch_tokens, label):
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
) -> Float[np.ndarray, "rows d_model"]: ...
@overload
def last_token(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    taps: list[Tap],
    label: str | None = None,
    done: Callable[[int], object] | None = None,
) -> dict[Tap, Float[np.ndarray, "rows d_model"]]: ...
def last_token(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    taps: Tap | list[Tap],
    label: str | None = None,
    done: Callable[[int], object] | None = None,
) -> Float[np.ndarray, "rows d_model"] | dict[Tap, Float[np.ndarray, "rows d_model"]]:
    """The activation of each row's last token, in the order of the rows, as float32.

    Args:
      lm: the language model.
      rows: token ids, of any lengths.
      taps: one tap, which gives an array, or a list of taps, which gives a dictionary.
      label: what the progress bar says; without it there is none.
      done: told after every batch how many rows were read, for a bar of the caller's own.

    Raises:
      UserError: as `capture`.
    """
    wanted = [taps] if isinstance(taps, Tap) else taps
    check_taps(lm.config, wanted)
    check_rows(lm.config, rows)
    found = {tap: np.zeros((len(rows), lm.config.d_model), np.float32) for tap in wanted}
    for batch, read in _passes(lm, rows, wanted, _BATCH_TOKENS, label):
        last = np.maximum(batch.mask.sum(axis=1) - 1, 0)[: len(batch.rows)]
        for tap, values in read.items():
            found[tap][batch.rows] = np.asarray(values)[np.arange(len(last)), last]
        if done is not None:
            done(len(batch.rows))
    return found[taps] if isinstance(taps, Tap) else found


def check_taps(config: DecoderConfig, taps: Sequence[Tap]) -> None:
    """Refuses taps where the model has nothing to read.

    Raises:
      UserError: there is no tap, or one's site or layer does not exist.
    """
    if not taps:
        raise UserError("No tap was given to capture; name at least one layer and site.")
    for tap in taps:
        if tap.site not in decoder.SITES:
            raise UserError(
                f"A tap is at the site {tap.site!r}, which does not exist; "
                f"use one of {', '.join(decoder.SITES)}."
            )
        intervene.check_layer(config, tap.site, tap.layer, "A tap")


def _passes(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    taps: Sequence[Tap],
    batch_tokens: int,
    label: str | None,
) -> Iterator[tuple[Batch, dict[Tap, Array]]]:
    """Each batch with what the taps read; the next one is under way while one is looked at."""
    under_way: tuple[Batch, dict[Tap, Array]] | None = None
    with tqdm(
        total=sum(map(len, rows)), desc=label, unit="token", unit_scale=True, disable=label is None
    ) as bar:
        for batch in batches(rows, batch_tokens):
            read = _dispatch(lm.config, lm.params, batch.tokens, batch.mask, taps, ())
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
    interventions: tuple[Intervention, ...],
) -> dict[Tap, Float[Array, "batch time d_model"]]:
    """Splits taps into what is compiled (sites) and what is data (layers)."""
    ordered = sorted(set(taps), key=lambda tap: (tap.site, tap.layer))
    sites = tuple(tap.site for tap in ordered)
    layers = np.array([tap.layer for tap in ordered], np.int32)
    read = _capture(
        config, sites, params, jnp.asarray(tokens), jnp.asarray(mask), layers, interventions
    )
    return {tap: read[ordered.index(tap)] for tap in taps}


@partial(jax.jit, static_argnums=(0, 1))
def _capture(
    config: DecoderConfig,
    sites: tuple[str, ...],
    params: decoder.Params,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    layers: Int[Array, " taps"],
    interventions: tuple[Intervention, ...],
) -> list[Float[Array, "batch time d_model"]]:
    positions = decoder.positions_of(mask)
    context = decoder.context_of(config, positions, positions, mask)
    generated = jnp.zeros_like(mask)

    def step(
        layer: Array, p: decoder.Params, carry: tuple[Array, list[Array]]
    ) -> tuple[Array, list[Array]]:
        h, kept = carry
        seen: dict[str, Array] = {}

        def visit(site: str, layer: Array, h: Array) -> Array:
            seen[site] = intervene.apply(interventions, site, layer, h, positions, generated)
            return seen[site]

        h = decoder.block(config, p, layer, h, context, visit, decoder.keep_nothing)
        # One buffer per tap: memory grows with what is asked for, not with depth.
        kept = [
            buffer if site == "final_norm" else jnp.where(layers[i] == layer, seen[site], buffer)
            for i, (site, buffer) in enumerate(zip(sites, kept, strict=True))
        ]
        return h, kept

    h = decoder.embed(config, params, tokens, positions)
    carry = (h, [jnp.zeros_like(h) for _ in sites])
    h, kept = decoder.loop_layers(params, carry, jnp.max(layers) + 1, step)
    if "final_norm" in sites:
        last = jnp.asarray(config.n_layers - 1)
        h = decoder.final_norm(config, params, h)
        h = intervene.apply(interventions, "final_norm", last, h, positions, generated)
    return [h if site == "final_norm" else buffer for site, buffer in zip(sites, kept, strict=True)]
