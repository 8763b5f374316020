"""Human ratings of words: valence and arousal.

Shipped: the Glasgow Norms (Scott et al. 2019, Behavior Research Methods 51:1258-1270, CC BY 4.0),
cut to word, valence and arousal. Fetched at run time from a pinned wheel: CVAW, the words of the
Chinese EmoBank (Lee, Li and Yu 2022, ACM TALLIP 21(4):65). Any other norm (Warriner et al. 2013, Yi
et al. 2025, ...) is read from a path that its user names.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Float, Int

from emojax import files
from emojax.emotion import words as kinship
from emojax.errors import UserError
from emojax.lm import sources

SCALE = (1.0, 9.0)  # every norm used here was rated on it
CVAW_WHEEL = ("cntext", "2.2.1", "d198e28998606f90cbad8416c0e5e52151f0be610faba731a1239f7ae8ae27bb")
CVAW_MEMBER = "cntext/io/data/zh_valence_ChineseEmoBank.yaml"


@dataclass(frozen=True, eq=False)
class Norms:
    """Mean human ratings of words of one language.

    Attributes:
      name: short name of the norm.
      language: "en" or "zh".
      words: the rated words; each stands once.
      valence: mean ratings, 1 (unpleasant) to 9 (pleasant).
      arousal: mean ratings, 1 (calm) to 9 (aroused).
      source: the publication to cite.
      url: where to find it.
      sha256: of what the ratings were read from: the file, or for CVAW the wheel.
    """

    name: str
    language: str
    words: tuple[str, ...]
    valence: Float[np.ndarray, " words"]
    arousal: Float[np.ndarray, " words"]
    source: str
    url: str | None = None
    sha256: str | None = None

    @property
    def ratings(self) -> Float[np.ndarray, "words 2"]:
        """Valence and arousal side by side."""
        return np.stack([self.valence, self.arousal], axis=1)

    def take(self, indices: Int[np.ndarray, " chosen"]) -> "Norms":
        """The norm cut to some of its words, in the order given."""
        words = tuple(self.words[i] for i in indices)
        return replace(
            self, words=words, valence=self.valence[indices], arousal=self.arousal[indices]
        )


def glasgow() -> Norms:
    """The shipped English norm: 4,682 words with mean valence and arousal."""
    source = "Scott, Keitel, Becirspahic, Yao & Sereno 2019, The Glasgow Norms, CC BY 4.0"
    with resources.as_file(resources.files("emojax") / "data/glasgow_norms.csv") as path:
        norms = read(path, "en", "word", "valence", "arousal")
    url = "https://doi.org/10.3758/s13428-018-1099-3"
    return replace(norms, name="Glasgow Norms", source=source, url=url)


def cvaw(cache: Path | None = None) -> Norms:
    """CVAW in simplified characters, 5,465 words, out of the pinned wheel of cntext 2.2.1.

    Raises:
      UserError: the wheel cannot be fetched, has another hash, or does not hold what it should.
    """
    norms = read_cvaw(sources.wheel_file(*CVAW_WHEEL, CVAW_MEMBER, cache))
    return replace(norms, url="https://doi.org/10.1145/3489141", sha256=CVAW_WHEEL[2])


def read_cvaw(path: Path) -> Norms:
    """Reads CVAW from cntext's YAML file: `Dictionary`, word -> `valence`, `arousal`.

    Raises:
      UserError: the file is not such a file, or a rating is bad.
    """
    text = _decode(path)
    try:
        dictionary = yaml.load(text, Loader=yaml.CSafeLoader)["Dictionary"]
        rows = [
            (f"word '{word}'", str(word), entry["valence"], entry["arousal"])
            for word, entry in dictionary.items()
        ]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not a CVAW file of cntext (YAML with a table 'Dictionary' of words with "
            "'valence' and 'arousal'); delete it and run again to fetch it anew."
        ) from None
    source = "Lee, Li & Yu 2022, Chinese EmoBank (CVAW), simplified characters from cntext 2.2.1"
    return _checked(path, "CVAW", "zh", source, rows)


def read(
    path: Path, language: str, word_column: str, valence_column: str, arousal_column: str
) -> Norms:
    """Reads a norm from a CSV or TSV file in UTF-8 with a header line and ratings from 1 to 9.

    Tabs separate the columns if the header holds one, else commas.

    Raises:
      UserError: the file cannot be read, is not UTF-8, lacks a column, or has a row with an empty
        or repeated word or a rating that is missing, not a number or off the scale.
    """
    text = _decode(path)
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = (word_column, valence_column, arousal_column)
    try:
        present = reader.fieldnames or ()
        if missing := [column for column in columns if column not in present]:
            raise UserError(
                f"The norms file {path} has no column {', '.join(map(repr, missing))} (it has "
                f"{', '.join(map(repr, present)) or 'no header'}); name columns that it has."
            )
        rows = [
            (f"line {reader.line_num}", row[word_column], row[valence_column], row[arousal_column])
            for row in reader
        ]
    except csv.Error as error:
        raise UserError(
            f"The norms file {path} is not a table at line {reader.line_num} ({error}); mend that "
            "line."
        ) from None
    norms = _checked(path, path.stem, language, f"{path.name}, read from a path", rows)
    return replace(norms, sha256=files.sha256(path))


def for_test(norms: Norms, held_out: Sequence[str], count: int, seed: int) -> Norms:
    """The words on which ratings are predicted: drawn at random, none in or kin to `held_out`.

    Args:
      norms: the rated words.
      held_out: concept words and control words, which chose the features.
      count: how many words to draw; all that are left if there are fewer.
      seed: of the draw.
    """
    left = np.flatnonzero(~kinship.kin(norms.words, held_out, norms.language))
    drawn = np.random.default_rng(seed).permutation(left)[:count]
    return norms.take(np.sort(drawn))


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"The norms file {path} cannot be read ({files.reason(error)}); check the path."
        ) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"The norms file {path} is not UTF-8 at line {line}; save it as UTF-8 and run again."
        ) from None


def _checked(
    path: Path,
    name: str,
    language: str,
    source: str,
    rows: Iterable[tuple[str, object, object, object]],
) -> Norms:
    """Rows (where, word, valence, arousal) to `Norms`, or the first thing wrong with them."""
    words: dict[str, str] = {}
    ratings: list[tuple[float, float]] = []
    for where, cell, *cells in rows:
        word = str(cell or "").strip()
        if not word:
            raise UserError(
                f"The norms file {path} has no word at {where}; mend or delete the row."
            )
        if word in words:
            raise UserError(
                f"The norms file {path} has the word '{word}' twice, at {words[word]} and at "
                f"{where}; keep one."
            )
        words[word] = where
        values = []
        for column, value in zip(("valence", "arousal"), cells, strict=True):
            try:
                number = float(str(value))
            except ValueError:
                number = np.nan
            if not SCALE[0] <= number <= SCALE[1]:
                raise UserError(
                    f"The norms file {path} gives the word '{word}' at {where} the {column} "
                    f"{value!r}, which is not a number from {SCALE[0]:g} to {SCALE[1]:g}; mend or "
                    "delete the row."
                )
            values.append(number)
        ratings.append((values[0], values[1]))
    if not words:
        raise UserError(f"The norms file {path} has no rated word; choose another file.")
    table = np.array(ratings)
    return Norms(name, language, tuple(words), table[:, 0], table[:, 1], source)
