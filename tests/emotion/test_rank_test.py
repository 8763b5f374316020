import itertools

import numpy as np
import pytest
import scipy.sparse
from scipy import stats

from emojax.emotion import rank_test

pytestmark = pytest.mark.smoke


def sparse_codes(rng, words, latents, share):
    codes = rng.random((words, latents)) * (rng.random((words, latents)) < share)
    return codes.astype(np.float32)


def brute_force(column, member):
    """AUROC and the share of all ways to pick the group whose rank sum is at least as large."""
    ranks = stats.rankdata(column)
    size = member.sum()
    sums = [ranks[list(pick)].sum() for pick in itertools.combinations(range(len(ranks)), size)]
    observed = ranks[member].sum()
    auroc = (observed - size * (size + 1) / 2) / (size * (len(ranks) - size))
    return auroc, np.mean(np.array(sums) >= observed - 1e-9)


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_equals_the_count_over_all_ways_to_pick_the_group(share):
    rng = np.random.default_rng(0)
    codes = sparse_codes(rng, 11, 12, share)
    members = np.zeros((3, 11), dtype=bool)
    members[0, :3] = members[1, 4:9] = members[2, [1, 10]] = True
    auroc, p = rank_test.greater(codes, members)
    for group, latent in itertools.product(range(3), range(12)):
        expected = brute_force(codes[:, latent], members[group])
        assert (auroc[group, latent], p[group, latent]) == pytest.approx(expected, rel=1e-9)


def test_without_zeros_it_is_scipys_exact_mann_whitney_test():
    rng = np.random.default_rng(1)
    codes = 0.1 + rng.random((60, 5))
    codes[:12, 0] += 1  # complete separation: p = 1 / C(60, 12), about 7e-13
    members = np.arange(60)[None] < 12
    auroc, p = rank_test.greater(codes, members)
    expected = stats.mannwhitneyu(codes[:12], codes[12:], alternative="greater", method="exact")
    np.testing.assert_allclose(p[0], expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(auroc[0], expected.statistic / (12 * 48))
    assert auroc[0, 0] == 1.0
    assert p[0, 0] < 1e-12


def test_agrees_with_sampled_permutations_at_the_size_of_a_category():
    rng = np.random.default_rng(2)
    codes = sparse_codes(rng, 140, 6, 0.15)
    codes[:20, :3] *= 2
    members = np.arange(140)[None] < 20
    p = rank_test.greater(codes, members)[1][0]
    ranks = stats.rankdata(codes, axis=0)
    sums = np.stack([ranks[rng.permutation(140)[:20]].sum(axis=0) for _ in range(20000)])
    sampled = (sums >= ranks[:20].sum(axis=0) - 1e-9).mean(axis=0)
    np.testing.assert_allclose(p, sampled, atol=0.012)


def test_a_dead_latent_tells_nothing():
    auroc, p = rank_test.greater(np.zeros((10, 2), np.float32), np.arange(10)[None] < 4)
    assert (auroc == 0.5).all()
    assert (p == 1.0).all()


def test_under_the_null_p_is_at_most_uniform():
    rng = np.random.default_rng(3)
    codes = sparse_codes(rng, 140, 4000, 0.3)
    p = rank_test.greater(codes, np.arange(140)[None] < 20)[1][0]
    for level in (0.01, 0.05, 0.2, 0.5):
        share = (p <= level).mean()
        assert level * 0.75 - 0.004 < share < level * 1.15 + 0.004


def test_ties_among_positives_share_their_rank_and_p_is_near():
    rng = np.random.default_rng(4)
    codes = np.ceil(3 * sparse_codes(rng, 12, 30, 0.7))
    members = np.arange(12)[None] < 4
    auroc, p = rank_test.greater(codes, members)
    exact = np.array([brute_force(codes[:, latent], members[0]) for latent in range(30)])
    np.testing.assert_allclose(auroc[0], exact[:, 0])
    assert np.abs(p[0] - exact[:, 1]).mean() < 0.06


def test_sparse_and_dense_codes_give_the_same():
    rng = np.random.default_rng(5)
    codes = sparse_codes(rng, 30, 20, 0.2)
    members = np.arange(30)[None] < 7
    for one, other in zip(
        rank_test.greater(codes, members),
        rank_test.greater(scipy.sparse.csr_matrix(codes), members),
        strict=True,
    ):
        assert (one == other).all()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_codes_must_be_finite_and_not_negative(value):
    codes = np.ones((5, 2))
    codes[1, 1] = value
    with pytest.raises(ValueError, match="finite"):
        rank_test.greater(codes, np.arange(5)[None] < 2)


@pytest.mark.parametrize("size", [0, 5])
def test_groups_must_be_some_of_the_words(size):
    with pytest.raises(ValueError, match="some but not all"):
        rank_test.greater(np.ones((5, 2)), np.arange(5)[None] < size)
