import dataclasses
from pathlib import Path

import pytest

from emojax import config
from emojax.errors import UserError
from emojax.study.settings import Study

pytestmark = pytest.mark.smoke

GEMMA = config.load(Path(__file__).parent.parent.parent / "configs/gemma3_270m.py")


def set_to(*overrides: str) -> Study:
    return config.override(GEMMA, [f"study.{text}" for text in overrides]).study


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("outside_draws=0", "outside_draws is 0; make it at least 1"),
        ("outside_draws=4", "outside_draws is 4; give an odd number"),
        ("folds=1", "folds is 1; make it at least 2"),
        ("bootstraps=0", "bootstraps is 0"),
        ("permutations=0", "permutations is 0"),
        ("null_permutations=-1", "null_permutations is -1"),
        ("seed=-1", "seed is -1; make it from 0 to 2147483647"),
        ("seed=2147483648", "seed is 2147483648"),
        ("thresholds.q=nan", "thresholds.q is nan; make it from 0 to 1"),
        ("thresholds.coverage=2", "thresholds.coverage is 2"),
        ("thresholds.density=-0.1", "thresholds.density is -0.1"),
        ("thresholds.features=-1", "thresholds.features is -1"),
        ("languages=", "languages is empty"),
        ("languages=en,en", "languages is en,en"),
        ("languages=fr", "not of the type tuple"),
        ("reading.templates_en=", "reading.templates_en has no text"),
        ("reading.templates_zh=词语", "'词语' of study.reading.templates_zh does not end"),
        ("reading.templates_en={} and {}", "does not end with its only"),
        ("reading.words_per_language=-5", "words_per_language is -5"),
        ("reading.words_per_language=49", "too few for study.folds=5; give at least 50"),
        ("writing.prompts_en= | ", "writing.prompts_en has no text"),
        ("writing.strength=nan", "strength is nan"),
        ("writing.strength=inf", "strength is inf"),
        ("writing.max_new_tokens=0", "max_new_tokens is 0"),
        ("writing.temperature=-1", "temperature is -1"),
        ("writing.temperature=nan", "temperature is nan"),
        ("writing.top_p=0", "top_p is 0"),
    ],
)
def test_settings_without_meaning_are_named(text: str, said: str):
    with pytest.raises(UserError, match=said):
        set_to(text)


def test_texts_hold_commas_and_a_bar_stands_between_them():
    changed = set_to("writing.prompts_en=Hello, I", "reading.templates_en=Well, {} | The word {}")
    assert changed.writing.prompts_en == ("Hello, I",)
    assert changed.reading.templates_en == ("Well, {}", "The word {}")


def test_what_belongs_together_is_checked_when_all_is_set():
    changed = set_to("reading.words_per_language=20", "folds=2")
    assert (changed.reading.words_per_language, changed.folds) == (20, 2)


def test_the_judge_needs_english_texts():
    with pytest.raises(UserError, match=r"study\.judge reads English texts"):
        set_to("judge=folder", "languages=zh")


def test_a_norms_file_and_its_columns():
    changed = set_to("norms_en.path=warriner.csv", "norms_en.valence=V.Mean.Sum", "languages=en")
    assert changed.norms_en.path == "warriner.csv"
    assert (changed.norms_en.word, changed.norms_en.valence) == ("word", "V.Mean.Sum")
    assert changed.languages == ("en",)
    assert dataclasses.replace(changed, languages=("en", "zh"), norms_en=GEMMA.study.norms_en) == (
        GEMMA.study
    )
