"""Codes that nobody captured: random, with planted latents, to test a study's statistics with."""

import numpy as np

from emojax.emotion import concepts, controls, norms
from emojax.emotion.concepts import CATEGORIES
from emojax.emotion.norms import Norms
from emojax.study.analysis import Coded, Material

LATENTS = 160
PLANTED = 3  # latents per category, the first 78


def material(language: str, seed: int) -> Material:
    """Latents 3 c to 3 c + 2 fire on category c's words; the rest is noise."""
    rng = np.random.default_rng(seed)
    chosen = concepts.load(language)
    matched = controls.choose(chosen, 0, per_word=2)
    norm = norms.glasgow() if language == "en" else _chinese(chosen, rng)
    tested = norms.for_test(norm, [*chosen.words, *matched.words], 400, 0)

    def noise(words: int) -> np.ndarray:
        codes = rng.random((words, LATENTS)).astype(np.float32)
        return np.where(codes > 0.98, codes, 0).astype(np.float32)

    concept = noise(len(chosen.words))
    for category in range(len(CATEGORIES)):
        rows = np.flatnonzero(chosen.labels == category)
        concept[np.ix_(rows, range(PLANTED * category, PLANTED * (category + 1)))] += 1
    rated = noise(len(tested.words))
    # The ratings are written on latents of the space, so that it must predict them.
    rated[:, :2] = tested.ratings / 9
    return Material(
        concepts=chosen,
        controls=matched,
        norms=norm,
        tested=tested,
        concept=_coded(chosen.words, concept, rng),
        control=_coded(matched.words, noise(len(matched.words)), rng),
        rated=_coded(tested.words, rated, rng),
    )


def _coded(words: tuple[str, ...], codes: np.ndarray, rng: np.random.Generator) -> Coded:
    untrained = rng.random(codes.shape).astype(np.float32)
    dense = rng.standard_normal((len(words), 16)).astype(np.float32)
    return Coded(tuple(words), codes, untrained, dense, np.ones(len(words), int))


def _chinese(chosen: concepts.ConceptSet, rng: np.random.Generator) -> Norms:
    # Two characters that no other word has, so that every word is kin to itself alone.
    others = [chr(0x5000 + 2 * i) + chr(0x5001 + 2 * i) for i in range(600)]
    words = (*chosen.words, *(word for word in others if word not in chosen.words))
    ratings = rng.uniform(1, 9, (2, len(words)))
    return Norms("synthetic", "zh", words, ratings[0], ratings[1], "drawn from a seed")
