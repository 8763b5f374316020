"""What a study reads, how much of it, and which seeds; `configs/` holds the values."""

import dataclasses

from emojax.emotion.features import Thresholds


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a word is put before the model: each template ends with the word itself."""

    templates_en: tuple[str, ...] = ("The word {}", "It makes me think of {}", "A feeling like {}")
    templates_zh: tuple[str, ...] = ("词语{}", "这让我想到{}", "一种感觉：{}")
    words_per_language: int = 2000  # of each norm, drawn with `seed`


@dataclasses.dataclass(frozen=True)
class Writing:
    """What the steered model writes."""

    prompts_en: tuple[str, ...] = (
        "I looked out of the window and",
        "The letter arrived this morning. I",
        "When I got home that evening,",
        "On the way to work this morning",
    )
    prompts_zh: tuple[str, ...] = (
        "我看着窗外，",
        "今天早上收到了一封信，我",
        "那天晚上回到家，",
        "在上班的路上，我们",
    )
    unsteered: int = (
        8  # texts per prompt that steered ones are compared with, each with its own seed
    )
    strength: float = 0.1  # fraction of each token's residual norm
    max_new_tokens: int = 24
    temperature: float = 0.8
    top_p: float = 0.95


@dataclasses.dataclass(frozen=True)
class Study:
    """One study: a model, a dictionary, words to read and text to write."""

    model: str  # what `emojax.lm.sources.load` takes
    sae: str  # a shipped artefact's name, or its folder
    reading: Reading = Reading()
    writing: Writing = Writing()
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)
    folds: int = 5
    outside_draws: int = 5  # of as many latents outside the space; odd, the middle one is shown
    permutations: int = 1000  # of the categories, for p of the space
    bootstraps: int = 300  # of the concept words, for intervals of the space
    null_permutations: int = 20  # of the ratings; each is one more regression target
    judge: str | None = None  # folder of GoEmotions; without it no classifier judges the texts
    seed: int = 0
