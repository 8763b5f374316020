"""The tokenizer inside a GGUF file, built with the `tokenizers` library.

Two kinds: SentencePiece's byte-pair encoding with byte fallback (Gemma; with a space before every
text Llama 1 and 2 and Mistral), and GPT-2's byte-level one (SmolLM2, Qwen). `transformers` converts
them too, but differently from one version to the next.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as pre

from emojax.errors import UserError

# The types of tokens: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_PREFIX = "tokenizer.ggml."
_SPACE = "▁"
_PROBE = "The weather was lovely this morning, and everybody in the village felt happy again."


def write(metadata: Mapping[str, Any], path: Path, directory: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` into the directory.

    Args:
      metadata: a GGUF file's metadata.
      path: that file, for messages.
      directory: an existing folder.

    Raises:
      UserError: the tokenizer is missing, incomplete, of a kind that is not supported, or does not
        give an English sentence back in few tokens.
    """
    field = {k.removeprefix(_PREFIX): v for k, v in metadata.items() if k.startswith(_PREFIX)}
    kinds = {"llama": _sentencepiece, "gpt2": _byte_level}
    kind = field.get("model")
    if kind not in kinds:
        raise UserError(
            f"{path} has {_PREFIX}model {kind!r}, which is not supported; use a file with one of "
            f"{', '.join(kinds)}."
        )
    needs = {"llama": "scores", "gpt2": "merges"}[kind]
    for name in ("tokens", "token_type", needs):
        if name not in field:
            raise UserError(f"{path} lacks {_PREFIX}{name}; use a complete GGUF file.")
    if kind == "gpt2" and field.get("pre") not in _SPLITS:
        raise UserError(
            f"{path} has {_PREFIX}pre {field.get('pre')!r}, which is not supported; use a file "
            f"with one of {', '.join(_SPLITS)}."
        )
    try:
        tokenizer = kinds[kind](field)
        names = _special_names(field)
    except Exception as error:  # `tokenizers` raises bare Exceptions
        raise UserError(
            f"The tokenizer in {path} cannot be built ({error}); use another file."
        ) from None
    # As llama.cpp does: what SentencePiece's files do not say is true.
    if field.get("add_bos_token", kind == "llama") and "bos_token" in names:
        bos = names["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, field["bos_token_id"])],
        )
    _check(tokenizer, len(field["tokens"]), path)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **names,
    }
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _special_names(field: Mapping[str, Any]) -> dict[str, str]:
    ids = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {
        f"{name}_token": field["tokens"][field[f"{long}_token_id"]]
        for name, long in ids.items()
        if f"{long}_token_id" in field
    }


def _sentencepiece(field: Mapping[str, Any]) -> Tokenizer:
    types = field["token_type"]
    prefix = field.get("add_space_prefix", True)
    # Runs of spaces are stored as spaces, the rest with SentencePiece's mark for them. With a
    # prefix the user's are found in the raw text: normalised they would begin with it themselves.
    tokens = [
        token.replace(" ", _SPACE) if kind == _USER_DEFINED and not prefix else token
        for token, kind in zip(field["tokens"], types, strict=True)
    ]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    scores = {
        token: score
        for token, score, kind in zip(tokens, field["scores"], types, strict=True)
        if kind == _NORMAL
    }
    # SentencePiece merges the neighbours whose union scores best; `tokenizers` wants the pairs.
    merges = [
        (-score, vocabulary[token[:cut]], vocabulary[token[cut:]])
        for token, score in scores.items()
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores
    ]
    merges.sort()
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(tokens[left], tokens[right]) for _, left, right in merges],
            unk_token=field["tokens"][field["unknown_token_id"]],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    marks = normalizers.Replace(" ", _SPACE)
    back: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:  # Llama 1 and 2, Mistral: a text, and what follows a special token, has one more
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), marks])
        back.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = marks
    tokenizer.decoder = decoders.Sequence(back)
    _add(tokenizer, tokens, types, normalized=not prefix)
    return tokenizer


# Qwen's: contractions, words with what is before them, single digits, marks, line ends, spaces.
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "smollm": lambda: pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": lambda: pre.Sequence(
        [
            pre.Split(Regex(_QWEN), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "gpt-2": lambda: pre.ByteLevel(add_prefix_space=False),
}


def _byte_level(field: Mapping[str, Any]) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(field["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in field["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = _SPLITS[field["pre"]]()
    if field["pre"] == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    _add(tokenizer, field["tokens"], field["token_type"])
    return tokenizer


def _add(
    tokenizer: Tokenizer, tokens: list[str], types: list[int], normalized: bool = True
) -> None:
    """Control tokens are found in the raw text, the user's in the normalised one, longest first."""
    pairs = list(zip(tokens, types, strict=True))
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, kind in pairs if kind == _CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=normalized) for t, kind in pairs if kind == _USER_DEFINED]
    )


def _check(tokenizer: Tokenizer, n_tokens: int, path: Path) -> None:
    """A wrong conversion still loads; it shows in broken words, which cost the model its sense."""
    if tokenizer.get_vocab_size() != n_tokens:
        raise UserError(
            f"The tokenizer in {path} has {n_tokens:,} tokens, of which some stand there twice; "
            "use another file."
        )
    ids = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    if tokenizer.decode(ids) != _PROBE:
        raise UserError(
            f"The tokenizer in {path} does not give an English sentence back unchanged; "
            "use another file."
        )
    # A vocabulary of ten thousand or more holds common words whole; a test's tiny one cannot.
    if n_tokens >= 10_000 and len(_PROBE) / len(ids) < 3:
        raise UserError(
            f"The tokenizer in {path} breaks English into pieces of "
            f"{len(_PROBE) / len(ids):.1f} characters; use another file."
        )
