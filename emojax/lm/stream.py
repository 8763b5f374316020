"""Writing text piece by piece, for a terminal: the same tokens as `generate`, step by step."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax

from emojax.lm import decoder, generate
from emojax.lm.generate import DEFAULT, GenerateSettings
from emojax.lm.intervene import Intervention
from emojax.lm.model import LanguageModel

_first = partial(jax.jit, static_argnums=(0, 1))(generate.first)
_write = partial(jax.jit, static_argnums=0, donate_argnums=4)(generate.write)


def stream(
    lm: LanguageModel,
    prompt: str | Sequence[int],
    settings: GenerateSettings = DEFAULT,
    interventions: Sequence[Intervention] = (),
) -> Iterator[str]:
    """Pieces of text as they are written; together they are what `generate` writes.

    Args:
      lm: the language model.
      prompt: a text (which `text.tokenize` begins), or token ids as they are.
      settings: how to write; by default `GenerateSettings()`.
      interventions: as in `generate`, for one row.

    Raises:
      UserError: as `generate`.
    """
    tokens, mask, room, run = generate.begin(lm, [prompt], settings, interventions, None)
    step_params = decoder.by_layer(lm.params)
    state = _first(lm.config, room, lm.params, tokens, mask, run)
    written: list[int] = []
    shown = ""
    while True:
        written.append(int(state.token[0]))
        text = lm.tokenizer.decode(written, skip_special_tokens=True)
        # A character whose bytes are not all there yet reads as this one.
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
        if len(written) == settings.max_new_tokens or bool(state.done[0]):
            break
        state = _write(lm.config, step_params, mask, run, state)
    if rest := lm.tokenizer.decode(written, skip_special_tokens=True)[len(shown) :]:
        yield rest
