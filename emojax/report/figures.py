"""Figures as SVG text to stand inside the report: the same bytes for the same results.

Lines and letters are drawn in `currentColor`, so that a figure is legible on a light page, on a
dark one and on paper; letters are outlines, so that no font is needed. Colours are told apart by
the colour-blind (blue against orange) and never say alone what is to be read.
"""

import html
import io
import re
from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from emojax.report.names import FEATURE_SETS, LANGUAGES, METHODS
from emojax.report.results import (
    Language,
    Rating,
    Sae,
    Scatter,
    Space,
    SteeringSummary,
    Target,
)

_INK = "#010203"  # stands for currentColor until the SVG is written
_BLUE, _ORANGE, _GREY = "#1f77b4", "#d1661c", "#8a8a8a"
_VALENCE = LinearSegmentedColormap.from_list("valence", ["#c4510e", "#a9a39b", "#1769aa"])
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "emojax",
    "text.color": _INK,
    "xtick.color": _INK,
    "xtick.major.width": 0.6,
    "ytick.color": _INK,
    "ytick.major.width": 0.6,
}


def emotion_space(space: Space) -> str:
    """The categories on the first two components: valence is colour, arousal is size.

    A component's sign is arbitrary: PC1 is drawn rising with valence and PC2 with arousal.
    """
    language = LANGUAGES[space["language"]]
    r = {(c["component"], c["target"]): c["r"] for c in space["correlations"]}
    flips = [-1 if r.get(pair, 1) < 0 else 1 for pair in ((1, "valence"), (2, "arousal"))]
    xy = np.array(space["coords"], float)[:, :2] * flips
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.9, 5.3), layout="constrained")
        axes = figure.subplots()
        sizes = [_marker_area(a, space["arousal"]) for a in space["arousal"]]
        rated = np.array([v is not None for v in space["valence"]])
        valence = np.array([np.nan if v is None else v for v in space["valence"]], float)
        centre = float(np.nanmean(valence)) if rated.any() else 0.0
        reach = float(np.nanmax(np.abs(valence - centre))) if rated.any() else 1.0
        scale = Normalize(centre - (reach or 1), centre + (reach or 1))
        colours = [
            _VALENCE(scale(v)) if ok else (0, 0, 0, 0) for v, ok in zip(valence, rated, strict=True)
        ]
        axes.axhline(0, color=_INK, linewidth=0.4, alpha=0.3, zorder=0)
        axes.axvline(0, color=_INK, linewidth=0.4, alpha=0.3, zorder=0)
        axes.scatter(*xy.T, s=sizes, c=colours, edgecolors=_INK, linewidths=0.6, zorder=2)
        for number, axis in ((1, axes.xaxis), (2, axes.yaxis)):
            target: Target = "valence" if number == 1 else "arousal"
            share = space["explained_variance"][number - 1]
            against = (
                f"; {target} r = {abs(r[number, target]):.2f}" if (number, target) in r else ""
            )
            axis.set_label_text(f"PC{number} ({share:.0%} of variance{against})")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.margins(0.12, 0.08)
        bar = figure.colorbar(
            matplotlib.cm.ScalarMappable(scale, _VALENCE), ax=axes, shrink=0.5, aspect=24, pad=0.01
        )
        bar.set_label("human valence (area: arousal)")
        bar.outline.set_visible(False)  # pyrefly: ignore
        _label_points(figure, axes, xy, space["emotions"], sizes)
        order = np.argsort(xy[:, 0])
        ends = [space["emotions"][i] for i in order]
        return _svg(
            figure,
            f"space-{space['language']}",
            f"The {language} emotion space on its first two principal components",
            f"{len(ends)} categories. From low to high PC1: {', '.join(ends)}.",
        )


def rating_scatter(scatter: Scatter, rating: Rating) -> str:
    """Human means against out-of-fold predictions, one dot per word."""
    what = f"{LANGUAGES[scatter['language']]} {scatter['target']}"
    correlation = f"r = {rating['r']:.2f} [{rating['ci_low']:.2f}, {rating['ci_high']:.2f}]"
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 4.3), layout="constrained")
        axes = figure.subplots()
        axes.set_title(f"{what}: {_minus(correlation)}")
        # Thousands of dots are an image inside the SVG; frame and letters stay lines.
        axes.scatter(
            scatter["human"],
            scatter["predicted"],
            s=5,
            c=_BLUE,
            alpha=0.35,
            linewidths=0,
            rasterized=True,
        )
        low, high = min(scatter["human"]), max(scatter["human"])
        axes.plot([low, high], [low, high], color=_INK, linewidth=0.7, linestyle=(0, (4, 3)))
        axes.set_xlabel(f"human {scatter['target']}")
        axes.set_ylabel(f"predicted, held-out words (n = {rating['n_words']:,})")
        return _svg(
            figure,
            f"scatter-{scatter['language']}-{scatter['target']}-{scatter['feature_set']}",
            f"{what}: human means against predictions",
            f"{FEATURE_SETS[scatter['feature_set']]}; Pearson {correlation} over "
            f"{rating['n_words']} words. The dashed line is perfect prediction.",
        )


def feature_sets(ratings: Sequence[Rating], language: Language, target: Target) -> str:
    """The same prediction from each set of features: r with its interval, and the null's."""
    rows = [r for r in ratings if r["language"] == language and r["target"] == target]
    rows.sort(key=lambda rating: list(FEATURE_SETS).index(rating["feature_set"]))
    what = f"{LANGUAGES[language]} {target}"
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 0.6 + 0.3 * max(len(rows), 2)), layout="constrained")
        axes = figure.subplots()
        axes.set_title(what)
        for y, row in enumerate(rows):
            own = row["feature_set"] in ("space", "intersection")
            colour = _ORANGE if own else _GREY
            axes.plot([row["ci_low"], row["ci_high"]], [y, y], color=colour, linewidth=2)
            axes.plot(row["r"], y, "o" if own else "D", color=colour, markersize=6 if own else 5)
            axes.annotate(
                _minus(f"{row['r']:.2f}"),
                (max(row["ci_high"], row["null"]["high"] if row["null"] else row["ci_high"]), y),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
            )
            if row["null"] is not None:
                axes.plot([row["null"]["high"]] * 2, [y - 0.3, y + 0.3], color=_INK, linewidth=1)
        axes.set_yticks(
            range(len(rows)),
            [f"{FEATURE_SETS[r['feature_set']]} ({r['n_features']:,})" for r in rows],
        )
        axes.invert_yaxis()
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=_INK, linewidth=0.4, alpha=0.3, zorder=0)
        low = min([0.0, *(row["ci_low"] for row in rows)])
        axes.set_xlim(low - 0.02, 1.0)
        axes.grid(axis="x", color=_INK, alpha=0.12, linewidth=0.5)
        axes.set_xlabel("Pearson r, held-out words")
        found = "; ".join(
            f"{FEATURE_SETS[r['feature_set']]} {r['r']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}]"
            for r in rows
        )
        return _svg(
            figure,
            f"sets-{language}-{target}",
            f"{what}: predicted from each set of features",
            f"Pearson r with 95 % interval. {found}.",
        )


def rdm(space: Space, order: Sequence[str]) -> str:
    """The categories' dissimilarity matrix, rows and columns in the given order of emotions."""
    index = [space["emotions"].index(emotion) for emotion in order]
    matrix = np.array(space["rdm"], float)[np.ix_(index, index)]
    language = LANGUAGES[space["language"]]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 4.9), layout="constrained")
        axes = figure.subplots()
        axes.set_title(language)
        shown = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
        image = axes.imshow(shown, cmap="cividis", interpolation="none")
        axes.set_xticks(range(len(order)), order, rotation=90, fontsize=7)
        axes.set_yticks(range(len(order)), order, fontsize=7)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=24, pad=0.01)
        bar.set_label(space["rdm_measure"])
        bar.outline.set_visible(False)  # pyrefly: ignore
        return _svg(
            figure,
            f"rdm-{space['language']}",
            f"Dissimilarity of the emotions in the {language} space",
            f"{space['rdm_measure']}, between {np.nanmin(shown):.2f} and {np.nanmax(shown):.2f}; "
            "categories in order of human valence, most negative first.",
        )


def dictionaries(sae: Sae) -> str:
    """The trained dictionary beside the untrained one, on what both are measured by."""
    names: dict[Literal["fvu", "fvu_all", "dead_share", "loss_recovered"], str] = {
        "fvu": "Variance unexplained",
        "fvu_all": "… massive tokens included",
        "dead_share": "Dead latents, share",
        "loss_recovered": "Loss recovered",
    }
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 2.0), layout="constrained")
        axes = figure.subplots()
        for kind, marker, colour, y_offset in (
            ("trained", "o", _ORANGE, -0.14),
            ("untrained", "D", _GREY, 0.14),
        ):
            found = [(y, sae[kind][name]) for y, name in enumerate(names)]
            known = [(y + y_offset, value) for y, value in found if value is not None]
            for y, value in known:
                # An untrained dictionary may do far worse than nothing: the number says how far.
                inside = min(max(value, -0.1), 1.15)
                shape = marker if inside == value else "<" if value < 0 else ">"
                axes.plot([0, inside], [y, y], color=colour, linewidth=1.2)
                label = kind if y == known[0][0] else None
                axes.plot(inside, y, shape, color=colour, markersize=5, label=label, linestyle="")
                axes.annotate(
                    _minus(f"{value:.2f}"),
                    (max(inside, 0), y),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7.5,
                )
        axes.set_yticks(range(len(names)), list(names.values()))
        axes.invert_yaxis()
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(-0.22, 1.28)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.axvline(0, color=_INK, linewidth=0.4, alpha=0.4, zorder=0)
        axes.axvline(1, color=_INK, linewidth=0.4, alpha=0.4, zorder=0)
        figure.legend(loc="outside upper right", ncols=2, frameon=False)
        said = "; ".join(
            f"{label}: trained {_number(sae['trained'][name])}, untrained "
            f"{_number(sae['untrained'][name])}"
            for name, label in names.items()
        )
        return _svg(figure, "dictionaries", "Trained and untrained dictionary", f"{said}.")


def steering(summary: Sequence[SteeringSummary], language: Language) -> str:
    """How often the text holds a word of the emotion, against what that costs in perplexity."""
    rows = [row for row in summary if row["language"] == language and row["emotion_word"]]
    rows.sort(key=lambda row: list(METHODS).index(row["method"]))
    colours = {"sae": _ORANGE, "diffmean": _BLUE, "random": _GREY, "none": _GREY}
    markers = {"sae": "o", "diffmean": "s", "random": "D", "none": "^"}
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 3.9), layout="constrained")
        axes = figure.subplots()
        axes.set_title(LANGUAGES[language])
        for row in rows:
            x, y = row["perplexity_ratio"], row["emotion_word"]
            if y is None:
                continue
            colour, marker = colours[row["method"]], markers[row["method"]]
            for estimate, other, horizontal in ((x, y, True), (y, x, False)):
                if estimate["ci_low"] is not None and estimate["ci_high"] is not None:
                    ends, level = [estimate["ci_low"], estimate["ci_high"]], [other["value"]] * 2
                    axes.plot(
                        *((ends, level) if horizontal else (level, ends)),
                        color=colour,
                        linewidth=1.5,
                    )
            axes.plot(
                x["value"],
                y["value"],
                marker,
                color=colour,
                markersize=7,
                linestyle="",
                label=METHODS[row["method"]],
            )
        axes.set_xscale("log", base=2)
        low, high = axes.get_xlim()
        low, high = min(low, 0.9), max(high, 2.2)
        axes.set_xlim(low, high)
        axes.set_xticks([t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if low <= t <= high])
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
        axes.set_ylim(bottom=0)
        axes.grid(color=_INK, alpha=0.12, linewidth=0.5)
        axes.set_xlabel("perplexity ratio (1 = as likely as unsteered text)")
        axes.set_ylabel("texts with a word of the emotion")
        figure.legend(loc="outside lower left", ncols=4, frameon=False)
        said = "; ".join(
            f"{METHODS[row['method']]}: {row['emotion_word']['value']:.0%} at ratio "
            f"{row['perplexity_ratio']['value']:.2f}"
            for row in rows
            if row["emotion_word"]
        )
        return _svg(
            figure,
            f"steering-{language}",
            f"Steered {LANGUAGES[language]} text: emotion words against perplexity",
            f"Shares of texts with a word of the intended emotion. {said}.",
        )


def _marker_area(arousal: float | None, all_arousals: Sequence[float | None]) -> float:
    known = [a for a in all_arousals if a is not None]
    if arousal is None or min(known) == max(known):
        return 45.0
    return 20 + 110 * (arousal - min(known)) / (max(known) - min(known))


def _label_points(
    figure: Figure,
    axes: Axes,
    xy: Float[np.ndarray, "points 2"],
    labels: Sequence[str],
    areas: Sequence[float],
) -> None:
    """Writes each label beside its point, clear of all points and of the other labels.

    Every label takes, in turn and for some rounds, the place around its point that overlaps least;
    one that had to move away gets a line to its point.
    """
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    renderer, inside = canvas.get_renderer(), axes.get_window_extent()
    per_point = figure.dpi / 72
    centres = axes.transData.transform(xy)
    radii = np.sqrt(np.array(areas)) / 2 * per_point
    texts = [axes.text(0, 0, label, fontsize=8) for label in labels]
    sizes = np.array([t.get_window_extent(renderer).size for t in texts]) + 2
    points = np.concatenate([centres - radii[:, None], centres + radii[:, None]], axis=1)

    angles = np.arange(16) * np.pi / 8
    away = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # To the right and to the left reads best, then close by; a step away is 9 points.
    steps = np.repeat(np.arange(5), len(away))
    preference = 12 * steps + np.tile(3 * np.abs(away[:, 1]) + (away[:, 0] < 0), 5)
    places, costs = [], []
    for centre, radius, size in zip(centres, radii, sizes, strict=True):
        reach = radius + 1 + 9 * steps[:, None] * per_point + size / 2
        middle = centre + np.tile(away, (5, 1)) * reach
        box = np.concatenate([middle - size / 2, middle + size / 2], axis=1)
        out = (box[:, :2] < inside.min).sum(axis=1) + (box[:, 2:] > inside.max).sum(axis=1)
        places.append(box)
        costs.append(preference + 2 * _overlaps(box, points).sum(axis=1) + 1e4 * out)
    chosen = np.argmin(costs, axis=1)
    for _ in range(6):
        for i in range(len(labels)):
            others = np.stack([places[j][chosen[j]] for j in range(len(labels)) if j != i])
            chosen[i] = np.argmin(costs[i] + 3 * _overlaps(places[i], others).sum(axis=1))
    to_data = axes.transData.inverted()
    for i, text in enumerate(texts):
        box = places[i][chosen[i]]
        text.set_position(tuple(to_data.transform((box[:2] + box[2:]) / 2)))
        text.set(ha="center", va="center_baseline", zorder=3)
        if steps[chosen[i]]:
            near = np.clip(centres[i], box[:2] + 1, box[2:] - 1)
            ends = to_data.transform(np.stack([centres[i], near]))
            axes.plot(*ends.T, color=_INK, alpha=0.5, linewidth=0.5, zorder=1)


def _overlaps(
    boxes: Float[np.ndarray, "n 4"], others: Float[np.ndarray, "m 4"]
) -> Float[np.ndarray, "n m"]:
    """Areas that each of `boxes` shares with each of `others` (left, bottom, right, top)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=-1)


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as one `<svg>` element whose ids are its own within the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(_INK, "currentColor").replace(
        '<style type="text/css">*{', f'<style type="text/css">#{name} *{{'
    )
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    head = (
        f'<svg id="{name}" role="img" aria-labelledby="{name}-title {name}-desc"'
        f' class="figure" xmlns:xlink="http://www.w3.org/1999/xlink"'
    )
    about = (
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(description)}</desc>'
    )
    text = text.replace('<svg xmlns:xlink="http://www.w3.org/1999/xlink"', head, 1)
    return text.replace(">", ">" + about, 1).strip()


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
