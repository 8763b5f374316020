"""Concept-sets: the words that stand for each of the 26 emotion categories, in English and Chinese.

The paper's own list of categories was not available to us; this one is GoEmotions (Demszky et al.
2020, arXiv:2005.00547) without *realization* and *neutral*: 26 single words that hold the six basic
emotions.
"""

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Int

from emojax import files
from emojax.errors import UserError

CATEGORIES = (
    "admiration",
    "amusement",
    "anger",
    "annoyance",
    "approval",
    "caring",
    "confusion",
    "curiosity",
    "desire",
    "disappointment",
    "disapproval",
    "disgust",
    "embarrassment",
    "excitement",
    "fear",
    "gratitude",
    "grief",
    "joy",
    "love",
    "nervousness",
    "optimism",
    "pride",
    "relief",
    "remorse",
    "sadness",
    "surprise",
)
LANGUAGES = ("en", "zh")
MIN_WORDS = 15


@dataclass(frozen=True, eq=False)
class ConceptSet:
    """The concept words of one language, category by category.

    Attributes:
      language: "en" or "zh".
      words: all concept words; each stands once.
      labels: the index in `CATEGORIES` of each word's category.
      sha256: of the file that it was read from; None where it was made otherwise.
    """

    language: str
    words: tuple[str, ...]
    labels: Int[np.ndarray, " words"]
    sha256: str | None = None

    def of(self, category: str) -> tuple[str, ...]:
        """The words of one category."""
        index = CATEGORIES.index(category)
        return tuple(w for w, label in zip(self.words, self.labels, strict=True) if label == index)


def load(language: str) -> ConceptSet:
    """The shipped concept-set of a language, "en" or "zh".

    Raises:
      UserError: there is none for that language.
    """
    if language not in LANGUAGES:
        raise UserError(
            f"There is no concept-set for the language '{language}'; choose one of "
            f"{', '.join(LANGUAGES)}."
        )
    with resources.as_file(resources.files("emojax") / f"data/concepts_{language}.toml") as path:
        return read(path, language)


def read(path: Path, language: str) -> ConceptSet:
    """Reads a concept-set from a TOML file: `language`, and a table `words` of lists of words.

    Raises:
      UserError: the file is not such a file or of another language, a category is missing, unknown
        or has fewer than 15 words, or a word is empty, has blanks round it or stands twice.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        found, table = content["language"], content["words"]
        lists = {category: list(words) for category, words in table.items()}
    except OSError as error:
        raise UserError(
            f"The concept-set {path} cannot be read ({files.reason(error)}); check the path."
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"The concept-set {path} is not TOML in UTF-8 ({error}); mend the file."
        ) from None
    except (KeyError, AttributeError, TypeError):
        raise UserError(
            f"The concept-set {path} needs a key 'language' and a table 'words' with a list of "
            "words per category; add them."
        ) from None
    if found != language:
        raise UserError(
            f"The concept-set {path} is in the language {found!r}, not {language!r}; give another "
            "file, or mend its key 'language'."
        )
    if odd := sorted(set(CATEGORIES) ^ set(lists)):
        raise UserError(
            f"The concept-set {path} has missing or unknown categories ({', '.join(odd)}); it "
            f"needs exactly the {len(CATEGORIES)} of emojax.emotion.concepts.CATEGORIES."
        )
    home: dict[str, str] = {}
    for category in CATEGORIES:
        if len(lists[category]) < MIN_WORDS:
            raise UserError(
                f"The emotion '{category}' has {len(lists[category])} words in the concept-set "
                f"{path} and needs at least {MIN_WORDS}; add some."
            )
        for word in lists[category]:
            if not isinstance(word, str) or not word or word != word.strip():
                raise UserError(
                    f"{word!r} under '{category}' in the concept-set {path} is not a word without "
                    "blanks round it; mend it."
                )
            if word in home:
                raise UserError(
                    f"The word '{word}' stands under '{home[word]}' and under '{category}' in the "
                    f"concept-set {path}; keep it in one of them."
                )
            home[word] = category
    labels = np.array([CATEGORIES.index(category) for category in home.values()])
    return ConceptSet(language, tuple(home), labels, files.sha256(path))


def shuffled(concepts: ConceptSet, seed: int) -> ConceptSet:
    """The same words dealt to the categories at random: a null for everything built on the set."""
    order = np.random.default_rng(seed).permutation(len(concepts.words))
    return ConceptSet(concepts.language, concepts.words, concepts.labels[order])
