import dataclasses

import numpy as np
import pytest

from emojax.emotion import concepts, controls, words
from emojax.errors import UserError


@pytest.fixture(scope="module", params=concepts.LANGUAGES)
def chosen(request):
    concept_set = concepts.load(request.param)
    return concept_set, controls.choose(concept_set, seed=0)


def test_each_category_has_its_own_number_of_different_words(chosen):
    concept_set, pool = chosen
    assert len(pool.matched) == 26
    for category, indices in enumerate(pool.matched):
        assert len(indices) == controls.PER_WORD * (concept_set.labels == category).sum()
        assert len(set(indices)) == len(indices)
    assert len(set(pool.words)) == len(pool.words)
    assert set(np.concatenate(pool.matched)) == set(range(len(pool.words)))


def test_no_control_is_a_concept_word_or_its_kin(chosen):
    concept_set, pool = chosen
    assert not set(pool.words) & set(concept_set.words)
    assert not words.kin(pool.words, concept_set.words, pool.language).any()


def test_length_and_frequency_match_in_every_category(chosen):
    match = controls.match(*chosen)
    assert match["largest length gap"] < 0.1
    assert match["largest zipf gap"] < controls.BAND / 2
    assert match["control zipf"] == pytest.approx(match["concept zipf"], abs=0.1)
    assert match["control words"] == len(chosen[1].words) < 1000


def test_the_seed_decides(chosen):
    concept_set, pool = chosen
    assert controls.choose(concept_set, seed=0).words == pool.words
    assert controls.choose(concept_set, seed=1).words != pool.words


def test_function_words_and_most_names_are_left_out():
    english = set(controls.candidates(concepts.load("en")))
    assert not english & {"the", "these", "jennifer", "michael", "berlin"}
    assert {"kitchen", "borrowed", "shallow"} <= english
    chinese = set(controls.candidates(concepts.load("zh")))
    assert not chinese & {"我们", "北京", "因为", "李明", "三个"}
    assert {"厨房", "学习"} <= chinese


def test_too_few_candidates(monkeypatch):
    monkeypatch.setattr(controls, "candidates", lambda _: ("kitchen", "borrowed"))
    with pytest.raises(UserError, match="'admiration' needs 120 control words and there are 2"):
        controls.choose(concepts.load("en"), seed=0)


def test_an_empty_cell_borrows_from_the_nearest(monkeypatch):
    concept_set = concepts.load("en")
    two = dataclasses.replace(
        concept_set, words=concept_set.words[:1], labels=concept_set.labels[:1]
    )
    pool = ("abcdefghij", "abcdefghijk", "ab")  # admiration has ten letters
    monkeypatch.setattr(controls, "candidates", lambda _: pool)
    assert set(controls.choose(two, 0, per_word=1).words) == {"abcdefghij"}
    assert set(controls.choose(two, 0, per_word=2).words) == {"abcdefghij", "abcdefghijk"}


def test_zipf_of_known_and_unknown_words():
    assert controls.zipf(["the", "qqqzzq"], "en").tolist() == pytest.approx([7.73, 0.0])
