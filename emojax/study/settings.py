"""What a study reads, how much of it, and which seeds; `configs/` holds the values."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from emojax.emotion.features import Thresholds
from emojax.emotion.ratings import INNER_FOLDS
from emojax.errors import UserError
from emojax.lm.generate import GenerateSettings

# Texts hold commas, so that on the command line a bar stands between two of them.
Texts = Annotated[tuple[str, ...], "|"]


def _some(name: str, texts: Sequence[str]) -> None:
    if not texts or not all(text.strip() for text in texts):
        raise UserError(f"study.{name} has no text, or an empty one; give at least one text.")


def _ranges(prefix: str, allowed: Mapping[str, tuple[float | int, ...]]) -> None:
    """Refuses a setting (name → value, least, most) that is not in its range; NaN never is."""
    for name, (value, least, most) in allowed.items():
        if not least <= value <= most:
            rule = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise UserError(f"study.{prefix}{name} is {value}; make it {rule}.")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a word is put before the model: each template ends with the word itself."""

    templates_en: Texts = ("The word {}", "It makes me think of {}", "A feeling like {}")
    templates_zh: Texts = ("词语{}", "这让我想到{}", "一种感觉：{}")
    words_per_language: int = 2000  # of each norm, drawn with `seed`

    def __post_init__(self):
        for name, templates in (("en", self.templates_en), ("zh", self.templates_zh)):
            _some(f"reading.templates_{name}", templates)
            for template in templates:
                if not template.endswith("{}") or template.count("{}") != 1:
                    raise UserError(
                        f"The template {template!r} of study.reading.templates_{name} does not end "
                        "with its only {}; write one like 'The word {}', so that a row's last "
                        "token is the word's."
                    )
        _ranges("reading.", {"words_per_language": (self.words_per_language, 1, math.inf)})


@dataclasses.dataclass(frozen=True)
class Writing:
    """What the steered model writes."""

    prompts_en: Texts = (
        "I looked out of the window and",
        "The letter arrived this morning. I",
        "When I got home that evening,",
        "On the way to work this morning",
    )
    prompts_zh: Texts = (
        "我看着窗外，",
        "今天早上收到了一封信，我",
        "那天晚上回到家，",
        "在上班的路上，我们",
    )
    unsteered: int = 8  # texts per prompt, each with its own seed, that steered ones are held to
    strength: float = 0.1  # fraction of each token's residual norm
    max_new_tokens: int = 24
    temperature: float = 0.8
    top_p: float = 0.95

    def __post_init__(self):
        _ranges("writing.", {"unsteered": (self.unsteered, 1, math.inf)})
        if not math.isfinite(self.strength):
            raise UserError(
                f"study.writing.strength is {self.strength}; give a number such as 0.1, a fraction "
                "of each token's residual norm."
            )
        GenerateSettings(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p
        )


@dataclasses.dataclass(frozen=True)
class NormsFile:
    """Human ratings of the user's own, instead of the norm that the project brings.

    Attributes:
      path: a CSV or TSV file in UTF-8 with a header and ratings from 1 to 9; None is the Glasgow
        Norms in English, CVAW in Chinese.
      word: the column of the words.
      valence: the column of their mean valence.
      arousal: the column of their mean arousal.
    """

    path: str | None = None
    word: str = "word"
    valence: str = "valence"
    arousal: str = "arousal"


@dataclasses.dataclass(frozen=True)
class Study:
    """One study: a model, a dictionary, words to read and text to write."""

    model: str  # what `emojax.lm.sources.load` takes
    sae: str  # a shipped artefact's name, or its folder
    languages: tuple[Literal["en", "zh"], ...] = ("en", "zh")  # those that the model can read
    reading: Reading = Reading()
    writing: Writing = Writing()
    norms_en: NormsFile = NormsFile()
    norms_zh: NormsFile = NormsFile()
    concepts_en: str | None = None  # a concept-set of the user's own (TOML); None: the shipped one
    concepts_zh: str | None = None
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)
    folds: int = 5
    outside_draws: int = 5  # of as many latents outside the space; odd, the middle one is shown
    permutations: int = 1000  # of the categories, for p of the space
    bootstraps: int = 300  # of the concept words, for intervals of the space
    null_permutations: int = 199  # of the ratings; each is one more regression target
    judge: str | None = None  # folder of GoEmotions; without it no classifier judges the texts
    seed: int = 0

    def templates(self, language: Literal["en", "zh"]) -> tuple[str, ...]:
        """The templates that words of a language are read in."""
        return self.reading.templates_en if language == "en" else self.reading.templates_zh

    def prompts(self, language: Literal["en", "zh"]) -> tuple[str, ...]:
        """What the model goes on from in a language."""
        return self.writing.prompts_en if language == "en" else self.writing.prompts_zh

    def norms(self, language: Literal["en", "zh"]) -> NormsFile:
        """Where a language's human ratings are read."""
        return self.norms_en if language == "en" else self.norms_zh

    def concepts(self, language: Literal["en", "zh"]) -> str | None:
        """Where a language's concept-set is read; None: the shipped one."""
        return self.concepts_en if language == "en" else self.concepts_zh

    def __post_init__(self):
        if not self.languages or len(set(self.languages)) < len(self.languages):
            raise UserError(
                f"study.languages is {','.join(self.languages) or 'empty'}; name en, zh or both, "
                "each once."
            )
        for language in self.languages:
            _some(f"writing.prompts_{language}", self.prompts(language))
        _ranges(
            "",
            {
                "folds": (self.folds, 2, math.inf),
                "outside_draws": (self.outside_draws, 1, math.inf),
                "permutations": (self.permutations, 1, math.inf),
                "bootstraps": (self.bootstraps, 1, math.inf),
                "null_permutations": (self.null_permutations, 0, math.inf),
                "seed": (self.seed, 0, 2**31 - 1),
                "thresholds.q": (self.thresholds.q, 0, 1),
                "thresholds.coverage": (self.thresholds.coverage, 0, 1),
                "thresholds.density": (self.thresholds.density, 0, 1),
                "thresholds.features": (self.thresholds.features, 0, math.inf),
            },
        )
        if self.outside_draws % 2 == 0:
            raise UserError(
                f"study.outside_draws is {self.outside_draws}; give an odd number, since the draw "
                "in the middle stands for all."
            )
        if self.judge is not None and "en" not in self.languages:
            raise UserError(
                f"study.judge reads English texts and study.languages is {','.join(self.languages)}"
                "; leave the judge out, or study en too."
            )
        least = self.folds * INNER_FOLDS
        if self.reading.words_per_language < least:
            raise UserError(
                f"study.reading.words_per_language is {self.reading.words_per_language}, too few "
                f"for study.folds={self.folds}; give at least {least}."
            )
