"""The figures of `benchmarks.train_step` and `benchmarks.scaling`."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emojax import files

_OURS, _OTHERS = "#1b6ca8", "#b9c0c7"


def _pyplot() -> Any:
    """Matplotlib, set up for SVG that is the same in every run, or None where there is none."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no figure: it needs matplotlib (pip install 'emojax[bench]')")
        return None
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "emojax", "font.size": 9})
    from matplotlib import pyplot

    return pyplot


def _save(canvas: Any, path: Path) -> None:
    with files.atomic(path) as partial:
        canvas.savefig(partial, format="svg", metadata={"Date": None})
    print(f"written to {path}")


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes an SVG of a training step with one panel for each shape and kind of activations.

    Args:
      report: what the benchmark measured, with the machine.
      path: of the figure; nothing is written where there is no matplotlib (extra `bench`).
    """
    pyplot = _pyplot()
    if pyplot is None:
        return
    results = report["results"]
    canvas, panels = pyplot.subplots(
        1, len(results), figsize=(3.6 * len(results), 2.6), layout="constrained", squeeze=False
    )
    for panel, (name, result) in zip(panels[0], results.items(), strict=True):
        ran = {who: f for who, f in result["steps"].items() if "median_ms" in f}
        tokens = result["shape"]["tokens"]
        speed = [tokens / figure["median_ms"] for figure in ran.values()]
        colours = [_OURS if who.startswith(("xla", "triton")) else _OTHERS for who in ran]
        bars = panel.barh(list(ran), speed, color=colours)
        panel.bar_label(bars, fmt="%.3g", padding=2)
        if "ms" in result["roofline"]:
            panel.axvline(tokens / result["roofline"]["ms"], color="black", lw=0.8, ls=":")
        panel.margins(x=0.18)
        panel.invert_yaxis()
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("thousand tokens/s")
        panel.spines[["top", "right"]].set_visible(False)
    canvas.suptitle(f"Whole training step on {report['device']}; dotted: roofline", fontsize=9)
    _save(canvas, path)


def draw_scaling(report: dict[str, Any], axes: Mapping[str, str], path: Path) -> None:
    """Writes an SVG with a panel for the time and one for the memory of each axis that grows.

    Args:
      report: what the benchmark measured, with the machine.
      axes: what each axis is, by its name in the report.
      path: of the figure; nothing is written where there is no matplotlib (extra `bench`).
    """
    pyplot = _pyplot()
    if pyplot is None:
        return
    rows = (("median_ms", "roofline_ms", "ms a step"), ("memory_mib", "roofline_mib", "MiB"))
    canvas, panels = pyplot.subplots(
        2,
        len(axes),
        figsize=(2.6 * len(axes), 4.4),
        layout="constrained",
        sharex="col",
        sharey="row",
    )
    for (axis, name), column in zip(axes.items(), panels.T, strict=True):
        ran = {
            int(s): f for s, f in report["results"][axis]["figures"].items() if "absent" not in f
        }
        for panel, (measured, floor, unit) in zip(column, rows, strict=True):
            panel.plot(list(ran), [f[measured] for f in ran.values()], "o-", color=_OURS)
            panel.plot(list(ran), [f[floor] for f in ran.values()], ":", color="black")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:,.0f}")
            panel.yaxis.set_minor_formatter("")
            if panel in panels[:, 0]:
                panel.set_ylabel(unit)
            panel.spines[["top", "right"]].set_visible(False)
        column[-1].set_xticks(list(ran), [f"{size:,}" for size in ran], minor=False)
        column[-1].set_xlabel(name)
    canvas.suptitle(f"The trainer's step on {report['device']}; dotted: roofline", fontsize=9)
    _save(canvas, path)
