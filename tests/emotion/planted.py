"""Synthetic words, codes and ratings in which it is known which latent means what."""

import numpy as np

from emojax.emotion.concepts import CATEGORIES, ConceptSet
from emojax.emotion.controls import Controls
from emojax.emotion.norms import Norms

PER_CATEGORY = 16
CONTROLS = 60
LATENTS = 300
PLANTED = 3  # latents per category, the first ones: category c has 3 c, 3 c + 1 and 3 c + 2


def concept_set(language="en"):
    words = tuple(f"{c}{i}" for c in CATEGORIES for i in range(PER_CATEGORY))
    return ConceptSet(language, words, np.repeat(np.arange(len(CATEGORIES)), PER_CATEGORY))


def controls(language="en"):
    words = tuple(f"control{i}" for i in range(CONTROLS))
    return Controls(language, words, tuple(np.arange(CONTROLS) for _ in CATEGORIES))


def codes(seed, planted=True, general=False):
    """Codes of concept words and of control words.

    Every latent fires on a twentieth of the words. With `planted`, each category's own latents
    fire on most of its words; with `general`, latent 299 fires on all concept words and on no
    control.
    """
    rng = np.random.default_rng(seed)
    concepts = concept_set()
    shape = (len(concepts.words) + CONTROLS, LATENTS)
    table = rng.random(shape) * (rng.random(shape) < 0.05)
    own, pool = table[: len(concepts.words)], table[len(concepts.words) :]
    if planted:
        for category in range(len(CATEGORIES)):
            block = np.ix_(concepts.labels == category, PLANTED * category + np.arange(PLANTED))
            fires = rng.random((PER_CATEGORY, PLANTED)) < 0.8
            own[block] = np.where(fires, 1 + rng.random(fires.shape), own[block])
    if general:
        own[:, -1], pool[:, -1] = 1 + rng.random(len(own)), 0
    return own.astype(np.float32), pool.astype(np.float32)


def rated_words(seed, words=600, features=40, noise=0.5):
    """Features of words and ratings that the first five features determine, up to noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(words, features))
    weights = np.zeros((features, 2))
    weights[:5] = rng.normal(size=(5, 2))
    ratings = x @ weights
    ratings = ratings / ratings.std(axis=0) + noise * rng.normal(size=ratings.shape)
    ratings = np.clip(5 + ratings, 1, 9)
    # Consonants only, so that no word is another's stem plus an ending.
    letters = list("bcfghjkmnpqvwxz")
    names = tuple("".join(rng.choice(letters, 9)) for _ in range(words))
    return x, Norms("planted", "en", names, ratings[:, 0], ratings[:, 1], "made here")
