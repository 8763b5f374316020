"""Exact permutation test: do these words activate a latent more than those? For every latent.

The statistic is the rank sum of the group's words (Wilcoxon's; its AUROC form is the effect size).
Codes are sparse: on N words a latent has m positive values, which differ from one another, and
N - m zeros, which tie. Under the null every way to pick the group's n of the N words is equally
likely, so

    k, the number of positive words picked, is hypergeometric(N, m, n), and
    s, the sum of their ranks 1..m among the positives, is the sum of k of the numbers 1..m,

and with the zeros at their mean rank the rank sum is s + k (N - m - 1) / 2 plus a constant. Its
null distribution thus depends on m alone, not on the latent. It is computed exactly: the
distribution of s given k and m follows from that for m - 1 (the word of rank m is picked with
probability k / m), so one sweep over m serves all latents. No permutation is drawn, and p can be as
small as 1 / C(N, n): fine enough for Benjamini-Hochberg over any number of latents. Positive values
that tie share their mean rank, and p is then that without ties, an approximation; activations of
different words do not tie.
"""

from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float
from scipy.stats import hypergeom

Codes: TypeAlias = np.ndarray | scipy.sparse.csr_matrix | scipy.sparse.csr_array
"""Codes of words, `[words, latents]`, none negative, dense or sparse."""


def greater(
    codes: Codes, members: Bool[np.ndarray, "groups words"]
) -> tuple[Float[np.ndarray, "groups latents"], Float[np.ndarray, "groups latents"]]:
    """Tests for each group of words and each latent whether the group activates it more.

    Args:
      codes: codes of all words, `[words, latents]`, none negative.
      members: which words each group holds; neither none nor all.

    Returns:
      auroc: the chance that a word of the group activates the latent more than another word does,
        ties counting half; .5 is no effect.
      p: exact one-sided permutation p-value.

    Raises:
      ValueError: a code is negative or not finite, or a group is empty or holds all words.
    """
    words = members.shape[1]
    sizes = members.sum(axis=1)
    if ((sizes == 0) | (sizes == words)).any():
        raise ValueError("each group must hold some but not all words")
    columns = scipy.sparse.csc_array(codes)
    columns.eliminate_zeros()
    if columns.data.size and not (np.isfinite(columns.data).all() and columns.data.min() > 0):
        raise ValueError("codes must be finite and not negative")

    positive = np.diff(columns.indptr)
    ranks = scipy.sparse.csc_array(
        (_ranks(columns), columns.indices, columns.indptr), shape=columns.shape
    )
    hits = scipy.sparse.csc_array(
        (np.ones(columns.nnz), columns.indices, columns.indptr), shape=columns.shape
    )
    group = members.astype(np.float64)
    # [groups, latents]: k and s of the docstring, then twice the statistic, which is a whole
    # number.
    k = np.asarray((hits.T @ group.T).T)
    s = np.asarray((ranks.T @ group.T).T)
    doubled = np.floor(2 * s + k * (words - positive - 1))

    constant = sizes[:, None] * (words - positive + 1) / 2  # mean rank of zeros, n times
    u = s + k * (words - positive - 1) / 2 + constant - (sizes * (sizes + 1) / 2)[:, None]
    auroc = u / (sizes * (words - sizes))[:, None]
    return auroc, _tails(doubled, positive, sizes, words)


def _ranks(columns: scipy.sparse.csc_array) -> Float[np.ndarray, " positives"]:
    """Rank of each positive value among those of its latent, ties sharing their mean."""
    starts: Any = columns.indptr
    column = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.lexsort((columns.data, column))
    value, column = np.asarray(columns.data)[order], column[order]
    place = np.arange(1, len(order) + 1) - starts[column]
    new = np.r_[True, (value[1:] != value[:-1]) | (column[1:] != column[:-1])]
    run = np.cumsum(new) - 1
    ranks = np.empty(len(order))
    if len(order):
        ranks[order] = (np.bincount(run, weights=place) / np.bincount(run))[run]
    return ranks


def _tails(doubled: np.ndarray, positive: np.ndarray, sizes: np.ndarray, words: int) -> np.ndarray:
    """P(statistic >= observed) for every group and latent."""
    most = int(sizes.max())
    top = int(positive.max(initial=0))
    count = np.arange(most + 1)  # k
    tails = np.ones(doubled.shape)
    chance = np.zeros((most + 1, most * top + 1))  # P(s | k, m), first for m = 0
    chance[0, 0] = 1.0
    for m in range(1, top + 1):
        with_m = np.zeros_like(chance)
        with_m[1:, m:] = chance[:-1, :-m]
        share = np.minimum(count / m, 1.0)[:, None]
        chance = (1 - share) * chance + share * with_m
        latents = np.flatnonzero(positive == m)
        if not latents.size:
            continue
        beyond = np.cumsum(chance[:, ::-1], axis=1)[:, ::-1]  # P(S >= s | k, m)
        for size in np.unique(sizes):
            rows = np.flatnonzero(sizes == size)
            ks = count[: min(size, m) + 1]
            weight = hypergeom.pmf(ks, words, m, size)
            observed = doubled[np.ix_(rows, latents)][..., None]
            least = np.ceil((observed - ks * (words - m - 1)) / 2).astype(np.int64)
            inside = np.clip(least, 0, beyond.shape[1] - 1)
            at_least = np.where(least < beyond.shape[1], beyond[ks, inside], 0.0)
            tails[np.ix_(rows, latents)] = np.minimum(at_least @ weight, 1.0)
    return tails
