import dataclasses
import inspect
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_gguf
from tiny_models import CONFIGS
from tokenizers import Tokenizer, models, pre_tokenizers

from emojax.errors import UserError
from emojax.lm import sources, text
from emojax.lm.config import DecoderConfig
from emojax.lm.model import LanguageModel


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("model")
    tiny_gguf.write(folder / "tiny.gguf")
    return sources.load(folder / "tiny.gguf", cache=folder)


def _tokens(lm: LanguageModel, row: list[int]) -> list[str]:
    return lm.tokenizer.convert_ids_to_tokens(row)


def _with_unknown(lm: LanguageModel) -> LanguageModel:
    """The model with a tokenizer that knows two words, and has no BOS."""
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "happy": 1, "sad": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    return dataclasses.replace(lm, tokenizer=tokenizer)


def test_tokenize_begins_with_bos_once(lm: LanguageModel):
    texts = ["the word happy", "", "快乐"]
    rows = text.tokenize(lm, texts)
    assert [_tokens(lm, row) for row in rows] == [
        ["<bos>", "the", "▁word", "▁happy"],
        ["<bos>"],
        ["<bos>", "快乐"],
    ]
    assert text.tokenize(lm, texts, bos=False) == [row[1:] for row in rows]
    assert text.tokenize(lm, []) == []


def test_bos_is_put_there_where_the_tokenizer_does_not(tmp_path: Path):
    tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    lm = sources.load(tmp_path / "tiny.gguf", cache=tmp_path)
    assert lm.tokenizer(" happy").input_ids == text.tokenize(lm, [" happy"], bos=False)[0]
    assert _tokens(lm, text.tokenize(lm, [" happy"])[0]) == ["<|im_start|>", "Ġhappy"]


def test_what_the_tokenizer_was_told_before_neither_cuts_nor_fills_up(lm: LanguageModel):
    texts = ["the word happy", "sad"]
    before = text.tokenize(lm, texts)
    lm.tokenizer.backend_tokenizer.enable_truncation(2)
    lm.tokenizer.backend_tokenizer.enable_padding(length=9)
    assert text.tokenize(lm, texts) == before


def test_a_tokenizer_without_bos(lm: LanguageModel):
    lm = _with_unknown(lm)
    assert text.tokenize(lm, ["happy"], bos=False) == [[1]]
    with pytest.raises(UserError, match="no token for a text's beginning"):
        text.tokenize(lm, ["happy"])
    # Qwen's configs name a token that its tokenizers do not have and its texts never began with.
    attributes = CONFIGS["qwen2"]
    assert attributes["bos_token_id"] is not None
    qwen = dataclasses.replace(lm, config=DecoderConfig.from_hf(attributes))
    assert text.tokenize(qwen, ["happy sad"]) == [[1, 2]]
    assert text.word_rows(qwen, ["sad"], "happy {}") == [[1, 2]]


def test_a_text_that_stands_alone(lm: LanguageModel):
    assert text.prompt_rows(lm, ["the word", [5, 6]]) == [
        text.tokenize(lm, ["the word"])[0],
        [5, 6],
    ]
    for function in (text.tokenize, text.prompt_rows):
        with pytest.raises(UserError, match=r"'the word' is a single one; put it in brackets"):
            function(lm, "the word")
    for row in ([5, 6], np.array([5, 6])):
        with pytest.raises(UserError, match=r"\[5, 6\]\)? is a single one"):
            text.check_list(row)


def test_a_text_that_is_not_unicode(lm: LanguageModel):
    with pytest.raises(UserError, match="Text 1 of the input is not valid Unicode"):
        text.tokenize(lm, ["fine", "broken \ud800"])


def test_word_rows_end_with_the_word(lm: LanguageModel):
    words = ["happiness", "sad", "the"]
    rows = text.word_rows(lm, words, "The word {}")
    assert [_tokens(lm, row)[-1] for row in rows] == ["▁" + word for word in words]
    assert [lm.tokenizer.decode(row[1:]) for row in rows] == [f"The word {w}" for w in words]
    (row,) = text.word_rows(lm, ["快乐"], "词语{}")
    assert _tokens(lm, row) == ["<bos>", "词语", "快乐"]


@pytest.mark.parametrize("template", ["The word", 'The word "{}"', "{} and {}", "{word}"])
def test_a_template_that_does_not_end_with_the_word(lm: LanguageModel, template: str):
    with pytest.raises(UserError, match="does not end with its only"):
        text.word_rows(lm, ["sad"], template)


@pytest.mark.parametrize("word", ["", " ", "<bos>", "<start_of_turn>", "sad ", " sad"])
def test_words_that_are_no_words(lm: LanguageModel, word: str):
    with pytest.raises(UserError, match="cannot be represented"):
        text.check_words(lm, ["sad", word])


def test_a_word_that_is_unknown_is_named(lm: LanguageModel):
    text.check_words(lm, ["happy", "fröhlich", "喜悦", "🙂"])  # byte fallback takes anything
    lm = _with_unknown(lm)
    text.check_words(lm, ["happy", "sad"])
    with pytest.raises(UserError, match="The word 'elated' cannot be represented"):
        text.check_words(lm, ["happy", "elated"])


@pytest.mark.parametrize(
    "given",
    [
        "happy",
        "",
        [2, 9, 10],
        np.array([2, 9, 10]),
        jnp.array([2, 9, 10]),
        {"role": "user", "content": "happy"},
        [{"role": "user", "content": "happy"}],
        5,
        None,
    ],
)
def test_one_prompt_where_a_list_is_meant(lm: LanguageModel, given):
    # Unwrapped, as a user calls it: the tests check annotations at every call.
    for function in (text.prompt_rows, inspect.unwrap(text.tokenize)):
        with pytest.raises(UserError, match="is a single one; put it in brackets") as error:
            function(lm, given)
        assert "\n" not in str(error.value)


def test_prompts_are_texts_or_rows_of_tokens(lm: LanguageModel):
    rows = [[2, 9, 10], [2, 9, 11]]
    for given in (rows, tuple(rows), np.array(rows), jnp.array(rows), list(map(jnp.array, rows))):
        found = text.prompt_rows(lm, given)
        assert found == rows and all(type(token) is int for row in found for token in row)
    mixed = text.prompt_rows(lm, ["the word", [5, 6], []])
    assert mixed == [text.tokenize(lm, ["the word"])[0], [5, 6], []]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "There is no prompt"),
        (np.zeros((0, 3), np.int32), "There is no prompt"),
        (["happy", ""], r"Prompt 1 is an empty text; .*lm\.tokenizer\.bos_token_id"),
        (["happy", 5], r"Prompt 1 \(5\) is neither a text nor a row"),
        (["happy", [2.0, 3.0]], r"Prompt 1 \(\[2\.0, 3\.0\]\) is neither"),
        ([[True, False]], "Prompt 0 .* is neither"),
        ([["happy", "sad"]], r"Prompt 0 \(\['happy', 'sad'\]\) is neither"),
        ([[2, [3]]], "Prompt 0 .* is neither"),
        (np.ones((1, 2, 3), np.int32), "Prompt 0 .* is neither"),
    ],
)
def test_prompts_that_are_none(lm: LanguageModel, prompts, message: str):
    with pytest.raises(UserError, match=message) as error:
        text.prompt_rows(lm, prompts)
    assert "\n" not in str(error.value)


def test_what_is_tokenized_is_text(lm: LanguageModel):
    for texts in (["happy", ["sad", "the"]], ["happy", 5]):
        with pytest.raises(UserError, match="Text 1 of the input is no text"):
            inspect.unwrap(text.tokenize)(lm, texts)
