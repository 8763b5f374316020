"""Conversations as rows of token ids, by the model's own chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from emojax.errors import UserError
from emojax.lm.model import LanguageModel
from emojax.lm.text import check_list, tokenize


def chat_rows(
    lm: LanguageModel, conversations: Sequence[str | Sequence[Mapping[str, str]]]
) -> list[list[int]]:
    """Each conversation's token ids, up to where the model's answer begins.

    Args:
      lm: the language model.
      conversations: lists of messages, `{"role": "user", "content": "..."}`, or texts, which are
        what a user says.

    Raises:
      UserError: a text or a conversation stands alone, one is neither, or the model has no chat
        template or one that does not take these messages.
    """
    check_list(conversations)
    if not lm.tokenizer.chat_template:
        raise UserError(
            f"The tokenizer of {lm.name} has no chat template; "
            "give its prompts as plain text, or use a model made for conversations."
        )
    texts = []
    for number, given in enumerate(conversations):
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        _check_messages(messages, number)
        try:
            text = lm.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except ImportError:
            raise UserError("Chat templates need jinja2; run: pip install jinja2.") from None
        except Exception as error:  # whatever a template makes jinja2 raise
            raise UserError(
                f"The chat template of {lm.name} does not take conversation {number} ({error}); "
                "look at its roles and their order."
            ) from None
        texts.append(text)
    # A template writes the token for a beginning itself, where there is one.
    return tokenize(lm, texts, bos=False)


def _check_messages(messages: Any, number: int) -> None:
    several = isinstance(messages, Sequence)
    if not several or not all(isinstance(message, Mapping) for message in messages):
        raise UserError(
            f"Conversation {number} ({messages!r:.60}) is neither a text nor a list of messages; "
            'give a list such as [{"role": "user", "content": "..."}].'
        )
