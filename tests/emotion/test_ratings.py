import dataclasses

import numpy as np
import planted
import pytest
import scipy.sparse

from emojax.emotion import ratings
from emojax.emotion import words as kinship
from emojax.errors import UserError


@pytest.fixture(scope="module")
def scored():
    x, norms = planted.rated_words(0)
    noise = np.random.default_rng(9).normal(size=x.shape)
    sets = {"signal": x, "noise": noise, "part": x[:, 2:]}
    return norms, ratings.compare(sets, norms, folds=5, permutations=40, seed=0)


def test_what_determines_the_ratings_predicts_them(scored):
    _, scores = scored
    for target in ratings.TARGETS:
        score = scores["signal"][target]
        assert 0.8 < score.low < score.r < score.high < 0.95
        assert score.r2 == pytest.approx(score.r**2, abs=0.05)
        assert score.p == pytest.approx(1 / 41)
        assert score.predicted.shape == (600,)
        assert scores["part"][target].r < score.r


def test_noise_predicts_nothing_and_neither_do_features_of_permuted_ratings(scored):
    _, scores = scored
    for target in ratings.TARGETS:
        assert abs(scores["noise"][target].r) < 0.12
        assert scores["noise"][target].p > 0.02
        for name in scores:
            null = scores[name][target].null
            assert null.shape == (40,)
            assert -0.1 < null.mean() < 0.03  # held-out means lean the other way
            assert null.max() < 0.15


def test_differences_are_paired(scored):
    norms, scores = scored
    better = ratings.difference(
        scores["signal"]["valence"], scores["noise"]["valence"], norms, "valence", 0
    )
    assert better.low > 0.6
    assert better.r == scores["signal"]["valence"].r - scores["noise"]["valence"].r
    none = ratings.difference(
        scores["signal"]["valence"], scores["signal"]["valence"], norms, "valence", 0
    )
    assert (none.r, none.low, none.high) == (0, 0, 0)


def test_the_interval_covers_as_often_as_it_says(monkeypatch):
    # Words come in groups of four kin that share most of what they are.
    monkeypatch.setattr(ratings, "BOOTSTRAPS", 300)
    rng = np.random.default_rng(0)
    stems = ["".join(chr(97 + (i // 26**j) % 26) * 2 for j in range(3)) for i in range(50)]
    words = tuple(stem + ending for stem in stems for ending in ("", "s", "ing", "ness"))
    norms = dataclasses.replace(planted.rated_words(0)[1].take(np.arange(200)), words=words)
    group = kinship.groups(words, "en")
    assert len(np.unique(group)) == 50

    def kin_noise() -> np.ndarray:
        return 0.8 * rng.normal(size=50)[group] + 0.6 * rng.normal(size=200)

    covered = 0
    for seed in range(60):
        a = kin_noise()
        b = 0.6 * a + 0.8 * kin_noise()
        draws = ratings._resampled(a, b[None], norms, seed)[0]
        low, high = np.percentile(draws, [2.5, 97.5])
        covered += low <= 0.6 <= high
    assert covered >= 51


def test_a_held_out_word_touches_neither_scaling_nor_penalty_nor_weights():
    # Whatever the words of one fold are given, they are predicted from the other words alone.
    x, norms = planted.rated_words(1, words=200)
    outer = kinship.folds(norms.words, "en", 5, 0)
    y = norms.ratings
    plain = ratings.held_out_predictions(x, y, outer, norms, 0)
    held = outer == 2
    changed_y, changed_x = y.copy(), x.copy()
    changed_y[held] = 9 - changed_y[held]
    again = ratings.held_out_predictions(x, changed_y, outer, norms, 0)
    np.testing.assert_array_equal(again[held], plain[held])
    assert np.abs(again[~held] - plain[~held]).max() > 1e-3
    row = np.flatnonzero(held)[0]
    changed_x[np.flatnonzero(held)[1:]] *= 1000
    again = ratings.held_out_predictions(changed_x, y, outer, norms, 0)
    np.testing.assert_allclose(again[row], plain[row], rtol=1e-12)


def test_latents_are_chosen_in_the_training_folds():
    # Pure noise, more features than words: choosing by all words' ratings would predict them well.
    rng = np.random.default_rng(2)
    _, norms = planted.rated_words(2, words=150)
    noise = rng.normal(size=(150, 2000))
    honest = ratings.best_latents(noise, norms, (5, 20), folds=5, seed=0)
    r = np.abs(np.corrcoef(noise.T, norms.valence)[-1, :-1])
    leaky = noise[:, np.argsort(-r)[:20]]
    leaked = ratings.compare({"leaky": leaky}, norms, 5, 0, 0)["leaky"]["valence"].r
    assert leaked > 0.5
    for count in (5, 20):
        assert honest[count]["valence"].r < 0.25


def test_best_latents_find_the_planted_ones():
    x, norms = planted.rated_words(3)
    scores = ratings.best_latents(x, norms, (1, 5), folds=5, seed=0)
    for target in ratings.TARGETS:
        assert scores[5][target].r > 0.8
        assert scores[1][target].r < scores[5][target].r


def test_transfer_between_languages():
    x, norms = planted.rated_words(4)
    train = norms.take(np.arange(300))
    test = dataclasses.replace(norms.take(np.arange(300, 600)), language="zh")
    scores = ratings.transfer(x[:300], train, x[300:], test, seed=0)
    assert scores["valence"].r > 0.8
    assert scores["arousal"].low < scores["arousal"].r < scores["arousal"].high
    assert np.isnan(scores["valence"].p)


def test_sparse_codes_give_the_same():
    x, norms = planted.rated_words(5, words=200)
    x = np.where(x > 0.5, x, 0)
    sets = {"dense": x, "sparse": scipy.sparse.csr_matrix(x)}
    scores = ratings.compare(sets, norms, 5, 0, 0)
    assert scores["dense"]["valence"].r == scores["sparse"]["valence"].r


def test_a_constant_prediction_correlates_with_nothing():
    _, norms = planted.rated_words(6, words=200)
    scores = ratings.compare({"none": np.zeros((200, 3))}, norms, 5, 5, 0)
    assert scores["none"]["valence"].r2 == pytest.approx(0, abs=0.05)
    assert np.isfinite(scores["none"]["valence"].r)


def test_surface_of_words():
    _, norms = planted.rated_words(7, words=3)
    norms = dataclasses.replace(norms, words=("the", "joy", "happiness"))
    table = ratings.surface(norms, np.array([1, 1, 2]))
    assert table[:, 0].tolist() == [3, 3, 9]
    assert table[:, 1].tolist() == [1, 1, 2]
    assert table[0, 2] > table[1, 2] > 3


def test_too_few_words_and_constant_ratings():
    x, norms = planted.rated_words(8, words=40)
    with pytest.raises(UserError, match="40 rated words of planted are too few for 5 folds"):
        ratings.compare({"x": x}, norms, 5, 0, 0)
    x, norms = planted.rated_words(8, words=100)
    flat = dataclasses.replace(norms, arousal=np.full(100, 5.0))
    with pytest.raises(UserError, match="one rating"):
        ratings.compare({"x": x}, flat, 5, 0, 0)
