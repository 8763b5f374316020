"""Which latents represent which emotion: selectivity of every latent for every category.

A latent belongs to a category if words of its concept-set activate it more than (1) control words
of the same lengths and frequencies and (2) the concept words of the other 25 categories. The first
contrast alone would also take what every emotion word shares, the second alone what sets one
category off within emotion words but not in the language at large. Both are exact permutation tests
(`rank_test`), and a latent must pass both (intersection-union test, Berger 1982: its p is the
larger of the two).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from statsmodels.stats.multitest import multipletests

from emojax.emotion import rank_test
from emojax.emotion.concepts import CATEGORIES, ConceptSet
from emojax.emotion.controls import Controls
from emojax.emotion.rank_test import Codes
from emojax.errors import UserError

Which = Literal["en", "zh", "shared"]


@dataclass(frozen=True)
class Thresholds:
    """What a latent must reach to be put on a category's list.

    Coverage and density are what `experiments.choose_thresholds` chose for Gemma-3-270m on
    development words; the false discovery rate is the usual one.

    Attributes:
      q: largest false discovery rate, Benjamini-Hochberg over all categories and live latents of a
        language.
      coverage: smallest share of the category's words that activate it, so that it is not that of
        one stem (the lists hold at most two forms of a root).
      density: largest share of the control words that activate it, in any template: words that were
        chosen for length and frequency alone.
      features: fewest latents per category and language with which to go on.
    """

    q: float = 0.05
    coverage: float = 0.3
    density: float = 0.5
    features: int = 1


@dataclass(frozen=True, eq=False)
class Selection:
    """The latents of each category in one language. Categories are in the order of `CATEGORIES`.

    Attributes:
      language: "en" or "zh".
      thresholds: what the listed latents reached.
      effect: AUROC of the category's words against its matched control words.
      specificity: AUROC of the category's words against the concept words of all other categories.
      p: the larger of the two contrasts' exact one-sided permutation p-values.
      q: Benjamini-Hochberg adjusted p, over categories and live latents together.
      coverage: share of the category's words that activate the latent.
      density: share of all control words that activate it.
      lists: per category its latents, the smallest p first.
    """

    language: str
    thresholds: Thresholds
    effect: Float[np.ndarray, "categories latents"]
    specificity: Float[np.ndarray, "categories latents"]
    p: Float[np.ndarray, "categories latents"]
    q: Float[np.ndarray, "categories latents"]
    coverage: Float[np.ndarray, "categories latents"]
    density: Float[np.ndarray, " latents"]
    lists: tuple[Int[np.ndarray, " _"], ...]


@dataclass(frozen=True, eq=False)
class EmotionFeatures:
    """The features of every emotion, in each language that was studied.

    Attributes:
      selections: language → selection by its words.
      shared: per category the latents on its lists of all languages, best first by the largest p;
        empty with one language, which shares with none.
    """

    selections: Mapping[str, Selection]
    shared: tuple[Int[np.ndarray, " _"], ...]

    def read(self, which: Which) -> tuple[Int[np.ndarray, " _"], ...]:
        """Per category the latents that represent it, best first."""
        return self.shared if which == "shared" else self.selections[which].lists

    def space(self, which: Which) -> Int[np.ndarray, " latents"]:
        """The latents that span the emotion space: all categories' lists together, ascending."""
        return np.unique(np.concatenate(self.read(which)))


def select(
    concepts: ConceptSet,
    concept_codes: Codes,
    controls: Controls,
    control_codes: Codes,
    thresholds: Thresholds,
) -> Selection:
    """Tests every latent for every category in one language and lists those that pass.

    Args:
      concepts: the concept words.
      concept_codes: their codes, `[concept words, latents]`.
      controls: the matched control words.
      control_codes: their codes, `[control words, latents]`.
      thresholds: what a latent must reach.

    Raises:
      ValueError: codes do not fit the words, or are negative or not finite.
    """
    own, pool = _dense(concept_codes), _dense(control_codes)
    if own.shape[0] != len(concepts.words) or pool.shape[0] != len(controls.words):
        raise ValueError("one row of codes per word is needed")
    members = concepts.labels == np.arange(len(CATEGORIES))[:, None]

    specificity, p_others = rank_test.greater(own, members)
    effect, p_controls = np.empty_like(p_others), np.empty_like(p_others)
    for category, inside in enumerate(members):
        both = np.concatenate([own[inside], pool[controls.matched[category]]])
        first = np.arange(len(both)) < inside.sum()
        auroc, p = rank_test.greater(both, first[None])
        effect[category], p_controls[category] = auroc[0], p[0]

    coverage = np.stack([(own[inside] > 0).mean(axis=0) for inside in members])
    density = (pool > 0).mean(axis=0)
    # Which latents are live does not depend on which word is in which group, so leaving the dead
    # out of the family is valid independent filtering (Bourgon et al. 2010).
    live = np.any(np.concatenate([own, pool]) > 0, axis=0)
    p = np.maximum(p_controls, p_others)
    q = _adjusted(p, live)

    nothing_yet = Selection(
        concepts.language, thresholds, effect, specificity, p, q, coverage, density, ()
    )
    return relist(nothing_yet, thresholds)


def relist(selection: Selection, thresholds: Thresholds) -> Selection:
    """The same tests with the lists that other thresholds give."""
    passed = (
        (selection.coverage >= thresholds.coverage)
        & (selection.density <= thresholds.density)
        & (selection.q <= thresholds.q)
    )
    lists = tuple(
        listed[np.lexsort((-selection.effect[category, listed], selection.p[category, listed]))]
        for category, listed in enumerate(map(np.flatnonzero, passed))
    )
    return replace(selection, thresholds=thresholds, lists=lists)


def combine(*selections: Selection) -> EmotionFeatures:
    """Puts languages together; the shared latents of a category are on all its lists.

    Raises:
      UserError: a category has fewer latents in a language than its thresholds ask for.
    """
    for selection in selections:
        require(selection)
    nothing = np.array([], np.int64)
    shared = []
    for category in range(len(CATEGORIES)):
        lists = [selection.lists[category] for selection in selections]
        common = reduce(np.intersect1d, lists) if len(lists) > 1 else nothing
        worst = np.max([selection.p[category, common] for selection in selections], axis=0)
        shared.append(common[np.argsort(worst, kind="stable")])
    return EmotionFeatures({s.language: s for s in selections}, tuple(shared))


def require(selection: Selection) -> None:
    """Checks that every category has as many latents as its thresholds ask for.

    Raises:
      UserError: some have too few; they are named with their numbers.
    """
    least = selection.thresholds.features
    short = [
        f"{category} ({len(listed)})"
        for category, listed in zip(CATEGORIES, selection.lists, strict=True)
        if len(listed) < least
    ]
    if short:
        raise UserError(
            f"Too few features in language '{selection.language}' for {', '.join(short)}: at least "
            f"{least} per emotion must pass q <= {selection.thresholds.q:g}, coverage >= "
            f"{selection.thresholds.coverage:g} and density <= {selection.thresholds.density:g}; "
            "loosen these, add concept words, or take another layer or dictionary."
        )


def ranked(selection: Selection, count: int) -> Int[np.ndarray, " latents"]:
    """The `count` latents most selective for any category, ascending, whether or not they pass.

    The same test without the thresholds, for a dictionary that is compared at an equal number of
    latents: smallest p over categories first, then the largest effect.
    """
    order = np.lexsort((-selection.effect.max(axis=0), selection.p.min(axis=0)))
    return np.sort(order[:count])


def outside(
    codes: Codes,
    inside: Int[np.ndarray, " latents"],
    excluded: Int[np.ndarray, " others"],
    seed: int,
) -> Int[np.ndarray, " latents"]:
    """As many latents from outside the space as it has, drawn at random, matched in density.

    For each latent of the space, in random order, one is drawn from the ten nearest in density that
    are still free.

    Args:
      codes: codes of words by which density is measured, `[words, latents]`.
      inside: the latents to match.
      excluded: latents that must not be drawn, such as every language's space; `inside` never is.
      seed: of the draw.

    Raises:
      UserError: fewer latents are left than are needed.
    """
    density = (_dense(codes) > 0).mean(axis=0)
    rng = np.random.default_rng(seed)
    free = np.setdiff1d(np.arange(len(density)), np.concatenate([inside, excluded]))
    if len(free) < len(inside):
        raise UserError(
            f"The emotion space has {len(inside)} latents and only {len(free)} are outside it, too "
            "few to compare with; use stricter thresholds or a larger dictionary."
        )
    drawn = []
    for latent in rng.permutation(inside):
        near = np.argsort(np.abs(density[free] - density[latent]), kind="stable")[:10]
        pick = rng.choice(near)
        drawn.append(free[pick])
        free = np.delete(free, pick)
    return np.sort(np.array(drawn, dtype=np.int64))


def _adjusted(
    p: Float[np.ndarray, "categories latents"], live: Bool[np.ndarray, " latents"]
) -> Float[np.ndarray, "categories latents"]:
    q = np.ones_like(p)
    if live.any():
        family = p[:, live]
        q[:, live] = multipletests(family.ravel(), method="fdr_bh")[1].reshape(family.shape)
    return q


def _dense(codes: Codes) -> Float[np.ndarray, "words latents"]:
    return codes if isinstance(codes, np.ndarray) else codes.toarray()
