import dataclasses
import inspect

import numpy as np
import pytest
from tiny_models import tiny_lm

from emojax.errors import UserError
from emojax.lm import generate as generating
from emojax.lm import intervene
from emojax.lm.generate import GenerateSettings, generate
from emojax.lm.stream import stream

pytestmark = pytest.mark.smoke

SETTINGS = GenerateSettings(max_new_tokens=12, temperature=1.0, seed=4, stop_tokens=())
PROMPT = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


@pytest.fixture
def lm(tmp_path):
    return tiny_lm("gemma3", tmp_path)


def test_pieces_are_what_is_generated_at_once(lm):
    edit = intervene.direction("add", np.ones(32), layer=1, strength=0.3)
    whole = generate(lm, [PROMPT], SETTINGS, [edit])
    pieces = list(stream(lm, PROMPT, SETTINGS, [edit]))
    assert len(pieces) == 12
    assert "".join(pieces) == whole.texts[0]
    stop = dataclasses.replace(SETTINGS, stop_tokens=(whole.tokens[0][4],))
    assert (
        "".join(stream(lm, PROMPT, stop, [edit])) == generate(lm, [PROMPT], stop, [edit]).texts[0]
    )


def test_half_a_character_waits_for_the_rest(lm):
    class Halves:
        """Every two tokens are one character."""

        def decode(self, row, skip_special_tokens):
            return "é" * (len(row) // 2) + "\ufffd" * (len(row) % 2)

    halves = dataclasses.replace(lm, tokenizer=Halves())
    settings = dataclasses.replace(SETTINGS, max_new_tokens=5)
    assert list(stream(halves, PROMPT, settings)) == ["é", "é", "\ufffd"]


def test_bad_prompts_are_refused(lm):
    for prompt, message in (([], "no tokens"), ([2] * 120, "context of 128")):
        with pytest.raises(UserError, match=message):
            next(stream(lm, prompt, SETTINGS))


def test_prompts_that_are_several(lm, monkeypatch):
    # Unwrapped, as a user calls it: the tests check annotations at every call.
    monkeypatch.setattr(generating, "begin", inspect.unwrap(generating.begin))
    for prompts in (["happy", "sad"], [[2, 9], [2, 10]]):
        with pytest.raises(UserError, match=r"Prompt 0 .* is neither a text nor a row"):
            next(inspect.unwrap(stream)(lm, prompts, SETTINGS))


def test_settings_need_not_be_given():
    for function in (generate, stream):
        default = inspect.signature(function).parameters["settings"].default
        assert default == GenerateSettings()
