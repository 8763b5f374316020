import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from emojax.emotion import ridge


def problem(words, features, seed=0, targets=2):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(words, features)) * rng.uniform(0.1, 10, features) + 3
    y = x[:, :3] @ rng.normal(size=(3, targets)) + 4 * rng.normal(size=(words, targets)) + 5
    return x, y, rng.integers(0, 6, words)


@pytest.mark.parametrize("features", [8, 90])
def test_is_scikit_learns_ridge_with_the_penalty_that_refitting_would_choose(features):
    x, y, fold = problem(60, features)
    fitted = ridge.fit(x, y, fold)
    z = StandardScaler().fit_transform(x)
    unit = (z**2).sum() / len(z)
    for target in range(2):
        errors = []
        for penalty in ridge.PENALTIES:
            error = 0.0
            for index in range(6):
                out = fold == index
                model = Ridge(penalty * unit).fit(z[~out], y[~out, target])
                error += ((model.predict(z[out]) - y[out, target]) ** 2).sum()
            errors.append(error)
        best = int(np.argmin(errors))
        assert fitted.penalty[target] == ridge.PENALTIES[best]
        model = Ridge(ridge.PENALTIES[best] * unit).fit(z, y[:, target])
        np.testing.assert_allclose(fitted.predict(x)[:, target], model.predict(z), rtol=1e-6)


@pytest.mark.parametrize("features", [8, 90])
def test_left_out_errors_are_exact(features):
    x, y, fold = problem(60, features, targets=1)
    z = StandardScaler().fit_transform(x)
    u, eigenvalues = ridge._decompose(z)
    unit = eigenvalues.sum() / len(z)
    errors = ridge._left_out_errors(y - y.mean(0), u, eigenvalues, unit, fold)
    for penalty, error in zip(ridge.PENALTIES, errors[:, 0], strict=True):
        expected = 0.0
        for index in range(6):
            out = fold == index
            model = Ridge(penalty * unit).fit(z[~out], y[~out, 0])
            expected += ((model.predict(z[out]) - y[out, 0]) ** 2).sum()
        assert error == pytest.approx(expected, rel=1e-6)


def test_features_that_do_not_vary_do_nothing():
    x, y, fold = problem(60, 5)
    constant = np.column_stack([x, np.full(60, 7.0), np.zeros(60)])
    np.testing.assert_allclose(
        ridge.fit(constant, y, fold).predict(constant), ridge.fit(x, y, fold).predict(x), rtol=1e-9
    )
    mean = ridge.fit(np.zeros((60, 3)), y, fold).predict(np.ones((4, 3)))
    np.testing.assert_allclose(mean, np.tile(y.mean(0), (4, 1)))
    nothing = ridge.fit(np.zeros((60, 0)), y, fold).predict(np.zeros((4, 0)))
    np.testing.assert_allclose(nothing, np.tile(y.mean(0), (4, 1)))
