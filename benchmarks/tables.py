"""Writes the tables of `kernels/README.md` from the JSON that the benchmarks left.

    python -m benchmarks.tables

What stands there between its two marks is never edited by hand. A platform without JSON is named as
not run.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import timing
from emojax import errors, files

README = Path("kernels/README.md")
RESULTS = Path("benchmarks/results")
BEGIN, END = "<!-- python -m benchmarks.tables -->", "<!-- end of the tables -->"
PLATFORMS = {"cpu": "CPU", "gpu": "GPU", "tpu": "TPU"}


def read(name: str, platform: str) -> dict[str, Any] | None:
    """A benchmark's JSON, None where it was not run on that platform."""
    path = RESULTS / f"{name}-{platform}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def milliseconds(figure: float) -> str:
    """Three digits, or all before the point."""
    return f"{figure:,.0f} ms" if figure >= 100 else f"{figure:.3g} ms"


def cell(figure: dict[str, Any], dense: dict[str, Any]) -> str:
    """Milliseconds, and how many times as fast as dense."""
    if "failed" in figure:
        return _failed(figure)
    if "absent" in figure:
        return "not here: " + figure["absent"].partition(":")[0]
    if "median_ms" not in dense:
        return milliseconds(figure["median_ms"])
    faster = dense["median_ms"] / figure["median_ms"]
    return f"{milliseconds(figure['median_ms'])}, {faster:.2f} x"


def _failed(figure: dict[str, Any]) -> str:
    return "**FAILED**: " + figure["failed"].replace("|", "\\|")


def busy(load: float, cores: int) -> str:
    """A note where more ran than the benchmark, which keeps each core busy itself."""
    if load <= cores + 1:
        return ""
    return " **The machine was busy with other work: provisional.**"


def machine(report: dict[str, Any]) -> str:
    """Where the figures come from."""
    loads = [result["load_average"] for result in report["results"].values()]
    used = {name: version for name, version in report["versions"].items() if version}
    note = busy(max(loads), report["cores"])
    return (
        f"{report['device']}, {report['machine']}, {report['cores']} cores, Python "
        f"{report['python']}, {', '.join(f'{n} {v}' for n, v in used.items())}; median of "
        f"{report['repeats']}, {timing.clock(report['platform'])}; load average {min(loads):.1f} "
        f"to {max(loads):.1f}.{note}"
    )


def operations(report: dict[str, Any]) -> Iterator[str]:
    """The table of `benchmarks.kernels`."""
    yield "`python -m benchmarks.kernels`: " + machine(report)
    for name, result in report["results"].items():
        figures = {op: found for op, found in result.items() if _is_table(found)}
        names = list(dict.fromkeys(who for found in figures.values() for who in found))
        yield ""
        yield f"| {name}: busiest latent {result['activations']['busiest']:.0%} of tokens | " + (
            " | ".join(names) + " |"
        )
        yield "|---" * (len(names) + 1) + "|"
        for op, found in figures.items():
            cells = [cell(found[who], found["dense"]) if who in found else "–" for who in names]
            yield f"| {op} | " + " | ".join(cells) + " |"
    yield ""
    yield from bars(report)


def _is_table(found: Any) -> bool:
    return isinstance(found, dict) and "dense" in found


def steps(report: dict[str, Any]) -> Iterator[str]:
    """The table of `benchmarks.train_step`."""
    yield "`python -m benchmarks.train_step`: " + machine(report)
    names = list(dict.fromkeys(who for r in report["results"].values() for who in r["steps"]))
    yield ""
    yield "| whole step | " + " | ".join(report["results"]) + " |"
    yield "|---" * (len(report["results"]) + 1) + "|"
    for who in names:
        cells = []
        for result in report["results"].values():
            figure = result["steps"].get(who, {"absent": "no"})
            memory = figure.get("memory_mib")
            text = cell(figure, result["steps"]["dense"])
            cells.append(text + (f", {memory:,} MiB" if memory else ""))
        yield f"| {who} | " + " | ".join(cells) + " |"
    floors = [result["roofline"] for result in report["results"].values()]
    cells = [
        _failed(f)
        if "failed" in f
        else f"{milliseconds(f['ms'])} ({f['tflops']} TFLOP/s, {f['gb_per_s']} GB/s)"
        for f in floors
    ]
    yield "| roofline | " + " | ".join(cells) + " |"
    yield ""
    yield from bars(report)


def bars(report: dict[str, Any]) -> Iterator[str]:
    """The bars, each with its verdict."""
    for bar in report["bars"]:
        yield f"* {bar['bar']}: **{bar['verdict']}**"


def fast_modes(report: dict[str, Any]) -> Iterator[str]:
    """The table of `benchmarks.fast_modes`."""
    yield (
        f"`python -m benchmarks.fast_modes`: {report['steps']} steps, {report['seeds']} seeds; "
        "variance unexplained on held-out captured activations."
    )
    yield ""
    yield "| | mean ± deviation between seeds | from exact | in deviations | widest on the curve |"
    yield "|---|---|---|---|---|"
    for option, found in report["results"].items():
        yield (
            f"| {option} | {found['mean']:.5f} ± {found['deviation_between_seeds']:.5f} | "
            f"{found['from_exact']:+.5f} | {found['from_exact_in_deviations']:+.2f} | "
            f"{found['widest_on_the_curve']:.5f} |"
        )


def sections(parts: Mapping[str, Callable[[dict[str, Any]], Iterator[str]]]) -> str:
    """What each benchmark left, by its name, for each platform; or that it was not run there."""
    lines: list[str] = []
    for platform in ("cpu", "gpu"):
        for name, table in parts.items():
            report = read(name, platform)
            if report is None:
                title = PLATFORMS[platform]
                lines += ["", f"`python -m benchmarks.{name}` was **not run** on a {title}."]
            else:
                lines += ["", *table(report)]
    return "\n".join(lines) + "\n"


def tables() -> str:
    """All that goes between the marks."""
    lines: list[str] = []
    parts = {"kernels": operations, "train_step": steps, "fast_modes": fast_modes}
    for platform, title in PLATFORMS.items():
        lines += ["", f"### {title}", ""]
        if not any(read(name, platform) for name in parts):
            lines += [f"No benchmark was run on a {title}."]
            continue
        for name, table in parts.items():
            report = read(name, platform)
            if report is None:
                lines += [f"`benchmarks.{name}` was **not run** on a {title}.", ""]
                continue
            lines += [*table(report), ""]
            if name == "train_step":
                figure = f"../{RESULTS}/train_step-{platform}.svg"
                lines += [f"![Tokens per second of a whole step on a {title}]({figure})", ""]
    return "\n".join(lines)


def write(document: Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between a document's marks."""
    files.replace_between(document, begin, end, text)
    print(f"written to {document}")


def main(argv: Sequence[str]) -> None:
    """Replaces what stands between the marks."""
    del argv
    write(README, BEGIN, END, tables())


if __name__ == "__main__":
    errors.run(main)
