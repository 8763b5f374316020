"""The emotion space: where the 26 categories lie, and whether valence and arousal order it.

A category's place is the mean code of its concept words over the latents of the space, less the
mean of all categories (what every emotion word shares says nothing about how emotions differ). From
the places come the dissimilarity matrix (RDM, 1 - Pearson's r; Kriegeskorte, Mur & Bandettini 2008)
and the principal components. Human valence and arousal of a category are the mean human ratings of
those of its concept words that a norm has: rated words and concept words were chosen independently
of each other.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.spatial import procrustes as scipy_procrustes
from scipy.stats import rankdata

from emojax.emotion.concepts import CATEGORIES, ConceptSet
from emojax.emotion.norms import Norms
from emojax.emotion.rank_test import Codes
from emojax.errors import UserError

COMPONENTS = 5  # that a read-out of valence or arousal may use


@dataclass(frozen=True, eq=False)
class Space:
    """Where the categories lie in one language. Rows are in the order of `CATEGORIES`.

    Attributes:
      language: "en" or "zh".
      places: mean codes over the space's latents, less their mean over categories.
      rdm: 1 - Pearson's r between places; zero on the diagonal.
      scores: principal components of the places, the first first. Signs are free.
      explained: share of the variance of each component.
    """

    language: str
    places: Float[np.ndarray, "categories latents"]
    rdm: Float[np.ndarray, "categories categories"]
    scores: Float[np.ndarray, "categories components"]
    explained: Float[np.ndarray, " components"]


@dataclass(frozen=True, eq=False)
class CategoryRatings:
    """Human valence and arousal of the categories.

    Attributes:
      values: mean ratings on the norm's scale, valence and arousal; NaN for a category without a
        rated word.
      counts: rated concept words behind each.
    """

    values: Float[np.ndarray, "categories 2"]
    counts: Int[np.ndarray, " categories"]


@dataclass(frozen=True, eq=False)
class Correlation:
    """A correlation over categories or over pairs of them.

    Attributes:
      r: the correlation.
      low: lower end of a 95 % percentile interval, concept words resampled within each category.
      high: upper end.
      p: share of permutations of the categories, the true order among them, that reach it.
    """

    r: float
    low: float
    high: float
    p: float


def build(concepts: ConceptSet, codes: Codes, latents: Int[np.ndarray, " latents"]) -> Space:
    """The space that `latents` span.

    Args:
      concepts: the concept words.
      codes: their codes, `[concept words, all latents]`.
      latents: the latents of the space, such as `EmotionFeatures.space("en")`.

    Raises:
      UserError: the latents are fewer than two or do not tell some category from the mean.
    """
    return _build(concepts.language, _cut(codes, latents), concepts.labels)


def category_ratings(concepts: ConceptSet, norms: Norms) -> CategoryRatings:
    """Mean human ratings of the concept words that the norm has, per category.

    Raises:
      UserError: fewer than ten categories have a rated word.
    """
    row = {word: index for index, word in enumerate(norms.words)}
    values = np.full((len(CATEGORIES), 2), np.nan)
    counts = np.zeros(len(CATEGORIES), dtype=np.int64)
    for index, category in enumerate(CATEGORIES):
        rated = [row[word] for word in concepts.of(category) if word in row]
        counts[index] = len(rated)
        if rated:
            values[index] = norms.ratings[rated].mean(axis=0)
    if (counts > 0).sum() < 10:
        raise UserError(
            f"{norms.name} rates concept words of only {(counts > 0).sum()} of {len(CATEGORIES)} "
            f"emotions in language '{concepts.language}'; take a larger norm of that language."
        )
    return CategoryRatings(values, counts)


def components(
    concepts: ConceptSet,
    codes: Codes,
    latents: Int[np.ndarray, " latents"],
    ratings: CategoryRatings,
    permutations: int,
    bootstraps: int,
    seed: int,
) -> tuple[tuple[Correlation, Correlation], ...]:
    """Pearson's r of each of the first `COMPONENTS` components with human (valence, arousal).

    Component signs are free, so p is two-sided; and one of several components is looked for, so p
    is of the largest |r| among them (Nichols & Holmes 2002). In each bootstrap sample the
    components are matched to those of the full space (largest |r|, each once) and turned to agree
    with them in sign before they are correlated.
    """
    table = _cut(codes, latents)
    known = np.flatnonzero(ratings.counts)
    human = ratings.values[known]
    scores = _build(concepts.language, table, concepts.labels).scores[:, :COMPONENTS]
    r = _correlate(scores[known], human)
    rng = np.random.default_rng(seed)
    null = np.stack(
        [_correlate(scores[known], human[rng.permutation(len(known))]) for _ in range(permutations)]
    )
    largest = np.abs(null).max(axis=1, keepdims=True)
    p = (1 + (largest >= np.abs(r) - 1e-12).sum(axis=0)) / (1 + permutations)
    draws = []
    for sample in _samples(concepts, bootstraps, rng):
        drawn = _build(concepts.language, table[sample], concepts.labels[sample]).scores
        draws.append(_correlate(_matched(drawn[:, :COMPONENTS], scores)[known], human))
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return tuple(
        (
            Correlation(*(float(v[c, 0]) for v in (r, low, high, p))),
            Correlation(*(float(v[c, 1]) for v in (r, low, high, p))),
        )
        for c in range(scores.shape[1])
    )


def recover(
    concepts: ConceptSet,
    codes: Codes,
    latents: Int[np.ndarray, " latents"],
    ratings: CategoryRatings,
    permutations: int,
    bootstraps: int,
    seed: int,
) -> tuple[Correlation, Correlation]:
    """Held-out recovery of human (valence, arousal) from `COMPONENTS` components together.

    Arousal need not lie along one component. Each category in turn is left out; components of the
    others and a least-squares regression on them predict it; r is between predictions and human
    means, p one-sided. (Predictions of held-out categories correlate below zero under the null,
    which the permutations share.)
    """
    table = _cut(codes, latents)
    known = np.flatnonzero(ratings.counts)
    human = ratings.values[known]

    def held_out(
        rows: np.ndarray, labels: np.ndarray
    ) -> Float[np.ndarray, "categories categories"]:
        return _leave_one_out(_means(rows, labels)[known])

    reader = held_out(table, concepts.labels)
    r = _paired(reader @ human, human)
    rng = np.random.default_rng(seed)
    null = []
    for _ in range(permutations):
        shuffled = human[rng.permutation(len(known))]
        null.append(_paired(reader @ shuffled, shuffled))
    p = (1 + (np.array(null) >= r - 1e-12).sum(axis=0)) / (1 + permutations)
    draws = [
        _paired(held_out(table[sample], concepts.labels[sample]) @ human, human)
        for sample in _samples(concepts, bootstraps, rng)
    ]
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    valence, arousal = (Correlation(*(float(v[t]) for v in (r, low, high, p))) for t in range(2))
    return valence, arousal


def rdm_correlation(
    one: tuple[ConceptSet, Codes, Int[np.ndarray, " latents"]],
    other: tuple[ConceptSet, Codes, Int[np.ndarray, " others"]],
    permutations: int,
    bootstraps: int,
    seed: int,
) -> Correlation:
    """Spearman's rho between two spaces' RDMs, with a Mantel permutation p (one-sided).

    Args:
      one: concept words, their codes and the latents of one space.
      other: those of the other; its latents may be the same or others.
      permutations: how many times the categories of one RDM are permuted.
      bootstraps: how many times the concept words of both are resampled, within each category.
      seed: of both.
    """
    tables = [(concepts, _cut(codes, latents)) for concepts, codes, latents in (one, other)]
    rdms = [_build(c.language, table, c.labels).rdm for c, table in tables]
    rng = np.random.default_rng(seed)
    rho, p = _mantel(rdms[0], rdms[1], permutations, rng)
    samples = zip(*(_samples(c, bootstraps, rng) for c, _ in tables), strict=True)
    draws = []
    for pair in samples:
        drawn = [
            _build(c.language, table[sample], c.labels[sample]).rdm
            for (c, table), sample in zip(tables, pair, strict=True)
        ]
        draws.append(_spearman(_upper(drawn[0]), _upper(drawn[1])))
    low, high = np.percentile(draws, [2.5, 97.5])
    return Correlation(rho, float(low), float(high), p)


def mantel(
    one: Float[np.ndarray, "categories categories"],
    other: Float[np.ndarray, "categories categories"],
    permutations: int,
    seed: int,
) -> tuple[float, float]:
    """Spearman's rho of two RDMs, such as a space's and people's, and its Mantel p (one-sided)."""
    return _mantel(one, other, permutations, np.random.default_rng(seed))


def procrustes(one: Space, other: Space, permutations: int, seed: int) -> tuple[float, float]:
    """How well the first `COMPONENTS` components of two spaces can be laid on each other.

    Returns:
      disparity after the best shift, scaling and rotation (0 alike, 1 unlike), and the share of
      permutations of the categories, the true order among them, that are as small.
    """
    a, b = one.scores[:, :COMPONENTS], other.scores[:, :COMPONENTS]
    width = min(a.shape[1], b.shape[1])
    a, b = a[:, :width], b[:, :width]
    disparity = float(scipy_procrustes(a, b)[2])
    rng = np.random.default_rng(seed)
    null = np.array(
        [scipy_procrustes(a, b[rng.permutation(len(b))])[2] for _ in range(permutations)]
    )
    return disparity, float((1 + (null <= disparity + 1e-12).sum()) / (1 + permutations))


def human_rdm(directory: Path) -> Float[np.ndarray, "categories categories"]:
    """Mean human dissimilarities of the categories, from the data of Li et al. 2024 (not shipped).

    `avg_dist_subjective_comparison.csv` holds the upper triangle, row by row, in the order of
    `reordered_emotions.csv`; *realization* is left out and the rest put in the order of
    `CATEGORIES`.

    Raises:
      UserError: a file is missing or does not hold those emotions.
    """
    tables = {}
    for name in ("reordered_emotions.csv", "avg_dist_subjective_comparison.csv"):
        try:
            with (directory / name).open(encoding="utf-8-sig", newline="") as file:
                tables[name] = [row[0] for row in csv.reader(file) if row]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{directory / name} cannot be read ({error}); give the folder of Li et al. 2024's "
                "data."
            ) from None
    names, cells = (
        tables["reordered_emotions.csv"],
        tables["avg_dist_subjective_comparison.csv"][1:],
    )
    pairs = np.triu_indices(len(names), 1)
    if set(names) != {*CATEGORIES, "realization"} or len(cells) != len(pairs[0]):
        raise UserError(
            f"{directory} does not hold 27 emotions and their 351 pairs but {len(names)} and "
            f"{len(cells)}; give the folder of Li et al. 2024's data."
        )
    rdm = np.zeros((len(names), len(names)))
    rdm[pairs] = [float(cell) for cell in cells]
    order = [names.index(category) for category in CATEGORIES]
    return (rdm + rdm.T)[np.ix_(order, order)]


def _cut(codes: Codes, latents: Int[np.ndarray, " latents"]) -> Float[np.ndarray, "words latents"]:
    if len(latents) < 2:
        raise UserError(
            f"The emotion space has {len(latents)} latents and needs at least two; loosen the "
            "thresholds, or take another layer or dictionary."
        )
    columns = codes[:, latents]
    dense = (
        columns if isinstance(columns, np.ndarray) else scipy.sparse.csr_array(columns).toarray()
    )
    return dense.astype(np.float64)


def _means(
    table: Float[np.ndarray, "words latents"], labels: Int[np.ndarray, " words"]
) -> Float[np.ndarray, "categories latents"]:
    return np.stack([table[labels == category].mean(axis=0) for category in range(len(CATEGORIES))])


def _build(
    language: str, table: Float[np.ndarray, "words latents"], labels: Int[np.ndarray, " words"]
) -> Space:
    means = _means(table, labels)
    places = means - means.mean(axis=0)
    spread = places - places.mean(axis=1, keepdims=True)
    length = np.linalg.norm(spread, axis=1)
    if (length < 1e-12).any():
        flat = ", ".join(c for c, size in zip(CATEGORIES, length, strict=True) if size < 1e-12)
        raise UserError(
            f"The latents of the {language} space do not tell {flat} from the mean emotion; loosen "
            "the thresholds, or take another layer or dictionary."
        )
    unit = spread / length[:, None]
    rdm = 1 - unit @ unit.T
    np.fill_diagonal(rdm, 0.0)
    u, s, _ = np.linalg.svd(places, full_matrices=False)
    keep = s > 1e-10 * s[0]
    return Space(language, places, rdm, (u * s)[:, keep], (s**2 / (s**2).sum())[keep])


def _samples(concepts: ConceptSet, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Bootstrap samples of the concept words, within each category."""
    own = [np.flatnonzero(concepts.labels == category) for category in range(len(CATEGORIES))]
    return [np.concatenate([rng.choice(words, len(words)) for words in own]) for _ in range(count)]


def _leave_one_out(means: Float[np.ndarray, "n latents"]) -> Float[np.ndarray, "n n"]:
    """The matrix from targets to held-out predictions: everything is fitted on the other rows."""
    u, s, _ = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    means = u * s  # the same places in as few coordinates as they span
    reader = np.zeros((len(means), len(means)))
    for index in range(len(means)):
        others = np.delete(np.arange(len(means)), index)
        centre = means[others].mean(axis=0)
        u, s, vt = np.linalg.svd(means[others] - centre, full_matrices=False)
        width = min(COMPONENTS, int((s > 1e-10 * s[0]).sum()))
        place = (means[index] - centre) @ vt[:width].T / s[:width]
        reader[index, others] = 1 / len(others) + u[:, :width] @ place
    return reader


def _matched(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Columns of `scores` in the order and with the signs that agree best with `reference`."""
    r = _correlate(reference, scores)
    rows, columns = linear_sum_assignment(-np.abs(r))
    matched = np.zeros_like(reference)
    matched[:, rows] = scores[:, columns] * np.sign(r[rows, columns])
    return matched


def _correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r of every column of `a` with every column of `b`."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0))
    return a.T @ b / np.where(scale > 1e-12, scale, np.inf)


def _paired(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r of each column of `a` with the same column of `b`."""
    return np.diag(_correlate(a, b))


def _upper(rdm: np.ndarray) -> np.ndarray:
    return rdm[np.triu_indices(len(rdm), 1)]


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _mantel(
    one: np.ndarray, other: np.ndarray, permutations: int, rng: np.random.Generator
) -> tuple[float, float]:
    pairs = np.triu_indices(len(one), 1)
    ranks = np.zeros(other.shape)
    ranks[pairs] = rankdata(other[pairs])
    ranks += ranks.T
    own = rankdata(one[pairs])
    own = (own - own.mean()) / np.linalg.norm(own - own.mean())
    # Permuting categories permutes the ranks of pairs, so mean and norm stay what they are.
    spread = np.linalg.norm(ranks[pairs] - ranks[pairs].mean())
    rho = own @ ranks[pairs] / spread
    null = np.empty(permutations)
    for index in range(permutations):
        order = rng.permutation(len(ranks))
        null[index] = own @ ranks[np.ix_(order, order)][pairs] / spread
    return float(rho), float((1 + (null >= rho - 1e-12).sum()) / (1 + permutations))
