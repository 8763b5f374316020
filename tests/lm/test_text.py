import dataclasses
from pathlib import Path

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
