"""Logits and every activation of a pass, for a notebook: `run_with_cache`."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from emojax.errors import UserError
from emojax.lm import capture, decoder, intervene
from emojax.lm.batching import check_rows, pad
from emojax.lm.capture import Tap
from emojax.lm.intervene import Intervention
from emojax.lm.model import LanguageModel
from emojax.lm.text import Prompts, prompt_rows

# What TransformerLens calls our sites. Its `ln_final.hook_normalized` comes before the norm's gain
# and our `final_norm` after it, so that site has no name there.
HOOK_NAMES = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "z": "blocks.{}.attn.hook_z",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "mlp_hidden": "blocks.{}.mlp.hook_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
}


# A tap, (layer, site) or (site, layer), or a TransformerLens name.
Place = str | tuple[int, str] | tuple[str, int]


class NotInCache(UserError, KeyError):
    """An activation that was not read; a `KeyError` too, so that `in` and `get` do not raise it."""

    __str__ = Exception.__str__  # a KeyError's own puts the message in quotes


@dataclasses.dataclass(frozen=True, eq=False)
class ActivationCache(Mapping[Tap, Array]):
    """Activations by tap, `(layer, site)` or TransformerLens name.

    `cache[9, "resid_post"]`, `cache["resid_post", 9]` and `cache["blocks.9.hook_resid_post"]` are
    the same array `[batch, time, width]`, whose entry `[i, cache.last[i]]` is of the last token of
    row i; layer -1 is the last. The heads of `z` are side by side: split its last axis in
    `[heads, head_dim]` for TransformerLens' shape.

    The weights are used as they are, as by `HookedTransformer.from_pretrained_no_processing`: its
    `from_pretrained` folds the norms' gains into the weights and centres what is written to the
    stream, by default, and so reads other numbers.

    Attributes:
      read: the activations.
      tokens: the token ids that were read, padded on the right.
      mask: which of them are real; activations of the others have no meaning.
      n_layers: how many layers the model has.
    """

    read: Mapping[Tap, Float[Array, "batch time _"]]
    tokens: Int[Array, "batch time"]
    mask: Bool[Array, "batch time"]
    n_layers: int

    @property
    def last(self) -> Int[Array, " batch"]:
        """Where each row's last real token is; its logits are those of the next token."""
        return self.mask.sum(axis=1) - 1

    def __getitem__(self, key: Place) -> Float[Array, "batch time _"]:
        """The activations at one place.

        Raises:
          NotInCache: nothing was read there, or it is no place; as `tap_of`.
        """
        try:
            tap = tap_of(key, self.n_layers)
        except UserError as error:
            raise NotInCache(str(error)) from None
        if tap not in self.read:
            raise NotInCache(
                f"The cache has nothing of {tap}; ask for it in the taps of run_with_cache."
            )
        return self.read[tap]

    def patch(
        self,
        key: Place,
        row: int | None = None,
        *,
        rows: Any = 1.0,
        positions: Any = intervene.EVERYWHERE,
        phase: str = "both",
    ) -> Intervention:
        """An intervention that puts what was read here into another run: `intervene.patch`.

        Args:
          key: the place, as in `cache[key]`; it is read and patched there.
          row: whose activations all rows of the other run get; None gives each row those of the
            row with its own number.
          rows: as in `intervene.direction`.
          positions: as in `intervene.patch`.
          phase: as in `intervene.direction`.

        Raises:
          NotInCache: nothing was read there.
          UserError: there is no such row, or `phase` is unknown.
        """
        values, mask = self[key], self.mask
        layer, site = tap_of(key, self.n_layers)
        if row is not None:
            if not 0 <= row < len(mask):
                raise UserError(
                    f"The cache has no row {row} to patch with; give one from 0 to {len(mask) - 1}."
                )
            values, mask = values[row], mask[row]
        return intervene.patch(
            values, mask, layer=layer, site=site, rows=rows, positions=positions, phase=phase
        )

    def __iter__(self) -> Iterator[Tap]:
        return iter(self.read)

    def __len__(self) -> int:
        return len(self.read)


def tap_of(place: Any, n_layers: int) -> Tap:
    """The tap that is meant by a tap, by `(layer, site)` in either order, or by a hook name.

    Args:
      place: as `Place`; a layer below 0 counts from the last, which is -1.
      n_layers: how many layers the model has.

    Raises:
      UserError: it is none of these, or as `named`.
    """
    if isinstance(place, str):
        return named(place)
    if not isinstance(place, tuple) or len(place) != 2:
        raise UserError(
            f"{place!r:.80} is no place in a model; give (9, 'resid_post') or a hook name, "
            "'blocks.9.hook_resid_post'."
        )
    site, layer = place if isinstance(place[0], str) else reversed(place)
    return Tap(n_layers + layer if layer in range(-n_layers, 0) else layer, site)


def named(hook_name: str) -> Tap:
    """The tap of a TransformerLens hook name, such as "blocks.9.hook_resid_post".

    Raises:
      UserError: no site of ours has that name.
    """
    for site, name in HOOK_NAMES.items():
        if found := re.fullmatch(re.escape(name).replace(r"\{\}", r"(\d+)"), hook_name):
            return Tap(int(found[1]), site)
    raise UserError(
        f"There is no site with the hook name {hook_name!r}; "
        f"those are {', '.join(name.format('N') for name in HOOK_NAMES.values())}."
    )


def run_with_cache(
    lm: LanguageModel,
    prompts: Prompts,
    taps: Sequence[Place] | None = None,
    interventions: Sequence[Intervention] = (),
) -> tuple[Float[Array, "batch time vocab"], ActivationCache]:
    """Next-token logits in float32, and the activations of one pass over all prompts.

    Both are kept whole, which suits a few short prompts; `capture.stream` reads a corpus.
    `jax.grad` goes through it, as attribution patching needs.

    Args:
      lm: the language model.
      prompts: texts (which `text.tokenize` begins), or token ids as they are.
      taps: a list of what to keep, as the cache takes it; None is every site of every layer.
      interventions: as `intervene.direction` and its neighbours make them.

    Raises:
      UserError: there is no prompt, one is empty or too long, or a tap or an intervention does not
        fit the model.
    """
    rows = prompt_rows(lm, prompts)
    check_rows(lm.config, rows)
    last = lm.config.n_layers - 1
    if taps is None:
        wanted = [Tap(layer, site) for layer in range(last + 1) for site in HOOK_NAMES]
        wanted.append(Tap(last, "final_norm"))
    else:
        capture.check_tap_list(taps)
        wanted = [tap_of(tap, last + 1) for tap in taps]
    tokens, mask = map(jnp.asarray, pad(rows, len(rows), max(map(len, rows))))
    normed = Tap(last, "final_norm")
    read = capture.capture(lm.config, lm.params, tokens, mask, [*wanted, normed], interventions)
    logits = decoder.unembed(lm.config, lm.params, read[normed])
    kept = {tap: read[tap] for tap in wanted}
    return logits, ActivationCache(kept, tokens, mask, last + 1)
