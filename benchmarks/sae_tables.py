"""Writes the trainer's tables of the README from the JSON that its two benchmarks left.

    python -m benchmarks.sae_tables

What stands there between its two marks is never edited by hand.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import lm_tables, scaling, tables
from emojax import errors

README = Path("README.md")
BEGIN, END = "<!-- python -m benchmarks.sae_tables -->", "<!-- end of the tables -->"


def grown(report: dict[str, Any]) -> Iterator[str]:
    """The table of `benchmarks.scaling`: a column for each axis."""
    yield f"{_command('scaling', report)}: {tables.machine(report)}"
    base = ", ".join(f"{axis} = {size:,}" for axis, size in report["base"].items())
    yield f"What does not grow stays at {base}."
    yield ""
    columns = [_column(axis, result) for axis, result in report["results"].items()]
    yield from ("| " + " | ".join(row) + " |" for row in _table(columns))
    title = tables.PLATFORMS[report["platform"]]
    figure = f"{tables.RESULTS}/scaling-{report['platform']}.svg"
    yield ""
    yield f"![Tokens/s and memory as each size grows, on a {title}]({figure})"


def _command(name: str, report: dict[str, Any]) -> str:
    path = f"{tables.RESULTS}/{name}-{report['platform']}.json"
    return f"`python -m benchmarks.{name}` ([JSON]({path}))"


def _table(columns: list[list[str]]) -> Iterator[list[str]]:
    titles = ["", "time grows", "memory grows", "tokens/s", "share of the roofline's speed"]
    for number, row in enumerate(zip(titles, *columns, strict=True)):
        yield list(row)
        if number == 0:
            yield ["---"] * len(row)


def _column(axis: str, result: dict[str, Any]) -> list[str]:
    """An axis: what it is, how time and memory grew, tokens/s and the roofline at both ends."""
    figures = result["figures"]
    sizes = list(figures)
    cells = [f"{axis}: {scaling.AXES[axis]}, {int(sizes[0]):,} to {int(sizes[-1]):,}"]
    for (of, to), bar in zip(scaling.COMPARED.values(), result["bars"], strict=True):
        grew, floor = scaling.growth(figures, of), scaling.growth(figures, to)
        verdict = bar["verdict"].partition(": ")[2].replace("MISSED", "**missed**")
        cells.append(
            f"**{bar['verdict']}**"
            if grew is None
            else f"{grew:.2f} x, roofline {floor:.2f} x: {verdict}"
        )
    ends = figures[sizes[0]], figures[sizes[-1]]
    for shown in (
        lambda f: f"{f['tokens_per_second']:,}",
        lambda f: f"{f['roofline_ms'] / f['median_ms']:.0%}",
    ):
        cells.append(" to ".join(shown(f) if "median_ms" in f else "failed" for f in ends))
    return cells


def beside(report: dict[str, Any]) -> Iterator[str]:
    """The table of `benchmarks.sae_training`, a row for each contender, and its bars."""
    version = report["versions"]["sae-lens"]
    command = _command("sae_training", report)
    yield f"{command}: SAELens {version}; {lm_tables.machine(report)}"
    for model, result in report["results"].items():
        yield ""
        yield (
            f"| {model}, {result['latents']:,} latents, {result['tokens']:,} tokens in batches of "
            f"{result['batch_tokens']:,} | seconds | tokens/s | captured tokens | emojax is |"
        )
        yield "|---" * 5 + "|"
        ours = result["figures"]["emojax"]["median_seconds"]
        for name, figure in result["figures"].items():
            how = ""
            if name == "emojax":
                how = ", streamed" if result.get("streamed") else ", through a store on the disk"
            yield (
                f"| {name}{how} | {figure['median_seconds']:.1f} | "
                f"{figure['tokens_per_second']:,} | {figure['captured_tokens']:,} | "
                f"{figure['median_seconds'] / ours:.2f} x |"
            )
    yield ""
    yield from lm_tables.bars(report)
    for model, result in report["results"].items():
        yield f"* {model}: {waits(result['waiting'])}"


def waits(found: dict[str, Any]) -> str:
    """How long a step waits for input, and what became of the bar."""
    words = {
        "standing": "stands still for {:.2%} of its time",
        "share": "would be {:.2%} shorter with a batch that is there already",
    }
    said = [
        f"{phrase.format(found[name])}: **{'met' if found[name] < found['bar'] else 'missed'}**"
        for name, phrase in words.items()
        if name in found
    ]
    return f"the step waits for less than {found['bar']:.0%}: its loop {'; it '.join(said)}"


def text() -> str:
    """All that goes between the marks."""
    return tables.sections({"scaling": grown, "sae_training": beside})


def main(argv: Sequence[str]) -> None:
    """Replaces what stands between the marks."""
    del argv
    tables.write(README, BEGIN, END, text())


if __name__ == "__main__":
    errors.run(main)
