"""Which thresholds make a latent an emotion feature: chosen on words that no result is made of."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from emojax.emotion import features, ratings
from emojax.errors import UserError
from emojax.report.results import Language
from emojax.study import analysis
from emojax.study.analysis import Material
from emojax.study.settings import Study

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
COVERAGES = (0.4, 0.3, 0.2, 0.1)
WITHIN = 0.02


@dataclasses.dataclass(frozen=True)
class Row:
    """What one pair of thresholds gives; one entry per language, in the order of the material.

    Attributes:
      density: the largest that passes.
      coverage: the smallest that passes.
      latents: how many span the space.
      fewest: latents of the emotion that has the fewest.
      valence: r of predicted and human valence of the development words.
      arousal: the same for arousal.
      untrained_valence: r from as many latents of the untrained dictionary, those with the smallest
        p, so that more latents alone are not taken for better ones.
      untrained_arousal: the same for arousal.
      mean: mean of `valence` and `arousal`.
    """

    density: float
    coverage: float
    latents: tuple[int, ...]
    fewest: int
    valence: tuple[float, ...]
    arousal: tuple[float, ...]
    untrained_valence: tuple[float, ...]
    untrained_arousal: tuple[float, ...]
    mean: float


def rows(study: Study, material: Mapping[Language, Material]) -> Iterator[Row]:
    """Every pair of thresholds, strictest first, scored on the words that `material` rates.

    Args:
      study: folds, seed and the false discovery rate.
      material: both languages, with development words as the rated ones
        (`run.read(…, development=True)`).
    """
    tested = analysis.select_each(study, material)
    null = analysis.nulls(study, material)
    for density, coverage in itertools.product(DENSITIES, COVERAGES):
        limits = dataclasses.replace(study.thresholds, density=density, coverage=coverage)
        latents, fewest = [], []
        r: dict[tuple[str, str], list[float]] = {}
        for language, m in material.items():
            lists = features.relist(tested[language], limits).lists
            space = np.unique(np.concatenate(lists))
            control = features.ranked(null[language].untrained, len(space))
            latents.append(len(space))
            fewest.append(min(map(len, lists)))
            sets = {
                "trained": m.rated.trained[:, space],
                "untrained": m.rated.untrained[:, control],
            }
            found = ratings.compare(sets, m.tested, study.folds, 0, study.seed)
            for name, target in itertools.product(sets, ratings.TARGETS):
                r.setdefault((name, target), []).append(found[name][target].r)
        yield Row(
            density=density,
            coverage=coverage,
            latents=tuple(latents),
            fewest=min(fewest),
            valence=tuple(r["trained", "valence"]),
            arousal=tuple(r["trained", "arousal"]),
            untrained_valence=tuple(r["untrained", "valence"]),
            untrained_arousal=tuple(r["untrained", "arousal"]),
            mean=float(np.mean(r["trained", "valence"] + r["trained", "arousal"])),
        )


def choose(found: Sequence[Row], least: int) -> Row:
    """The strictest thresholds that lose little.

    Of those that leave every emotion `least` latents in every language: the lowest density, then
    the highest coverage, whose mean r is within `WITHIN` of the best.

    Raises:
      UserError: no thresholds leave every emotion enough latents.
    """
    fit = [row for row in found if row.fewest >= least]
    if not fit:
        raise UserError(
            f"No thresholds leave every emotion {least} latents; take another layer or dictionary."
        )
    best = max(row.mean for row in fit)
    near = [row for row in fit if row.mean >= best - WITHIN]
    return min(near, key=lambda row: (row.density, -row.coverage))
