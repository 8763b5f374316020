"""The bars, written down before anything was measured, and what became of them.

Bars A–F are the qualitative findings that summaries of arXiv 2506.13978 report (its numbers were
not available to us); S and T are about our own dictionary and text. A missed bar is shown missed.

T compares steered text with the unsteered texts of the same prompts. Its thresholds are as they
were written down; there was one unsteered text per prompt then, and now `Writing.unsteered`.
T1 is the mean over prompts and emotions of the share of texts with a word of the emotion, steered
minus unsteered; T2 is exp of the mean log perplexity, steered minus unsteered, prompt by prompt.
"""

from collections.abc import Iterator
from typing import Literal

from emojax.report import results as schema
from emojax.report.names import LANGUAGES
from emojax.report.results import (
    Bar,
    CrossLanguage,
    FeatureSet,
    Language,
    Rating,
    Results,
    Space,
    Target,
)


def judge(results: Results) -> list[Bar]:
    """Every bar, with its value in `results` (None: not measured in this run)."""
    return [
        *_dictionary(results),
        *_space(results["spaces"]),
        *_ratings(results["ratings"]),
        *_languages(results["cross_language"]),
        *_steering(results),
    ]


def _dictionary(results: Results) -> Iterator[Bar]:
    # Measured when the dictionary was made; of other weights than that model's they say nothing.
    sae = results["sae"]["trained"] if results["sae"]["measured_on_these_weights"] else None
    bars: list[tuple[str, str, Literal["≥", "≤"], float, str]] = [
        ("S1", "The dictionary leaves little of held-out variance unexplained", "≤", 0.10, "fvu"),
        ("S2", "Few latents are dead on held-out text", "≤", 0.05, "dead_share"),
        ("S3", "Spliced into the model it keeps the loss", "≥", 0.90, "loss_recovered"),
    ]
    for name, statement, relation, bar, field in bars:
        value = sae[field] if sae else None  # type: ignore[literal-required]
        yield schema.bar(name, statement, relation, bar, value)


def _space(spaces: list[Space]) -> Iterator[Bar]:
    wanted: list[tuple[Target, float]] = [("valence", 0.7), ("arousal", 0.5)]
    for space in spaces:
        for target, bar in wanted:
            found = [abs(c["r"]) for c in space["correlations"] if c["target"] == target]
            yield schema.bar(
                f"A {space['language']} {target}",
                f"One of the leading components of the {LANGUAGES[space['language']]} emotion "
                f"space is {target}: largest absolute r",
                "≥",
                bar,
                max(found, default=None),
            )


def _ratings(ratings: list[Rating]) -> Iterator[Bar]:
    r = {(x["language"], x["target"], x["feature_set"]): x["r"] for x in ratings}

    def difference(language: Language, one: FeatureSet, other: FeatureSet) -> float | None:
        first, second = r.get((language, "valence", one)), r.get((language, "valence", other))
        return None if first is None or second is None else first - second

    bars: dict[tuple[Language, Target], float] = {
        ("en", "valence"): 0.75,
        ("en", "arousal"): 0.50,
        ("zh", "valence"): 0.65,
        ("zh", "arousal"): 0.35,
    }
    for (language, target), bar in bars.items():
        yield schema.bar(
            f"B {language} {target}",
            f"Emotion features predict human {target} of {LANGUAGES[language]} words: r",
            "≥",
            bar,
            r.get((language, target, "space")),
        )
    for language, name in LANGUAGES.items():
        yield schema.bar(
            f"C {language}",
            f"{name} valence: emotion features beat as many latents outside the space, Δr",
            "≥",
            0.05,
            difference(language, "space", "outside"),
        )
        yield schema.bar(
            f"C' {language}",
            f"{name} valence: they beat as many latents of the untrained dictionary, Δr",
            "≥",
            0.02,
            difference(language, "space", "untrained"),
        )
        yield schema.bar(
            f"D {language}",
            f"{name} valence: the latents that both languages share lose little, Δr",
            "≥",
            -0.05,
            difference(language, "intersection", "space"),
        )
        valence, arousal = (
            r.get((language, "valence", "space")),
            r.get((language, "arousal", "space")),
        )
        yield schema.bar(
            f"E {language}",
            f"{name}: valence is predicted better than arousal, Δr",
            "≥",
            0.0,
            None if valence is None or arousal is None else valence - arousal,
        )


def _languages(cross: CrossLanguage | None) -> Iterator[Bar]:
    yield schema.bar(
        "F",
        "The two languages' emotion spaces have the same geometry: Spearman's ρ of their RDMs",
        "≥",
        0.30,
        None if cross is None else cross["rdm_spearman"]["value"],
    )


def _steering(results: Results) -> Iterator[Bar]:
    steering = results["steering"]
    summaries = [] if steering is None else steering["summary"]
    found = {(s["language"], s["method"]): s for s in summaries}
    for language, name in LANGUAGES.items():
        steered = found.get((language, "sae"))
        gain = steered["emotion_word_gain"] if steered else None
        yield schema.bar(
            f"T1 {language}",
            f"Steered {name} text holds words of the intended emotion more often than unsteered "
            "text does: difference of shares",
            "≥",
            0.10,
            gain["value"] if gain else None,
        )
        yield schema.bar(
            f"T2 {language}",
            f"Steered {name} text stays likely under the unsteered model: perplexity ratio",
            "≤",
            2.5,
            steered["perplexity_ratio"]["value"] if steered else None,
        )
