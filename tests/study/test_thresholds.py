import dataclasses

import pytest
from synthetic_material import material

from emojax.errors import UserError
from emojax.study import thresholds
from emojax.study.settings import Study
from emojax.study.thresholds import Row

ROW = Row(0.1, 0.2, (100, 100), 4, (0.7, 0.6), (0.4, 0.3), (0.5, 0.5), (0.3, 0.3), 0.5)


def row(density: float, coverage: float, mean: float, fewest: int = 1) -> Row:
    return dataclasses.replace(ROW, density=density, coverage=coverage, mean=mean, fewest=fewest)


def test_the_strictest_of_those_near_the_best_is_chosen():
    rows = [row(0.1, 0.2, 0.5), row(0.2, 0.2, 0.59), row(0.2, 0.4, 0.585), row(1.0, 0.1, 0.6)]
    assert thresholds.choose(rows, 1) == rows[2]


def test_what_leaves_an_emotion_bare_is_not_chosen():
    rows = [row(0.1, 0.2, 0.9, fewest=0), row(0.5, 0.2, 0.5)]
    assert thresholds.choose(rows, 1) == rows[1]
    with pytest.raises(UserError, match="No thresholds leave every emotion 1 latents"):
        thresholds.choose(rows[:1], 1)


def test_planted_latents_pass_every_threshold_and_noise_none(monkeypatch):
    monkeypatch.setattr(thresholds, "DENSITIES", (0.1, 1.0))
    monkeypatch.setattr(thresholds, "COVERAGES", (0.4,))
    study = Study(model="none", sae="none", folds=3)
    both = {"en": material("en", 1), "zh": material("zh", 2)}
    strict, loose = thresholds.rows(study, both)
    assert (strict.density, loose.density) == (0.1, 1.0)
    for found in (strict, loose):
        assert found.fewest >= 3
        assert min(found.valence) > 0.9
        assert max(map(abs, found.untrained_valence)) < 0.35
    assert loose.latents >= strict.latents
