"""Writes the language model's tables of the README from the JSON that its two benchmarks left.

    python -m benchmarks.lm_tables

What stands there between its two marks is never edited by hand.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from emojax import errors

README = Path("README.md")
BEGIN, END = "<!-- python -m benchmarks.lm_tables -->", "<!-- end of the tables -->"


def figures(report: dict[str, Any]) -> Iterator[str]:
    """A row for each contender of each model and load."""
    yield "| | seconds | tokens/s | emojax is | compiling | peak memory |"
    yield "|---|---|---|---|---|---|"
    for title, result in report["results"].items():
        ours = result["figures"]["emojax"]["median_seconds"]
        for name, figure in result["figures"].items():
            ratio = figure["median_seconds"] / ours
            peak = f"{figure['peak_gib']:.2f} GiB" if "peak_gib" in figure else "–"
            share = figure.get("share_of_matmul_rate")
            of_rate = "" if share is None else f" ({share:.0%} of a large matmul's rate)"
            yield (
                f"| {title}: {name} | {figure['median_seconds']:.2f} | "
                f"{figure['tokens_per_second']:,}{of_rate} | {ratio:.2f} x | "
                f"{figure['compile_seconds']:.1f} s | {peak} |"
            )


def bars(report: dict[str, Any]) -> Iterator[str]:
    """The bars, each with its verdict."""
    for title, result in report["results"].items():
        for bar in result["bars"]:
            verdict = "met" if bar["met"] else "missed"
            yield f"* {title}: {bar['asked']} x {bar['beside']}: **{bar['ratio']:.2f}, {verdict}**"
    yield from share_bars(report)


def share_bars(report: dict[str, Any]) -> Iterator[str]:
    """The bars for a share of the card's matmul rate, one line for all that say nothing here."""
    found = {title: r["share_bar"] for title, r in report["results"].items() if "share_bar" in r}
    for title, bar in found.items():
        if bar["met"] is not None:
            verdict = f"{bar['share']:.1%}, {'met' if bar['met'] else 'missed'}"
            yield f"* {title}: {bar['asked']:.0%} of the card's matmul rate: **{verdict}**"
    if found and all(bar["met"] is None for bar in found.values()):
        asked = next(iter(found.values()))["asked"]
        yield f"* {asked:.0%} of a GPU's matmul rate for a model of 8B: **not run**"


def machine(report: dict[str, Any]) -> str:
    """Where the figures come from."""
    note = tables.busy(report["load_average"], report["cores"])
    return (
        f"{report['device']}, {report['machine']}, {report['cores']} cores, Python "
        f"{report['python']}, jax {report['versions']['jax']}, torch {report['torch']}, "
        f"transformers {report['transformers']}; {report['dtype']}, median of {report['turns']}; "
        f"load average {report['load_average']:.1f}.{note}"
    )


def section(name: str, report: dict[str, Any]) -> Iterator[str]:
    """All of one benchmark."""
    yield f"`python -m benchmarks.{name}`: {machine(report)}"
    yield ""
    yield from figures(report)
    yield ""
    yield from bars(report)


def text() -> str:
    """All that goes between the marks."""
    names = ("capture", "generate")
    return tables.sections({name: functools.partial(section, name) for name in names})


def main(argv: Sequence[str]) -> None:
    """Replaces what stands between the marks."""
    del argv
    tables.write(README, BEGIN, END, text())


if __name__ == "__main__":
    errors.run(main)
