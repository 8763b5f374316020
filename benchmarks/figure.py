"""The figure of a `benchmarks.train_step` run: tokens per second of each contender."""

import importlib.util
from pathlib import Path
from typing import Any

from emojax import files

_OURS, _OTHERS = "#1b6ca8", "#b9c0c7"


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes an SVG with one panel for each shape and kind of activations.

    Args:
      report: what the benchmark measured, with the machine.
      path: of the figure; nothing is written where there is no matplotlib (extra `bench`).
    """
    if importlib.util.find_spec("matplotlib") is None:
        print("no figure: it needs matplotlib (pip install 'emojax[bench]')")
        return
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "emojax", "font.size": 9})
    from matplotlib import pyplot

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
    with files.atomic(path) as partial:
        canvas.savefig(partial, format="svg", metadata={"Date": None})
    print(f"written to {path}")
