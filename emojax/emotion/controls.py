"""Control words: like the concept words in length and frequency, chosen blind to meaning.

A latent that fires on `joy`, `party` and `smile` may be one for short, common nouns. Comparing each
category with words of the same lengths and frequencies takes that explanation away.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import wordfreq
from jaxtyping import Float, Int
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from emojax.emotion import words as kinship
from emojax.emotion.concepts import CATEGORIES, ConceptSet
from emojax.errors import UserError

PER_WORD = 6
BAND = 0.5  # width of a frequency band in Zipf units
_OTHER_LANGUAGES = ("de", "fr", "es", "it", "nl", "pl")
# Parts of speech of wordfreq's Chinese dictionary that concept words have too: nouns (not names),
# verbs, adjectives, idioms and set phrases.
_CHINESE_TAGS = {"n", "v", "vn", "vi", "a", "an", "ad", "i", "l", "z"}


@dataclass(frozen=True, eq=False)
class Controls:
    """The control words of one language and who is matched with whom.

    Attributes:
      language: "en" or "zh".
      words: the pool of control words; a word may serve several categories.
      matched: per category (in the order of `CATEGORIES`) the indices in `words` of its control
        words: `PER_WORD` for each of its concept words, none twice.
    """

    language: str
    words: tuple[str, ...]
    matched: tuple[Int[np.ndarray, " _"], ...]


def zipf(words: Sequence[str], language: str) -> Float[np.ndarray, " words"]:
    """Zipf frequency of each word, log10 of its occurrences per billion words; 0 if unknown.

    Read from wordfreq's list (Speer 2022) as it stands, so Chinese needs no word segmenter.
    """
    table = wordfreq.get_frequency_dict(language)
    return np.array([np.log10(table[w] * 1e9) if w in table else 0.0 for w in words])


def candidates(concepts: ConceptSet) -> tuple[str, ...]:
    """All words that may serve as controls for a concept-set: of Zipf frequency 3 or more.

    Left out are the concept words and their kin (`words.kin`), and, as far as it can be told
    without a tagger, function words and names. English: stop words, words under three letters, and
    words nearly as common (within 1 Zipf unit) in two or more of six other languages, as names are.
    Chinese: words that wordfreq's own dictionary does not tag as common noun, verb, adjective,
    idiom or set phrase.
    """
    table = wordfreq.get_frequency_dict(concepts.language, "small")
    if concepts.language == "en":
        others = [wordfreq.get_frequency_dict(language) for language in _OTHER_LANGUAGES]
        pool = [
            word
            for word, frequency in table.items()
            if re.fullmatch("[a-z]{3,}", word)
            and word not in ENGLISH_STOP_WORDS
            and sum(other.get(word, 0.0) >= frequency / 10 for other in others) < 2
        ]
    else:
        dictionary = (resources.files("wordfreq") / "data/jieba_zh_orig.txt").read_text("utf-8")
        tags = {word: tag for word, _, tag in map(str.split, dictionary.splitlines())}
        pool = [word for word in table if tags.get(word) in _CHINESE_TAGS]
    kin = kinship.kin(pool, concepts.words, concepts.language)
    return tuple(word for word, is_kin in zip(pool, kin, strict=True) if not is_kin)


def choose(concepts: ConceptSet, seed: int, per_word: int = PER_WORD) -> Controls:
    """Draws `per_word` control words for each concept word, of its length and frequency band.

    Each concept word takes the first words that its category has not taken yet from one random
    order of the candidates in its cell (length in characters, half a Zipf unit); where a cell runs
    out, the nearest one lends, a band away before a character away. Categories draw from the same
    order, so that they share words and the pool stays small. No rating is used.

    Raises:
      UserError: there are fewer candidates than a category needs.
    """
    pool = candidates(concepts)
    order = np.random.default_rng(seed).permutation(len(pool))
    cells: dict[tuple[int, int], list[int]] = {}
    for index, cell in zip(order, _cells([pool[i] for i in order], concepts.language), strict=True):
        cells.setdefault(cell, []).append(int(index))

    chosen: list[list[int]] = []
    own_cells = _cells(concepts.words, concepts.language)
    for category in range(len(CATEGORIES)):
        own = np.flatnonzero(concepts.labels == category)
        if len(own) * per_word > len(pool):
            raise UserError(
                f"The emotion '{CATEGORIES[category]}' needs {len(own) * per_word} control words "
                f"and there are {len(pool)} candidates in language '{concepts.language}'; ask for "
                "fewer per word."
            )
        taken: dict[int, None] = {}
        for length, band in (own_cells[i] for i in own):
            free = (
                i for cell in _nearest(cells, length, band) for i in cells[cell] if i not in taken
            )
            taken.update(dict.fromkeys([next(free) for _ in range(per_word)]))
        chosen.append(list(taken))

    used = sorted({index for indices in chosen for index in indices})
    place = {index: position for position, index in enumerate(used)}
    matched = tuple(np.array([place[i] for i in indices], np.int64) for indices in chosen)
    return Controls(concepts.language, tuple(pool[i] for i in used), matched)


def match(concepts: ConceptSet, controls: Controls) -> dict[str, float]:
    """How good the match is: means over concept words and over their control words.

    Returns:
      Mean length in characters and mean Zipf frequency of both, and the largest difference of each
      between a category and its own controls.
    """

    def table(words: Sequence[str]) -> Float[np.ndarray, "words 2"]:
        return np.stack([[len(w) for w in words], zipf(words, concepts.language)], axis=1)

    own, pool = table(concepts.words), table(controls.words)
    theirs = np.concatenate([pool[indices] for indices in controls.matched])
    gaps = [
        np.abs(own[concepts.labels == category].mean(0) - pool[indices].mean(0))
        for category, indices in enumerate(controls.matched)
    ]
    worst = np.max(gaps, axis=0)
    return {
        "control words": float(len(controls.words)),
        "concept length": float(own[:, 0].mean()),
        "control length": float(theirs[:, 0].mean()),
        "largest length gap": float(worst[0]),
        "concept zipf": float(own[:, 1].mean()),
        "control zipf": float(theirs[:, 1].mean()),
        "largest zipf gap": float(worst[1]),
    }


def _nearest(cells: Iterable[tuple[int, int]], length: int, band: int) -> list[tuple[int, int]]:
    """The cells from the nearest on; a character counts as much as three bands."""
    return sorted(cells, key=lambda cell: (3 * abs(cell[0] - length) + abs(cell[1] - band), cell))


def _cells(words: Sequence[str], language: str) -> list[tuple[int, int]]:
    """The cell of each word: length in characters, frequency band."""
    bands = np.floor(zipf(words, language) / BAND + 1e-9).astype(int)
    return [(len(word), int(band)) for word, band in zip(words, bands, strict=True)]
