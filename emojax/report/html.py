"""One file that a person opens: `report.html`, with its figures inside, made from results alone.

It asks for nothing from outside (its content security policy forbids it), runs no script, and every
string that came from a model or a file is escaped.
"""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from emojax import files
from emojax.report import figures, names
from emojax.report.results import (
    CategoryFeatures,
    Continuation,
    Language,
    Rating,
    Results,
    Scatter,
    Steering,
    check,
)


def write(results: Results, path: Path) -> None:
    """Writes the report, whole or not at all.

    Raises:
      UserError: a field does not fit the schema, or the file cannot be written.
    """
    text = build(results)
    with files.atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def build(results: Results) -> str:
    """The report as HTML; the same text for the same results.

    Raises:
      UserError: a field does not fit the schema; the message names it.
    """
    results = check(results)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "p_value": p_value,
        "p_is": p_is,
        "token": visible_token,
        "json": lambda value: json.dumps(value, ensure_ascii=False, indent=2),
    }
    languages = [x for x in names.LANGUAGES if x in results["features"]["words_per_category"]]
    return environment.get_template("template.html").render(
        r=results,
        languages=languages,
        language_names=names.LANGUAGES,
        set_names=names.FEATURE_SETS,
        method_names=names.METHODS,
        figures=_figures(results),
        verdicts={
            name: sum(bar["met"] is met for bar in results["bars"])
            for name, met in (("met", True), ("missed", False), ("unmeasured", None))
        },
        headline=[r for r in results["ratings"] if r["feature_set"] == "space"],
        rating_of={(r["language"], r["target"], r["feature_set"]): r for r in results["ratings"]},
        summary_of={
            (s["language"], s["method"]): s
            for s in (results["steering"]["summary"] if results["steering"] else [])
        },
        strongest=strongest_words,
        texts=_texts(results["steering"]),
        outcomes=_outcomes(results["steering"], languages),
        covered=_covered(results["steering"]),
        marked=marked,
    )


def number(value: float | int | None, digits: int = 2) -> str:
    """A number with a real minus sign; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def percent(value: float | int | None, digits: int = 0) -> str:
    """A share as a percentage; a dash for None."""
    return "–" if value is None else f"{value:.{digits}%}".replace("-", "−")


def p_value(value: float | int) -> str:
    """As journals write it: three digits, or "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_is(value: float | int) -> str:
    """As `p_value`, with the relation that it has to p: "= 0.012" or "< 0.001"."""
    return p_value(value) if value < 0.001 else f"= {p_value(value)}"


def visible_token(token: str) -> str:
    """A token with its white space made visible."""
    return token.replace(" ", "␣").replace("▁", "␣").replace("\n", "⏎").replace("\t", "⇥")


def marked(text: str, words: Iterable[str] | None) -> Markup:
    """The text, escaped, with the words in `<mark>`: whole words, except in Chinese."""
    longest_first = sorted(words or [], key=len, reverse=True)
    pattern = "|".join(
        rf"\b{re.escape(word)}\b" if word.isascii() else re.escape(word) for word in longest_first
    )
    if not pattern:
        return escape(text)
    pieces = re.split(f"({pattern})", text, flags=re.IGNORECASE)
    return Markup("").join(
        Markup("<mark>{}</mark>").format(piece) if index % 2 else escape(piece)
        for index, piece in enumerate(pieces)
    )


def strongest_words(category: CategoryFeatures, language: Language, count: int = 6) -> list[str]:
    """The words that the category's strongest latents react to most, each once, in turn."""
    by_rank = itertools.zip_longest(*(x["top_words"] for x in category[language][:count]))
    words = dict.fromkeys(word for rank in by_rank for word in rank if word is not None)
    return list(words)[:count]


def _figures(results: Results) -> dict[str, Any]:
    """Every figure, safe to stand in the page: `figures` escapes what it writes."""
    ratings, steering = results["ratings"], results["steering"]
    by_valence = _order(results)
    drawn = {
        "spaces": [figures.emotion_space(space) for space in results["spaces"]],
        "rdms": [figures.rdm(space, by_valence) for space in results["spaces"]],
        "scatters": [figures.rating_scatter(s, _rating(ratings, s)) for s in results["scatters"]],
        "sets": [
            figures.feature_sets(ratings, language, target)
            for language, target in dict.fromkeys((r["language"], r["target"]) for r in ratings)
        ],
        "dictionaries": [figures.dictionaries(results["sae"])],
        "steering": [
            figures.steering(steering["summary"], language)
            for language in dict.fromkeys(s["language"] for s in steering["summary"])
        ]
        if steering
        else [],
    }
    return {name: [Markup(svg) for svg in svgs] for name, svgs in drawn.items()}


def _order(results: Results) -> list[str]:
    """The emotions by human valence (mean over languages), most negative first, unrated last."""
    valences: dict[str, list[float]] = {}
    for space in results["spaces"]:
        for emotion, valence in zip(space["emotions"], space["valence"], strict=True):
            valences.setdefault(emotion, []).extend([] if valence is None else [valence])
    mean = {e: sum(v) / len(v) if v else float("inf") for e, v in valences.items()}
    return sorted(mean, key=lambda emotion: mean[emotion])


def _rating(ratings: Sequence[Rating], scatter: Scatter) -> Rating:
    keys = ("language", "target", "feature_set")
    return next(r for r in ratings if all(r[key] == scatter[key] for key in keys))


def _texts(steering: Steering | None) -> list[dict[str, Any]]:
    """Per pair of an English and a Chinese prompt: the unsteered texts and each emotion's."""
    if steering is None:
        return []
    numbers = {
        language: [i for i, p in enumerate(steering["prompts"]) if p["language"] == language]
        for language in ("en", "zh")
    }
    found: dict[tuple[int, str | None], list[Continuation]] = {}
    for row in steering["rows"]:
        if row["method"] in ("sae", "none"):
            found.setdefault((row["prompt"], row["emotion"]), []).append(row)
    emotions = [None, *(vector["emotion"] for vector in steering["vectors"])]
    blocks = []
    for pair in itertools.zip_longest(numbers["en"], numbers["zh"]):
        indices = [index for index in pair if index is not None]
        texts = {
            e: list(itertools.zip_longest(*(found.get((i, e), []) for i in indices)))
            for e in emotions
        }
        rows = [(e, texts[e][0]) for e in emotions if texts[e]]
        rows += [(None, further) for further in texts[None][1:]]
        blocks.append({"prompts": [steering["prompts"][i] for i in indices], "rows": rows})
    return blocks


def _outcomes(steering: Steering | None, languages: Sequence[Language]) -> list[dict[str, Any]]:
    """Per emotion: its vector and what became of the texts steered with it, in each language."""
    if steering is None:
        return []
    rows: dict[tuple[str | None, Language], list[Continuation]] = {}
    for row in steering["rows"]:
        if row["method"] == "sae":
            language = steering["prompts"][row["prompt"]]["language"]
            rows.setdefault((row["emotion"], language), []).append(row)
    outcomes = []
    for vector in steering["vectors"]:
        written = [rows.get((vector["emotion"], language), []) for language in languages]
        outcomes.append(
            {
                "vector": vector,
                "words": [_share(row["emotion_words"] for row in x) for x in written],
                "judged": [_share(row["judged_intended"] for row in x) for x in written],
            }
        )
    return outcomes


def _covered(steering: Steering | None) -> list[tuple[str, str]]:
    """What the summary's intervals cover, each with the measures that it holds for, in words."""
    names = {
        "emotion_word": "word",
        "emotion_word_gain": "more than unsteered",
        "judged_intended": "judged",
        "perplexity_ratio": "perplexity ratio",
        "distinct_2": "distinct bigrams",
        "repetition": "repetition",
        "language_switch": "other script",
    }
    found: dict[str, dict[str, dict[str, None]]] = {}
    for row in steering["summary"] if steering else []:
        texts = "unsteered texts" if row["method"] == "none" else "steered texts"
        for name, shown in names.items():
            estimate = row[name]  # type: ignore[literal-required]
            if estimate is not None and estimate["covers"]:
                found.setdefault(estimate["covers"], {}).setdefault(texts, {})[shown] = None
    return [
        (covers, "; ".join(f"{texts}: {', '.join(shown)}" for texts, shown in by_texts.items()))
        for covers, by_texts in found.items()
    ]


def _share(answers: Iterable[object]) -> float | None:
    """The share of yes among the answers that are not None."""
    known = [bool(answer) for answer in answers if answer is not None]
    return sum(known) / len(known) if known else None
