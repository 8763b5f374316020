"""Ridge regression whose penalty is chosen by grouped cross-validation from one eigendecomposition.

With features standardised and an intercept, the ridge residuals on the n training words are M y,
where M = C - U diag(l / (l + a)) U', C centres, and U, l are the eigenvectors and eigenvalues of Z
Z' (equally those of Z'Z, turned round, whichever is smaller). Leaving out a whole fold g of words,
the prediction errors on it are

    e_g = (M_gg)^-1 (M y)_g,

the block form of the leave-one-out formula (Allen's PRESS; Golub, Heath & Wahba 1979, Technometrics
21:215): exact, with nothing refitted, so all penalties, folds and targets share one decomposition.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

# Penalties tried. With standardised features the eigenvalues sum to words x features, so the grid,
# in units of their mean over words, reaches from hardly any shrinkage to nearly all.
PENALTIES = tuple(float(p) for p in np.geomspace(1e-4, 1e3, 15))


@dataclass(frozen=True, eq=False)
class Ridge:
    """A fitted ridge regression of several targets.

    Attributes:
      mean: of each feature in the training words.
      scale: standard deviation of each feature there; 1 for one that does not vary.
      weights: of the standardised features, one column per target.
      intercept: per target.
      penalty: chosen for each target, in units of `PENALTIES`.
    """

    mean: Float[np.ndarray, " features"]
    scale: Float[np.ndarray, " features"]
    weights: Float[np.ndarray, "features targets"]
    intercept: Float[np.ndarray, " targets"]
    penalty: Float[np.ndarray, " targets"]

    def predict(self, x: Float[np.ndarray, "words features"]) -> Float[np.ndarray, "words targets"]:
        """Predicted targets of new words."""
        return (x - self.mean) / self.scale @ self.weights + self.intercept


def fit(
    x: Float[np.ndarray, "words features"],
    y: Float[np.ndarray, "words targets"],
    fold: Int[np.ndarray, " words"],
) -> Ridge:
    """Fits every target with the penalty that predicts it best across folds of the words given.

    Args:
      x: features.
      y: targets.
      fold: inner fold of each word; words of one group belong in one fold. (Inner folds share the
        scaling of all words given.)
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    words = len(x)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-12 * (1 + np.abs(mean)), scale, 1.0)
    z = (x - mean) / scale
    centre = y.mean(axis=0)
    u, eigenvalues = _decompose(z)
    unit = max(eigenvalues.sum() / words, np.finfo(float).tiny)
    projected = u.T @ (y - centre)

    # Thousands of small products: on a busy machine, threads that wait for each other at every one
    # of them take a hundred times as long as one thread.
    with threadpool_limits(1, user_api="blas"):
        errors = _left_out_errors(y - centre, u, eigenvalues, unit, fold)
    penalty = np.array(PENALTIES)[errors.argmin(axis=0)]
    weights = z.T @ (u @ (projected / (eigenvalues[:, None] + penalty * unit)))
    return Ridge(mean, scale, weights, centre, penalty)


def _left_out_errors(
    y: Float[np.ndarray, "words targets"],
    u: Float[np.ndarray, "words rank"],
    eigenvalues: Float[np.ndarray, " rank"],
    unit: float,
    fold: Int[np.ndarray, " words"],
) -> Float[np.ndarray, "penalties targets"]:
    """Squared error summed over the folds left out, for every penalty; `y` is centred."""
    projected = u.T @ y
    errors = np.zeros((len(PENALTIES), y.shape[1]))
    for row, penalty in enumerate(PENALTIES):
        shrink = eigenvalues / (eigenvalues + penalty * unit)
        residual = y - u @ (shrink[:, None] * projected)
        for index in np.unique(fold):
            out = fold == index
            own = u[out]
            block = np.eye(len(own)) - 1 / len(y) - (own * shrink) @ own.T
            left_out = scipy.linalg.solve(block, residual[out], assume_a="pos")
            errors[row] += (left_out**2).sum(axis=0)
    return errors


def _decompose(
    z: Float[np.ndarray, "words features"],
) -> tuple[Float[np.ndarray, "words rank"], Float[np.ndarray, " rank"]]:
    """Left singular vectors of `z` and squared singular values, those above rounding error."""
    tall = z.shape[0] > z.shape[1]
    eigenvalues, vectors = np.linalg.eigh(z.T @ z if tall else z @ z.T)
    keep = eigenvalues > 1e-10 * max(eigenvalues.max(initial=0.0), 0.0)
    eigenvalues, vectors = eigenvalues[keep], vectors[:, keep]
    if tall:
        vectors = z @ vectors / np.sqrt(eigenvalues)
    return vectors, eigenvalues
