"""A run's main numbers as Markdown: what the quickstart prints and the README shows."""

from collections.abc import Iterator

from emojax.report.names import FEATURE_SETS, LANGUAGES, METHODS
from emojax.report.results import Estimate, Results


def markdown(results: Results) -> str:
    """Ratings, dictionary, steering and bars as Markdown tables."""
    blocks = [
        _verdict(results),
        _ratings(results),
        _few_latents(results),
        _controls(results),
        _dictionary(results),
        _steering(results),
        _bars(results),
    ]
    return "\n\n".join("\n".join(block) for block in blocks)


def _verdict(results: Results) -> Iterator[str]:
    """How many bars were met, and the names of those that were not."""
    missed = [bar["name"] for bar in results["bars"] if bar["met"] is False]
    met = sum(bar["met"] is True for bar in results["bars"])
    yield f"**{met} of {len(results['bars'])} bars met**; missed: {', '.join(missed) or 'none'}."


def _ratings(results: Results) -> Iterator[str]:
    found = {(x["language"], x["target"], x["feature_set"]): x for x in results["ratings"]}
    columns = list(dict.fromkeys((language, target) for language, target, _ in found))
    yield (
        "| Pearson r with human ratings [95 % CI] (features) | "
        + " | ".join(f"{LANGUAGES[language]} {target}" for language, target in columns)
        + " |"
    )
    yield "|---|" + "---|" * len(columns)
    for name, title in FEATURE_SETS.items():
        if not any((*column, name) in found for column in columns):
            continue
        cells = []
        for language, target in columns:
            x = found[language, target, name]  # type: ignore[index]
            interval = f"[{x['ci_low']:.2f}, {x['ci_high']:.2f}]"
            cells.append(f"{x['r']:.3f} {interval} ({x['n_features']:,})")
        yield f"| {title} | " + " | ".join(cells) + " |"


def _few_latents(results: Results) -> Iterator[str]:
    """The two dictionaries at equal numbers of latents."""
    found = {
        (x["language"], x["target"], x["dictionary"], x["n_latents"]): x["r"]
        for x in results["few_latents"]
    }
    counts = sorted({key[3] for key in found})
    columns = list(dict.fromkeys((language, target) for language, target, _, _ in found))
    yield (
        "| r from the best few latents, trained / untrained | "
        + " | ".join(f"{LANGUAGES[language]} {target}" for language, target in columns)
        + " |"
    )
    yield "|---|" + "---|" * len(columns)
    for count in counts:
        pairs = [
            " / ".join(f"{found[*column, name, count]:.2f}" for name in ("trained", "untrained"))
            for column in columns
        ]
        yield f"| {count} | " + " | ".join(pairs) + " |"


def _controls(results: Results) -> Iterator[str]:
    """What the selection finds where there is little, and the geometry of other forms."""
    yield "| latents that pass the selection | trained | untrained | words dealt at random |"
    yield "|---|---|---|---|"
    for x in results["features"]["passing"]:
        yield (
            f"| {LANGUAGES[x['language']]} | {x['trained']} | {x['untrained']} | {x['shuffled']} |"
        )
    cross = results["cross_language"]
    if cross is not None:
        forms = {"dense": FEATURE_SETS["dense"], "untrained": FEATURE_SETS["untrained"]}
        yield ""
        yield "| agreement of the two languages' dissimilarities, Spearman's ρ [95 % CI] | |"
        yield "|---|---|"
        yield f"| {FEATURE_SETS['space']} | {_estimate(cross['rdm_spearman'], '.3f')} |"
        for x in cross["controls"]:
            yield f"| {forms[x['of']]} | {_estimate(x['rdm_spearman'], '.3f')} |"


def _dictionary(results: Results) -> Iterator[str]:
    sae = results["sae"]
    yield "| dictionary, held-out text | trained | untrained |"
    yield "|---|---|---|"
    rows = {
        "active latents per token (L0)": ("l0", ".1f"),
        "variance unexplained, without massive-norm tokens": ("fvu", ".3f"),
        "variance unexplained, all tokens": ("fvu_all", ".4f"),
        "dead latents": ("dead_share", ".1%"),
        "loss recovered when spliced in (0: the site set to zero)": ("loss_recovered", ".3f"),
        "loss recovered (0: the site set to its mean)": ("loss_recovered_from_mean", ".3f"),
    }
    for title, (name, form) in rows.items():
        values = [sae["trained"][name], sae["untrained"][name]]  # type: ignore[literal-required]
        cells = ["–" if value is None else format(value, form) for value in values]
        yield f"| {title} | " + " | ".join(cells) + " |"


def _steering(results: Results) -> Iterator[str]:
    steering = results["steering"]
    if steering is None:
        return
    yield (
        "| text | with a word of the intended emotion | more than unsteered | perplexity ratio "
        "| repeated 4-grams |"
    )
    yield "|---|---|---|---|---|"
    for row in steering["summary"]:
        title = f"{LANGUAGES[row['language']]}, {METHODS[row['method']]}"
        cells = [
            _estimate(row["emotion_word"], ".1%"),
            _estimate(row["emotion_word_gain"], ".1%"),
            _estimate(row["perplexity_ratio"], ".2f"),
            _estimate(row["repetition"], ".1%"),
        ]
        yield f"| {title} ({row['n_texts']} texts) | " + " | ".join(cells) + " |"


def _bars(results: Results) -> Iterator[str]:
    yield "| bar, set before the measurement | asked | measured | |"
    yield "|---|---|---|---|"
    for bar in results["bars"]:
        value = "–" if bar["value"] is None else f"{bar['value']:.3f}"
        verdict = {True: "met", False: "**missed**", None: "not measured"}[bar["met"]]
        yield (
            f"| {bar['name']}: {bar['statement']} | {bar['relation']} {bar['bar']:g} | {value} "
            f"| {verdict} |"
        )


def _estimate(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return "–"
    shown = format(estimate["value"], form)
    if estimate["ci_low"] is None or estimate["ci_high"] is None:
        return shown
    return f"{shown} [{estimate['ci_low']:{form}}, {estimate['ci_high']:{form}}]"
