"""Do the features predict how people rate words? Nested ridge regression and its controls.

Every feature set is judged on the same words in the same outer folds; kin words share a fold
(`words.folds`). In each outer fold the features are standardised, and the penalty chosen over inner
folds of kin words, on the training words alone (`ridge`). The score is Pearson's r between human
means and the predictions that each word got while it was held out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.feature_selection import r_regression

from emojax.emotion import ridge
from emojax.emotion import words as kinship
from emojax.emotion.controls import zipf
from emojax.emotion.norms import Norms
from emojax.emotion.rank_test import Codes
from emojax.errors import UserError

TARGETS = ("valence", "arousal")
BOOTSTRAPS = 2000
INNER_FOLDS = 10


@dataclass(frozen=True, eq=False)
class Score:
    """How well one feature set predicts one target.

    Attributes:
      r: Pearson correlation of human means and held-out predictions.
      low: lower end of its 95 % percentile bootstrap interval over groups of kin words, which are
        not independent of each other (the predictions stay as they are).
      high: upper end.
      r2: 1 - squared error / variance of the human means; below 0 is worse than their mean.
      null: r of the same procedure, penalty included, with ratings permuted over words, one per
        permutation. Its mean is slightly below 0: the mean of the other words leans away from
        that of the held-out ones.
      p: share of permutations, the true order among them, that reach r.
      predicted: held-out predictions in the order of the words.
    """

    r: float
    low: float
    high: float
    r2: float
    null: Float[np.ndarray, " permutations"]
    p: float
    predicted: Float[np.ndarray, " words"]


@dataclass(frozen=True)
class Difference:
    """r of one feature set minus r of another on the same words, with a paired bootstrap.

    The bootstrap resamples groups of kin words, the same ones for both.

    Attributes:
      r: the difference.
      low: lower end of its 95 % percentile interval.
      high: upper end.
    """

    r: float
    low: float
    high: float


def surface(norms: Norms, tokens: Int[np.ndarray, " words"]) -> Float[np.ndarray, "words 3"]:
    """What a word shows unread: length in characters, number of tokens, Zipf frequency."""
    lengths = [len(word) for word in norms.words]
    return np.stack([lengths, tokens, zipf(norms.words, norms.language)], axis=1).astype(float)


def compare(
    feature_sets: Mapping[str, Codes], norms: Norms, folds: int, permutations: int, seed: int
) -> dict[str, dict[str, Score]]:
    """Scores every feature set on the same words and folds.

    Args:
      feature_sets: name -> features of the norm's words, `[words, features]`.
      norms: the words and their human ratings; `norms.for_test` keeps the words that chose the
        features out.
      folds: number of outer folds.
      permutations: how many times the ratings are permuted for the null.
      seed: of folds, permutations and bootstrap.

    Returns:
      name -> target ("valence", "arousal") -> score.

    Raises:
      UserError: there are too few words for the folds, or the ratings do not vary.
    """
    outer = _outer(norms, folds, seed)
    rng = np.random.default_rng(seed)
    orders = np.stack(
        [np.arange(len(norms.words))]
        + [rng.permutation(len(norms.words)) for _ in range(permutations)]
    )
    # Permuted ratings are further targets of the same regressions: [words, (1 + permutations) x 2].
    y = np.concatenate(norms.ratings[orders], axis=1)
    scores = {}
    for name, features in feature_sets.items():
        predicted = held_out_predictions(_dense(features), y, outer, norms, seed)
        scores[name] = {
            target: _score(y[:, index::2], predicted[:, index::2], norms, seed)
            for index, target in enumerate(TARGETS)
        }
    return scores


def held_out_predictions(
    x: Float[np.ndarray, "words features"],
    y: Float[np.ndarray, "words targets"],
    outer: Int[np.ndarray, " words"],
    norms: Norms,
    seed: int,
) -> Float[np.ndarray, "words targets"]:
    """The prediction that each word gets from the regression on all outer folds but its own."""
    predicted = np.empty(y.shape)
    for fold in np.unique(outer):
        test, train = np.flatnonzero(outer == fold), np.flatnonzero(outer != fold)
        inner = kinship.folds([norms.words[i] for i in train], norms.language, INNER_FOLDS, seed)
        predicted[test] = ridge.fit(x[train], y[train], inner).predict(x[test])
    return predicted


def best_latents(
    codes: Codes, norms: Norms, counts: tuple[int, ...], folds: int, seed: int
) -> dict[int, dict[str, Score]]:
    """How far few latents go: those that correlate most with the training words' ratings.

    The upper bound for a list of so many latents, and the fairest contest of two dictionaries,
    since neither depends on how well the concept-sets fit it. No null is drawn.

    Returns:
      number of latents -> target -> score.
    """
    x, y = _dense(codes), norms.ratings
    outer = _outer(norms, folds, seed)
    scores: dict[int, dict[str, Score]] = {count: {} for count in counts}
    for column, target in enumerate(TARGETS):
        predicted = {count: np.empty((len(y), 1)) for count in counts}
        for fold in range(folds):
            test, train = np.flatnonzero(outer == fold), np.flatnonzero(outer != fold)
            inner = kinship.folds(
                [norms.words[i] for i in train], norms.language, INNER_FOLDS, seed
            )
            own = y[train, column]
            order = np.argsort(-np.abs(r_regression(x[train], own)), kind="stable")
            for count in counts:
                chosen = order[:count]
                model = ridge.fit(x[np.ix_(train, chosen)], own[:, None], inner)
                predicted[count][test] = model.predict(x[np.ix_(test, chosen)])
        for count in counts:
            scores[count][target] = _score(y[:, [column]], predicted[count], norms, seed)
    return scores


def transfer(
    train_codes: Codes, train: Norms, test_codes: Codes, test: Norms, seed: int
) -> dict[str, Score]:
    """Trains on the words of one language and predicts those of the other from the same latents.

    Standardisation and penalty come from the training language; r does not see the shift or the
    scale between the two norms, R² does. No null is drawn.

    Returns:
      target -> score.
    """
    inner = kinship.folds(train.words, train.language, INNER_FOLDS, seed)
    predicted = ridge.fit(_dense(train_codes), train.ratings, inner).predict(_dense(test_codes))
    return {
        target: _score(test.ratings[:, [index]], predicted[:, [index]], test, seed)
        for index, target in enumerate(TARGETS)
    }


def difference(one: Score, other: Score, norms: Norms, target: str, seed: int) -> Difference:
    """Subtracts: r of `one` minus r of `other`, both about the words of `norms`."""
    human = norms.ratings[:, TARGETS.index(target)]
    draws = _resampled(human, np.stack([one.predicted, other.predicted]), norms, seed)
    low, high = np.percentile(draws[0] - draws[1], [2.5, 97.5])
    return Difference(one.r - other.r, float(low), float(high))


def check(norms: Norms, folds: int) -> None:
    """Refuses words whose ratings cannot be predicted, before a model reads them.

    Raises:
      UserError: there are too few words for the folds, or the ratings do not vary.
    """
    if len(norms.words) < folds * INNER_FOLDS:
        raise UserError(
            f"{len(norms.words)} rated words of {norms.name} are too few for {folds} folds; take "
            f"at least {folds * INNER_FOLDS}."
        )
    if (norms.ratings.std(axis=0) == 0).any():
        raise UserError(f"All words of {norms.name} have one rating; check its columns.")


def _outer(norms: Norms, folds: int, seed: int) -> Int[np.ndarray, " words"]:
    check(norms, folds)
    return kinship.folds(norms.words, norms.language, folds, seed)


def _score(
    human: Float[np.ndarray, "words orders"],
    predicted: Float[np.ndarray, "words orders"],
    norms: Norms,
    seed: int,
) -> Score:
    """Scores column 0, the true order; further columns are permutations."""
    r = _pearson(human.T, predicted.T)
    own, guess = human[:, 0], predicted[:, 0]
    low, high = np.percentile(_resampled(own, guess[None], norms, seed)[0], [2.5, 97.5])
    r2 = 1 - ((own - guess) ** 2).sum() / ((own - own.mean()) ** 2).sum()
    p = float((r >= r[0]).mean()) if len(r) > 1 else float("nan")
    return Score(float(r[0]), float(low), float(high), float(r2), r[1:], p, guess)


def _resampled(
    human: Float[np.ndarray, " words"],
    predicted: Float[np.ndarray, "sets words"],
    norms: Norms,
    seed: int,
) -> Float[np.ndarray, "sets draws"]:
    """Pearson's r of each set of predictions on the same bootstrap samples of groups of kin."""
    rng = np.random.default_rng(seed)
    group = kinship.groups(norms.words, norms.language)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    draws = np.empty((len(predicted), BOOTSTRAPS))
    for index in range(BOOTSTRAPS):
        chosen = rng.integers(0, len(members), len(members))
        sample = np.concatenate([members[i] for i in chosen])
        draws[:, index] = _pearson(human[sample], predicted[:, sample])
    return draws


def _pearson(a: Float[np.ndarray, "... words"], b: Float[np.ndarray, "... words"]) -> np.ndarray:
    """Pearson's r along the last axis; 0 where one side does not vary."""
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    norms = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    return (a * b).sum(axis=-1) / np.where(norms > 1e-12, norms, np.inf)


def _dense(codes: Codes) -> Float[np.ndarray, "words features"]:
    return codes if isinstance(codes, np.ndarray) else codes.toarray()
