import dataclasses

import numpy as np
import planted
import pytest
import scipy.sparse
from scipy import stats

from emojax.emotion import space
from emojax.emotion.concepts import CATEGORIES
from emojax.emotion.norms import Norms
from emojax.errors import UserError

LATENTS = np.arange(2, 60)


def circumplex(seed, noise=0.3, language="en"):
    """Concept codes in which two directions over the latents carry valence and arousal."""
    truth = np.random.default_rng(0)
    human = truth.normal(size=(26, 2))
    weights = truth.normal(size=(2, 60))
    concepts = planted.concept_set(language)
    rng = np.random.default_rng(seed)
    codes = (human @ (weights * [[2.0], [1.0]]))[concepts.labels]
    codes = codes + noise * 5 * rng.normal(size=codes.shape)
    rated = concepts.words[::2]  # every other concept word is rated
    ratings = 5 + human[concepts.labels[::2]] + 0.2 * rng.normal(size=(len(rated), 2))
    norms = Norms("made", language, (*rated, "table"), *np.vstack([ratings, [5, 5]]).T, "here")
    return concepts, codes.astype(np.float32), human, norms


def test_rdm_and_components_are_those_of_the_centred_means():
    concepts, codes, _, _ = circumplex(1)
    built = space.build(concepts, codes, LATENTS)
    means = np.stack([codes[concepts.labels == c][:, LATENTS].mean(0) for c in range(26)])
    means = means.astype(np.float64) - means.mean(0)
    np.testing.assert_allclose(built.rdm, 1 - np.corrcoef(means), atol=1e-5)
    assert (np.diag(built.rdm) == 0).all()
    covariance = np.cov(built.scores.T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-6)
    assert built.explained.sum() == pytest.approx(1)
    assert (np.diff(built.explained) <= 0).all()
    sparse = space.build(concepts, scipy.sparse.csr_matrix(codes), LATENTS)
    np.testing.assert_allclose(sparse.rdm, built.rdm)


def test_category_ratings_are_means_over_rated_concept_words():
    concepts, _, human, norms = circumplex(1)
    rated = space.category_ratings(concepts, norms)
    assert (rated.counts == planted.PER_CATEGORY // 2).all()
    np.testing.assert_allclose(rated.values, 5 + human, atol=0.35)
    some = norms.take(np.arange(100))
    part = space.category_ratings(concepts, some)
    assert np.isnan(part.values[part.counts == 0]).all()
    assert (part.counts == 0).sum() > 5
    with pytest.raises(UserError, match="of only 1 of 26 emotions in language 'en'"):
        space.category_ratings(concepts, norms.take(np.arange(3)))


def test_components_recover_valence_and_arousal():
    concepts, codes, _, norms = circumplex(1)
    rated = space.category_ratings(concepts, norms)
    found = space.components(concepts, codes, LATENTS, rated, 200, 30, seed=0)
    assert len(found) == space.COMPONENTS
    assert abs(found[0][0].r) > 0.75  # valence has the larger weights
    assert found[0][0].p == pytest.approx(1 / 201)
    assert abs(found[1][1].r) > 0.75
    for valence, arousal in found:
        for c in (valence, arousal):
            assert c.low <= c.r <= c.high or abs(c.r) < 0.6
    assert max(abs(found[4][0].r), abs(found[4][1].r)) < 0.5


def test_held_out_recovery_and_its_null():
    concepts, codes, _, norms = circumplex(1)
    rated = space.category_ratings(concepts, norms)
    valence, arousal = space.recover(concepts, codes, LATENTS, rated, 200, 30, seed=0)
    assert valence.r > 0.8
    assert arousal.r > 0.7
    assert valence.p == arousal.p == pytest.approx(1 / 201)
    assert valence.low <= valence.r <= valence.high + 0.05
    noise = np.random.default_rng(5).normal(size=codes.shape).astype(np.float32)
    valence, arousal = space.recover(concepts, noise, LATENTS, rated, 200, 5, seed=0)
    assert max(valence.r, arousal.r) < 0.5
    assert min(valence.p, arousal.p) > 0.02


def test_recovery_holds_the_category_out():
    # The reader's own row is zero on the diagonal, and predictions are those of a refit.
    concepts, codes, human, _ = circumplex(1)
    means = space._means(codes[:, LATENTS].astype(np.float64), concepts.labels)
    reader = space._leave_one_out(means)
    assert (np.diag(reader) == 0).all()
    others = np.arange(1, 26)
    centre = means[others].mean(0)
    vt = np.linalg.svd(means[others] - centre, full_matrices=False)[2][: space.COMPONENTS]
    design = np.column_stack([np.ones(25), (means[others] - centre) @ vt.T])
    weights = np.linalg.lstsq(design, human[others], rcond=None)[0]
    expected = np.r_[1, (means[0] - centre) @ vt.T] @ weights
    np.testing.assert_allclose((reader @ human)[0], expected, rtol=1e-6)


def test_a_category_without_ratings_is_left_out():
    concepts, codes, _, norms = circumplex(1)
    keep = np.array([i for i, word in enumerate(norms.words) if not word.startswith("joy")])
    rated = space.category_ratings(concepts, norms.take(keep))
    assert rated.counts[CATEGORIES.index("joy")] == 0
    valence, _ = space.recover(concepts, codes, LATENTS, rated, 20, 5, seed=0)
    assert valence.r > 0.8
    assert abs(space.components(concepts, codes, LATENTS, rated, 20, 5, seed=0)[0][0].r) > 0.8


def test_languages_with_one_geometry_agree_and_others_do_not():
    one, other = circumplex(1), circumplex(2, language="zh")
    alike = space.rdm_correlation((*one[:2], LATENTS), (*other[:2], LATENTS), 300, 20, seed=0)
    assert alike.r > 0.7
    assert alike.p == pytest.approx(1 / 301)
    assert alike.low < alike.high
    noise = np.random.default_rng(6).normal(size=one[1].shape).astype(np.float32)
    unlike = space.rdm_correlation((*one[:2], LATENTS), (other[0], noise, LATENTS), 300, 5, seed=0)
    assert abs(unlike.r) < 0.3
    assert unlike.p > 0.02


def test_mantel_is_spearman_and_has_a_uniform_null():
    rng = np.random.default_rng(0)

    def rdm():
        points = rng.normal(size=(26, 4))
        return 1 - np.corrcoef(points)

    a, b = rdm(), rdm()
    upper = np.triu_indices(26, 1)
    assert space.mantel(a, b, 50, 0)[0] == pytest.approx(stats.spearmanr(a[upper], b[upper])[0])
    p = [space.mantel(rdm(), rdm(), 60, seed)[1] for seed in range(60)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert space.mantel(a, a, 99, 0) == (pytest.approx(1.0), 0.01)


def test_procrustes():
    one, other = circumplex(1), circumplex(2)
    first = space.build(one[0], one[1], LATENTS)
    second = space.build(other[0], other[1], LATENTS)
    disparity, p = space.procrustes(first, second, 99, seed=0)
    assert disparity < 0.3
    assert p == pytest.approx(0.01)
    five = -3 * first.scores[:, 4::-1]
    turned = dataclasses.replace(first, scores=five, explained=first.explained[:5])
    assert space.procrustes(first, turned, 9, seed=0)[0] == pytest.approx(0, abs=1e-9)


def test_human_dissimilarities(tmp_path):
    names = ["realization", *CATEGORIES[::-1]]
    rows, columns = np.triu_indices(27, 1)
    cells = [f"{i}.{j:02d}" for i, j in zip(rows, columns, strict=True)]
    (tmp_path / "reordered_emotions.csv").write_text("\n".join(names) + "\n")
    path = tmp_path / "avg_dist_subjective_comparison.csv"
    path.write_text("Subjective Comparison\n" + "\n".join(cells) + "\n")
    rdm = space.human_rdm(tmp_path)
    assert rdm.shape == (26, 26)
    assert (rdm == rdm.T).all()
    # The last two of the alphabet stand second and third in the file.
    assert rdm[25, 24] == 1.02
    path.write_text("Subjective Comparison\n" + "\n".join(cells[1:]) + "\n")
    with pytest.raises(UserError, match="27 and 350"):
        space.human_rdm(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        space.human_rdm(tmp_path)


@pytest.mark.parametrize("count", [0, 1])
def test_a_space_needs_two_latents(count):
    concepts, codes, _, _ = circumplex(1)
    with pytest.raises(UserError, match=f"has {count} latents"):
        space.build(concepts, codes, LATENTS[:count])


def test_a_category_without_activation_is_named():
    concepts, codes, _, _ = circumplex(1)
    with pytest.raises(UserError, match="do not tell admiration"):
        space.build(concepts, np.zeros_like(codes), LATENTS)
