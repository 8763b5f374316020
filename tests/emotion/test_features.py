import dataclasses

import numpy as np
import planted
import pytest
import scipy.sparse

from emojax.emotion import concepts, features
from emojax.emotion.features import Thresholds
from emojax.errors import UserError


def select(seed, thresholds=None, language="en", **kind):
    own, pool = planted.codes(seed, **kind)
    return features.select(
        planted.concept_set(language),
        own,
        planted.controls(language),
        pool,
        thresholds or Thresholds(),
    )


@pytest.fixture(scope="module")
def found():
    return select(0, general=True)


def test_planted_latents_are_found_and_little_else(found):
    wrong = 0
    for category, listed in enumerate(found.lists):
        own = {planted.PLANTED * category + i for i in range(planted.PLANTED)}
        assert own <= set(listed.tolist())
        assert set(listed[: planted.PLANTED].tolist()) == own  # best first
        wrong += len(set(listed.tolist()) - own)
    assert wrong <= 0.1 * sum(map(len, found.lists))


def test_what_all_emotions_share_belongs_to_none(found):
    general = planted.LATENTS - 1
    assert (found.effect[:, general] == 1.0).all()  # perfect against controls
    assert abs(found.specificity[:, general].mean() - 0.5) < 0.01
    assert not any(general in listed for listed in found.lists)


def test_null_codes_give_hardly_any_latent():
    null = select(1, planted=False)
    # Benjamini-Hochberg at .05: with nothing to find, any discovery has a chance of .05.
    assert sum(map(len, null.lists)) <= 1
    assert (null.p[:, null.density > 0] <= 0.01).mean() < 0.01 * 1.3


def test_shuffled_concept_words_give_hardly_any_latent():
    own, pool = planted.codes(0, general=True)
    dealt = concepts.shuffled(planted.concept_set(), 0)
    null = features.select(dealt, own, planted.controls(), pool, Thresholds())
    assert sum(map(len, null.lists)) <= 1


def test_reported_numbers_are_those_of_the_codes(found):
    own, pool = planted.codes(0, general=True)
    inside = planted.concept_set().labels == 4
    latent = planted.PLANTED * 4
    assert found.coverage[4, latent] == (own[inside, latent] > 0).mean() >= 0.5
    assert found.density[latent] == (pool[:, latent] > 0).mean()
    greater = own[inside, latent][:, None] > pool[:, latent]
    equal = own[inside, latent][:, None] == pool[:, latent]
    assert found.effect[4, latent] == pytest.approx((greater + equal / 2).mean())
    greater = own[inside, latent][:, None] > own[~inside, latent]
    equal = own[inside, latent][:, None] == own[~inside, latent]
    assert found.specificity[4, latent] == pytest.approx((greater + equal / 2).mean())
    assert (found.q >= found.p - 1e-15).all()


def test_thresholds_are_kept():
    strict = select(0, Thresholds(coverage=0.85, features=0))
    loose = select(0)
    for category in range(26):
        listed = strict.lists[category]
        assert (strict.coverage[category, listed] >= 0.85).all()
        assert set(listed) <= set(loose.lists[category])
    assert sum(map(len, strict.lists)) < sum(map(len, loose.lists))
    assert sum(map(len, select(0, Thresholds(density=0.0)).lists)) < sum(map(len, loose.lists))


def test_sparse_codes_give_the_same(found):
    own, pool = (scipy.sparse.csr_matrix(c) for c in planted.codes(0, general=True))
    sparse = features.select(planted.concept_set(), own, planted.controls(), pool, Thresholds())
    assert (sparse.p == found.p).all()
    assert (sparse.coverage == found.coverage).all()


def test_codes_must_fit_the_words():
    own, pool = planted.codes(0)
    with pytest.raises(ValueError, match="one row of codes per word"):
        features.select(planted.concept_set(), own[1:], planted.controls(), pool, Thresholds())


def test_an_emotion_with_too_few_features_is_named():
    lists = list(select(0).lists)
    lists[17] = lists[17][:0]
    poor = dataclasses.replace(select(0), lists=tuple(lists))
    with pytest.raises(UserError, match=r"'en' for joy \(0\): at least 1 per emotion"):
        features.require(poor)
    with pytest.raises(UserError, match="joy"):
        features.combine(select(1), poor)


def test_shared_lists_and_spaces():
    both = features.combine(select(0), select(1, language="zh"))
    planted_and_shared = np.arange(26 * planted.PLANTED)
    assert np.isin(planted_and_shared, both.space("shared")).mean() > 0.95
    for category in range(26):
        expected = set(both.read("en")[category]) & set(both.read("zh")[category])
        assert set(both.shared[category]) == expected
    assert set(both.space("shared")) <= set(both.space("en")) & set(both.space("zh"))
    assert (np.diff(both.space("en")) > 0).all()
    assert both.read("zh") is both.selections["zh"].lists


def test_ranking_needs_no_threshold(found):
    best = features.ranked(found, 26 * planted.PLANTED)
    assert len(set(best) & set(range(26 * planted.PLANTED))) >= 0.95 * len(best)
    assert len(features.ranked(found, 200)) == 200
    assert (np.diff(best) > 0).all()


def test_latents_outside_match_in_density_and_are_outside():
    rng = np.random.default_rng(0)
    codes = (rng.random((500, 400)) < np.linspace(0, 0.5, 400)).astype(np.float32)
    inside, excluded = np.arange(0, 400, 5), np.arange(1, 400, 5)
    drawn = features.outside(codes, inside, excluded, seed=0)
    assert len(set(drawn)) == len(inside)
    assert not set(drawn) & (set(inside) | set(excluded))
    density = (codes > 0).mean(axis=0)
    np.testing.assert_allclose(np.sort(density[drawn]), np.sort(density[inside]), atol=0.05)
    assert (drawn != features.outside(codes, inside, excluded, seed=1)).any()
    with pytest.raises(UserError, match="only 8 are outside"):
        features.outside(codes, np.arange(390), excluded, seed=0)
