"""Text as rows of token ids: prompts, and words in carrier templates."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from emojax.errors import UserError
from emojax.lm.batching import token_ids
from emojax.lm.model import LanguageModel

# Texts, rows of token ids, or an array of rows.
Prompts = Sequence[str | Sequence[int] | Int[Any, " _"]] | Int[Any, "_ _"]


def tokenize(lm: LanguageModel, texts: Sequence[str], bos: bool = True) -> list[list[int]]:
    """Each text's token ids; special tokens written out in a text are recognised.

    Args:
      lm: the language model.
      texts: any number of texts.
      bos: whether each row begins as `beginning` says.

    Raises:
      UserError: as `beginning`, a text stands alone, or one is no text or not valid Unicode.
    """
    check_list(texts)
    _check_texts(texts)
    first = beginning(lm) if bos else []
    backend = lm.tokenizer.backend_tokenizer
    # A checkpoint's file may ask for both, and a call of the tokenizer leaves what it was given.
    backend.no_truncation()
    backend.no_padding()
    try:
        rows = backend.encode_batch(list(texts), add_special_tokens=False)
    except (TypeError, UnicodeError):
        bad = next((i for i, text in enumerate(texts) if not _is_unicode(text)), None)
        if bad is None:
            raise
        raise UserError(
            f"Text {bad} of the input is not valid Unicode ({texts[bad]!r:.60}); mend its encoding."
        ) from None
    return [first + row.ids for row in rows]


def prompt_rows(lm: LanguageModel, prompts: Any) -> list[list[int]]:
    """Each prompt's token ids: those of a text (which `tokenize` begins), or ids as they are.

    Args:
      lm: the language model.
      prompts: as `Prompts`.

    Raises:
      UserError: there is no prompt, one stands alone, is an empty text, or is neither a text nor a
        row of token ids; or as `tokenize`.
    """
    check_list(prompts)
    if len(prompts) == 0:
        raise UserError("There is no prompt; give at least one.")
    return [_prompt_row(lm, prompt, number) for number, prompt in enumerate(prompts)]


def _prompt_row(lm: LanguageModel, prompt: Any, number: int) -> list[int]:
    if isinstance(prompt, str):
        if not prompt:
            raise UserError(
                f"Prompt {number} is an empty text; to write from a text's beginning alone, give "
                "the token for it, [lm.tokenizer.bos_token_id]."
            )
        return tokenize(lm, [prompt])[0]
    ids = token_ids(prompt)
    if ids is None:
        raise UserError(
            f"Prompt {number} ({_shown(prompt)}) is neither a text nor a row of token ids; give "
            "one of them."
        )
    return ids


def check_list(given: Any) -> None:
    """Refuses one text, row of tokens or conversation where a list of them is meant.

    Raises:
      UserError: the message says what to write.
    """
    if _is_single(given):
        raise UserError(
            f"A list of texts, rows of tokens or conversations is needed, and {_shown(given)} is a "
            "single one; put it in brackets, for a list of one."
        )


def _is_single(given: Any) -> bool:
    if isinstance(given, str | Mapping) or not hasattr(given, "__len__"):
        return True
    # A row of tokens consists of numbers, and a conversation of messages.
    return len(given) > 0 and all(
        isinstance(item, int | Mapping)
        or (isinstance(item, np.integer | jax.Array) and not item.ndim)
        for item in given
    )


def _check_texts(texts: Sequence[Any]) -> None:
    bad = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if bad is not None:
        raise UserError(
            f"Text {bad} of the input is no text ({_shown(texts[bad])}); give a string."
        )


def _shown(given: Any) -> str:
    """A value's beginning, in one line."""
    return " ".join(repr(given).split())[:60]


def beginning(lm: LanguageModel) -> list[int]:
    """What a text begins with: the tokenizer's token for that (BOS), if the model knows any.

    Models that were trained without one, such as Qwen, read a text as it is.

    Raises:
      UserError: the model's config has such a token and its tokenizer does not.
    """
    if lm.tokenizer.bos_token_id is None and lm.config.bos_token_id is None:
        return []
    return [bos_token(lm)]


def bos_token(lm: LanguageModel) -> int:
    """The id of the token that a text begins with.

    Raises:
      UserError: the tokenizer has none.
    """
    if lm.tokenizer.bos_token_id is None:
        raise UserError(
            f"The tokenizer of {lm.name} has no token for a text's beginning (BOS); "
            "add bos_token to its tokenizer_config.json, or ask for rows without it."
        )
    return lm.tokenizer.bos_token_id


def check_words(lm: LanguageModel, words: Sequence[str]) -> None:
    """Refuses words that the tokenizer cannot represent.

    Raises:
      UserError: a word is empty, has an unknown or a special token in it, or does not come back
        unchanged from its tokens; it is named.
    """
    added = lm.tokenizer.added_tokens_decoder
    barred = {i for i, token in added.items() if token.special} | {lm.tokenizer.unk_token_id}
    for word, row in zip(words, tokenize(lm, words, bos=False), strict=True):
        back = lm.tokenizer.decode(row, clean_up_tokenization_spaces=False)
        if not row or barred & set(row) or back.strip() != word or not word.strip():
            raise UserError(
                f"The word {word!r} cannot be represented by the tokenizer of {lm.name} "
                f"(its tokens read {back!r}); remove it or spell it differently."
            )


def word_rows(lm: LanguageModel, words: Sequence[str], template: str) -> list[list[int]]:
    """Each word's row of token ids in a carrier template, after the text's `beginning`.

    Args:
      lm: the language model.
      words: the words.
      template: a text that ends with `{}`, where the word stands ("The word {}", "词语{}"), so that
        a row's last token is the word's own last token.

    Raises:
      UserError: the tokenizer cannot represent a word, or the template does not end with `{}`.
    """
    if not template.endswith("{}") or template.count("{}") != 1:
        raise UserError(
            f"The template {template!r} does not end with its only {{}}; "
            "write one like 'The word {}', so that a row's last token is the word's."
        )
    check_words(lm, words)
    return tokenize(lm, [template.removesuffix("{}") + word for word in words])


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return True
