"""Codes of words → emotion features → comparison with people, as the parts of `results.json`.

Everything here is statistics on arrays; the model was run in `words`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from emojax.emotion import concepts, controls, features, ratings, space
from emojax.emotion.concepts import CATEGORIES, ConceptSet
from emojax.emotion.controls import Controls
from emojax.emotion.features import EmotionFeatures, Selection
from emojax.emotion.norms import Norms
from emojax.report import results as schema
from emojax.study.settings import Study

LANGUAGES: tuple[schema.Language, ...] = ("en", "zh")
TARGETS: tuple[schema.Target, ...] = ("valence", "arousal")
_SHOWN = 8  # top words and components in the report
_FEW = (1, 10, 50, 200)  # latents


@dataclasses.dataclass(frozen=True, eq=False)
class Coded:
    """One list of words in the three forms that are compared, `[words, …]`."""

    words: tuple[str, ...]
    trained: Float[np.ndarray, "words latents"]
    untrained: Float[np.ndarray, "words latents"]
    dense: Float[np.ndarray, "words d_model"]
    n_tokens: Int[np.ndarray, " words"]


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """All that one language contributes: its word lists and what the model made of them."""

    concepts: ConceptSet
    controls: Controls
    norms: Norms  # the whole norm, for the categories' own ratings
    tested: Norms  # the words on which ratings are predicted
    concept: Coded
    control: Coded
    rated: Coded


@dataclasses.dataclass(frozen=True, eq=False)
class Null:
    """What the rule that finds emotion features finds where there should be few, in one language.

    Attributes:
      untrained: by the untrained dictionary.
      shuffled: by the trained one, with the concept words dealt to the emotions at random.
    """

    untrained: Selection
    shuffled: Selection


def select(study: Study, material: Mapping[schema.Language, Material]) -> EmotionFeatures:
    """The emotion features of every language.

    Raises:
      UserError: an emotion has too few.
    """
    chosen = select_each(study, material)
    return features.combine(*chosen.values())


def select_each(
    study: Study, material: Mapping[schema.Language, Material]
) -> dict[schema.Language, Selection]:
    """Every latent tested for every emotion in each language, however few pass."""
    return {
        language: features.select(
            m.concepts, m.concept.trained, m.controls, m.control.trained, study.thresholds
        )
        for language, m in material.items()
    }


def nulls(
    study: Study, material: Mapping[schema.Language, Material]
) -> dict[schema.Language, Null]:
    """The same selection where it should find little."""

    def of(m: Material) -> Null:
        shuffled = concepts.shuffled(m.concepts, study.seed)
        rest = (m.controls, m.control.trained, study.thresholds)
        return Null(
            untrained=features.select(
                m.concepts, m.concept.untrained, m.controls, m.control.untrained, study.thresholds
            ),
            shuffled=features.select(shuffled, m.concept.trained, *rest),
        )

    return {language: of(m) for language, m in material.items()}


def feature_table(
    found: EmotionFeatures,
    null: Mapping[schema.Language, Null],
    material: Mapping[schema.Language, Material],
) -> schema.Features:
    """Every emotion's latents with their statistics and strongest words; what chance selects."""
    selections = found.selections
    tops = {language: _top_words(m) for language, m in material.items()}

    def rows(language: schema.Language, category: int) -> list[schema.Latent]:
        if language not in selections:
            return []
        chosen = selections[language]
        return [
            schema.Latent(
                latent=int(j),
                effect=float(chosen.effect[category, j]),
                specificity=float(chosen.specificity[category, j]),
                p=float(chosen.p[category, j]),
                q=float(chosen.q[category, j]),
                coverage=float(chosen.coverage[category, j]),
                density=float(chosen.density[j]),
                top_words=tops[language](int(j)),
            )
            for j in chosen.lists[category]
        ]

    chinese = concepts.load("zh")
    thresholds = next(iter(selections.values())).thresholds
    return schema.Features(
        rule={**dataclasses.asdict(thresholds)},
        words_per_category={
            str(language): len(m.concepts.words) / len(CATEGORIES)
            for language, m in material.items()
        },
        control_words=[_match(language, m) for language, m in material.items()],
        passing=[
            schema.Passing(
                language=language,
                trained=_passing(selections[language]),
                untrained=_passing(null[language].untrained),
                shuffled=_passing(null[language].shuffled),
            )
            for language in material
        ],
        categories=[
            schema.CategoryFeatures(
                emotion=category,
                name_zh=chinese.of(category)[0],
                en=rows("en", index),
                zh=rows("zh", index),
                shared=[int(j) for j in found.shared[index]],
            )
            for index, category in enumerate(CATEGORIES)
        ],
    )


def _passing(selection: Selection) -> int:
    return len(np.unique(np.concatenate(selection.lists)))


def _match(language: schema.Language, m: Material) -> schema.ControlMatch:
    found = controls.match(m.concepts, m.controls)
    return schema.ControlMatch(
        language=language,
        n_control_words=len(m.controls.words),
        concept_length=found["concept length"],
        control_length=found["control length"],
        largest_length_gap=found["largest length gap"],
        concept_zipf=found["concept zipf"],
        control_zipf=found["control zipf"],
        largest_zipf_gap=found["largest zipf gap"],
    )


def spaces(
    study: Study, found: EmotionFeatures, material: Mapping[schema.Language, Material]
) -> list[schema.Space]:
    """The emotion space of each language, over the latents of its own lists."""
    drawn = []
    for language, m in material.items():
        latents = found.space(language)
        human = space.category_ratings(m.concepts, m.norms)
        built = space.build(m.concepts, m.concept.trained, latents)
        arguments = (m.concepts, m.concept.trained, latents, human)
        sampling = (study.permutations, study.bootstraps, study.seed)
        per_component = space.components(*arguments, *sampling)
        recovered = space.recover(*arguments, *sampling)
        rated = [[None if np.isnan(v) else float(v) for v in row] for row in human.values]
        drawn.append(
            schema.Space(
                language=language,
                n_latents=len(latents),
                emotions=list(CATEGORIES),
                coords=built.scores[:, :_SHOWN].tolist(),
                explained_variance=built.explained[:_SHOWN].tolist(),
                valence=[row[0] for row in rated],
                arousal=[row[1] for row in rated],
                ratings_scale=f"{m.norms.name}, 1–9",
                correlations=[
                    schema.ComponentCorrelation(
                        component=number,
                        target=target,
                        r=c.r,
                        ci_low=c.low,
                        ci_high=c.high,
                        p=c.p,
                    )
                    for number, pair in enumerate(per_component, 1)
                    for target, c in zip(TARGETS, pair, strict=True)
                ],
                recovered=[
                    schema.Recovered(target=target, r=c.r, ci_low=c.low, ci_high=c.high, p=c.p)
                    for target, c in zip(TARGETS, recovered, strict=True)
                ],
                rdm=built.rdm.tolist(),
                rdm_measure="1 − Pearson r",
            )
        )
    return drawn


def across(
    study: Study,
    found: EmotionFeatures,
    null: Mapping[schema.Language, Null],
    material: Mapping[schema.Language, Material],
) -> schema.CrossLanguage | None:
    """How far two languages' spaces agree: in geometry, and latent by latent; None with one."""
    if len(material) < 2:
        return None

    def agreement(form: str, latents: Mapping[schema.Language, np.ndarray]) -> space.Correlation:
        english, chinese = (
            (material[x].concepts, getattr(material[x].concept, form), latents[x])
            for x in LANGUAGES
        )
        sampling = (study.permutations, study.bootstraps, study.seed)
        return space.rdm_correlation(english, chinese, *sampling)

    rho = agreement("trained", {x: found.space(x) for x in LANGUAGES})
    untrained = {x: features.ranked(null[x].untrained, len(found.space(x))) for x in LANGUAGES}
    width = material["en"].concept.dense.shape[1]
    others: dict[Literal["dense", "untrained"], space.Correlation] = {
        "dense": agreement("dense", dict.fromkeys(LANGUAGES, np.arange(width))),
        "untrained": agreement("untrained", untrained),
    }
    jaccard, by_chance = _overlap(
        found.read("en"), found.read("zh"), study.permutations, study.seed
    )
    return schema.CrossLanguage(
        rdm_spearman=schema.Estimate(value=rho.r, ci_low=rho.low, ci_high=rho.high),
        rdm_p=rho.p,
        jaccard_mean=jaccard,
        jaccard_null=float(by_chance.mean()),
        jaccard_p=float((1 + (by_chance >= jaccard - 1e-12).sum()) / (1 + len(by_chance))),
        n_shared=len(np.intersect1d(found.space("en"), found.space("zh"))),
        controls=[
            schema.GeometryControl(
                of=form,
                rdm_spearman=schema.Estimate(value=c.r, ci_low=c.low, ci_high=c.high),
                rdm_p=c.p,
            )
            for form, c in others.items()
        ],
    )


def few_latents(
    study: Study, material: Mapping[schema.Language, Material]
) -> list[schema.FewLatents]:
    """Ratings predicted from the best few latents of each dictionary, chosen in training folds."""
    dictionaries: tuple[Literal["trained", "untrained"], ...] = ("trained", "untrained")
    found = []
    for language, m in material.items():
        for dictionary in tqdm(dictionaries, f"few latents, {language}", unit="set"):
            codes = getattr(m.rated, dictionary)
            counts = tuple(count for count in _FEW if count <= codes.shape[1])
            scores = ratings.best_latents(codes, m.tested, counts, study.folds, study.seed)
            found += [
                schema.FewLatents(
                    language=language,
                    target=target,
                    dictionary=dictionary,
                    n_latents=count,
                    r=scores[count][target].r,
                    ci_low=scores[count][target].low,
                    ci_high=scores[count][target].high,
                )
                for count in counts
                for target in TARGETS
            ]
    return found


def compare(
    study: Study,
    found: EmotionFeatures,
    null: Mapping[schema.Language, Null],
    material: Mapping[schema.Language, Material],
) -> tuple[list[schema.Rating], list[schema.Scatter], list[schema.Difference]]:
    """Predicts human ratings from the features and from every baseline, on the same folds.

    With one language there are no shared latents and nothing to transfer from.
    """
    rated: list[schema.Rating] = []
    scatters: list[schema.Scatter] = []
    differences: list[schema.Difference] = []
    for language, m in material.items():
        sets, outside = _feature_sets(study, found, null, material, language)
        scores: dict[str, dict[str, ratings.Score]] = {}
        for name, x in tqdm({**sets, **outside}.items(), f"ratings, {language}", unit="set"):
            count = study.null_permutations if name == "space" else 0
            scores |= ratings.compare({name: x}, m.tested, study.folds, count, study.seed)
        widths = {name: x.shape[1] for name, x in sets.items()}
        for other in (material[another] for another in material if another != language):
            both = found.space("shared")
            scores["transfer"] = ratings.transfer(
                other.rated.trained[:, both],
                other.tested,
                m.rated.trained[:, both],
                m.tested,
                study.seed,
            )
            widths["transfer"] = len(both)
        for target in TARGETS:
            # The draw in the middle stands for all the draws from outside the space.
            draws = sorted(outside, key=lambda name: scores[name][target].r)
            middle = draws[len(draws) // 2]
            mine = {name: scores[name][target] for name in widths if name != "outside"}
            mine["outside"] = scores[middle][target]
            widths["outside"] = len(found.space(language))
            for name, score in mine.items():
                rated.append(_rating(language, target, name, widths[name], score, m.tested))
            human = m.tested.ratings[:, TARGETS.index(target)]
            scatters.append(_scatter(language, target, mine["space"], m.tested.words, human))
            for name in (
                "outside",
                "untrained",
                "intersection",
                "all_latents",
                "dense",
                "transfer",
            ):
                if name not in mine:
                    continue
                gap = ratings.difference(mine["space"], mine[name], m.tested, target, study.seed)
                differences.append(
                    schema.Difference(
                        language=language,
                        target=target,
                        one="space",
                        other=name,
                        r=gap.r,
                        ci_low=gap.low,
                        ci_high=gap.high,
                    )
                )
    return rated, scatters, differences


def _feature_sets(
    study: Study,
    found: EmotionFeatures,
    null: Mapping[schema.Language, Null],
    material: Mapping[schema.Language, Material],
    language: schema.Language,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the regression sees, by name; and the draws from outside the space."""
    m = material[language]
    inside = found.space(language)
    untrained = features.ranked(null[language].untrained, len(inside))
    sets = {"space": m.rated.trained[:, inside]}
    if len(material) > 1:
        sets["intersection"] = m.rated.trained[:, found.space("shared")]
    sets |= {
        "all_latents": m.rated.trained,
        "untrained": m.rated.untrained[:, untrained],
        "dense": m.rated.dense,
        "length": ratings.surface(m.tested, m.rated.n_tokens),
    }
    spaces = np.concatenate([found.space(each) for each in material])
    outside = {
        f"outside {draw}": m.rated.trained[
            :, features.outside(m.control.trained, inside, spaces, study.seed + draw)
        ]
        for draw in range(study.outside_draws)
    }
    return sets, outside


def _rating(
    language: schema.Language,
    target: schema.Target,
    name: str,
    width: int,
    score: ratings.Score,
    norms: Norms,
) -> schema.Rating:
    null = None
    if len(score.null):
        null = schema.Null(
            mean=float(score.null.mean()),
            high=float(np.percentile(score.null, 95)),
            p=score.p,
            n_permutations=len(score.null),
        )
    return schema.Rating(
        language=language,
        target=target,
        feature_set=name,  # type: ignore[typeddict-item]
        n_features=width,
        n_words=len(norms.words),
        r=score.r,
        ci_low=score.low,
        ci_high=score.high,
        r2=score.r2,
        null=null,
    )


def _scatter(
    language: schema.Language,
    target: schema.Target,
    score: ratings.Score,
    words: Sequence[str],
    human: Float[np.ndarray, " words"],
) -> schema.Scatter:
    return schema.Scatter(
        language=language,
        target=target,
        feature_set="space",
        words=list(words),
        human=human.tolist(),
        predicted=score.predicted.tolist(),
    )


def _top_words(m: Material):
    """A function from a latent to the words of this language that activate it most."""
    words = np.array([*m.concept.words, *m.control.words, *m.rated.words])
    codes = np.concatenate([m.concept.trained, m.control.trained, m.rated.trained])

    def top(latent: int) -> list[str]:
        order = np.argsort(-codes[:, latent], kind="stable")
        strongest = dict.fromkeys(str(words[i]) for i in order[:50] if codes[i, latent] > 0)
        return list(strongest)[:_SHOWN]

    return top


def _overlap(
    english: Sequence[np.ndarray], chinese: Sequence[np.ndarray], permutations: int, seed: int
) -> tuple[float, Float[np.ndarray, " permutations"]]:
    """Mean Jaccard index of the two languages' lists, and its null with categories shuffled."""

    def jaccard(ours: Int[np.ndarray, " n"], theirs: Int[np.ndarray, " m"]) -> float:
        union = len(np.union1d(ours, theirs))
        return len(np.intersect1d(ours, theirs)) / union if union else 0.0

    table = np.array([[jaccard(ours, theirs) for theirs in chinese] for ours in english])
    rng = np.random.default_rng(seed)
    order = np.arange(len(table))
    null = [table[order, rng.permutation(order)].mean() for _ in range(permutations)]
    return float(np.trace(table) / len(table)), np.array(null)
