"""Logits and every activation of a pass, for a notebook: `run_with_cache`."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from emojax.errors import UserError
from emojax.lm import capture, decoder
from emojax.lm.batching import check_rows, pad
from emojax.lm.capture import Tap
from emojax.lm.intervene import Intervention
from emojax.lm.model import LanguageModel
from emojax.lm.text import tokenize

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


class NotInCache(UserError, KeyError):
    """An activation that was not read; a `KeyError` too, so that `in` and `get` do not raise it."""

    __str__ = Exception.__str__  # a KeyError's own puts the message in quotes


@dataclasses.dataclass(frozen=True, eq=False)
class ActivationCache(Mapping[Tap, Array]):
    """Activations by tap, `(layer, site)` or TransformerLens name.

    `cache[9, "resid_post"]`, `cache[Tap(9)]` and `cache["blocks.9.hook_resid_post"]` are the same
    array `[batch, time, width]`. The heads of `z` are side by side: split its last axis in
    `[heads, head_dim]` for TransformerLens' shape.

    Attributes:
      read: the activations.
      tokens: the token ids that were read, padded on the right.
      mask: which of them are real; activations of the others have no meaning.
    """

    read: Mapping[Tap, Float[Array, "batch time _"]]
    tokens: Int[Array, "batch time"]
    mask: Bool[Array, "batch time"]

    def __getitem__(self, key: str | tuple[int, str]) -> Float[Array, "batch time _"]:
        """The activations at one place.

        Raises:
          NotInCache: nothing was read there, or the name is not one of TransformerLens'.
        """
        try:
            tap = named(key) if isinstance(key, str) else key
        except UserError as error:
            raise NotInCache(str(error)) from None
        if tap not in self.read:
            raise NotInCache(
                f"The cache has nothing of {tap}; ask for it in the taps of run_with_cache."
            )
        return self.read[Tap(*tap)]

    def __iter__(self) -> Iterator[Tap]:
        return iter(self.read)

    def __len__(self) -> int:
        return len(self.read)


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
    prompts: Sequence[str | Sequence[int]],
    taps: Sequence[str | tuple[int, str]] | None = None,
    interventions: Sequence[Intervention] = (),
) -> tuple[Float[Array, "batch time vocab"], ActivationCache]:
    """Next-token logits in float32, and the activations of one pass over all prompts.

    Both are kept whole, which suits a few short prompts; `capture.stream` reads a corpus.
    `jax.grad` goes through it, as attribution patching needs.

    Args:
      lm: the language model.
      prompts: texts (which `text.tokenize` begins), or token ids as they are.
      taps: what to keep, as taps or TransformerLens names; None is every site of every layer.
      interventions: as `intervene.direction` and its neighbours make them.

    Raises:
      UserError: there is no prompt, one is empty or too long, or a tap or an intervention does not
        fit the model.
    """
    if not prompts:
        raise UserError("There is no prompt to read; give at least one.")
    rows = [tokenize(lm, [p])[0] if isinstance(p, str) else list(p) for p in prompts]
    check_rows(lm.config, rows)
    last = lm.config.n_layers - 1
    if taps is None:
        wanted = [Tap(layer, site) for layer in range(last + 1) for site in HOOK_NAMES]
        wanted.append(Tap(last, "final_norm"))
    else:
        wanted = [named(tap) if isinstance(tap, str) else Tap(*tap) for tap in taps]
    tokens, mask = map(jnp.asarray, pad(rows, len(rows), max(map(len, rows))))
    normed = Tap(last, "final_norm")
    read = capture.capture(lm.config, lm.params, tokens, mask, [*wanted, normed], interventions)
    logits = decoder.unembed(lm.config, lm.params, read[normed])
    return logits, ActivationCache({tap: read[tap] for tap in wanted}, tokens, mask)
