"""The figures of `benchmarks.train_step` and `benchmarks.scaling`."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
    """Writes an SVG with a panel for the tokens/s and one for the memory of each axis that grows.

    Args:
      report: what the benchmark measured, with the machine.
      axes: what each axis is, by its name in the report.
      path: of the figure; nothing is written where there is no matplotlib (extra `bench`).
    """
    pyplot = _pyplot()
    if pyplot is None:
        return
    canvas, panels = pyplot.subplots(
        2,
        len(axes),
        figsize=(2.6 * len(axes), 4.6),
        layout="constrained",
        sharex="col",
        sharey="row",
        squeeze=False,
    )
    for (axis, name), (speed, memory) in zip(axes.items(), panels.T, strict=True):
        figures = report["results"][axis]["figures"]
        ran = {int(size): f for size, f in figures.items() if "median_ms" in f}
        measured = [f["tokens_per_second"] for f in ran.values()]
        slower = [f["median_ms"] / f["roofline_ms"] for f in ran.values()]
        speed.plot(list(ran), measured, "o-", color=_OURS)
        speed.plot(list(ran), np.multiply(measured, slower), ":", color="black")
        memory.plot(list(ran), [f["memory_mib"] for f in ran.values()], "o-", color=_OURS)
        memory.plot(list(ran), [f["roofline_mib"] for f in ran.values()], ":", color="black")
        for panel, bar, unit in zip(
            (speed, memory), report["results"][axis]["bars"], ("tokens/s", "MiB"), strict=True
        ):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", base=2)
            panel.yaxis.set_major_formatter("{x:,.0f}")
            panel.set_title(bar["verdict"], fontsize=8)
            if panel in panels[:, 0]:
                panel.set_ylabel(unit)
            panel.spines[["top", "right"]].set_visible(False)
        memory.set_xticks(list(ran), [f"{size:,}" for size in ran], minor=False)
        memory.set_xlabel(f"{axis}: {name}")
    machine = f"{report['device']}, {report['cores']} cores"
    base = ", ".join(f"{name} = {size:,}" for name, size in report["base"].items())
    canvas.suptitle(
        f"The trainer's step on {machine}; dotted: roofline; what does not grow: {base}\n"
        f"above each panel: the roofline's growth in time or memory over the measured one (bar: at "
        f"least {1 / report['factor']:.2f})",
        fontsize=9,
    )
    _save(canvas, path)
