"""Collectives of a compiled program, read from its text: kind, how often, how many bytes."""

import dataclasses
import re

_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "recv-done",  # what a collective between slices has become
)
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b([a-z]+[0-9]+|pred)\[([0-9,]*)\]")
_CALLED = re.compile(
    r"\b(to_apply|calls|body|condition|\w*computations?)=(?:\{([^}]*)\}|(%[\w.\-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind.

    Attributes:
      count: how often a device takes part in a step.
      bytes: size of what one device holds of their results, summed.
    """

    count: int
    bytes: int


def collectives(text: str, unknown_trips: int) -> dict[str, Collective]:
    """Kind to what a step does of it; loops are multiplied out, branches taken to be taken.

    Args:
      text: `compiled.as_text()`.
      unknown_trips: how often a loop runs whose number of rounds is data.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name = header.group(1)
            computations[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("  ") and name:
            computations[name].append(line)

    found: dict[str, list[int]] = {}

    def visit(computation: str, times: int) -> None:
        for line in computations.get(computation, []):
            result, _, operation = line.partition(" = ")
            # A collective that runs beside products is written down where it starts, in each
            # fusion that it runs beside, and where it ends: only the last one counts.
            if "async-collective-start" in result:
                continue
            for kind in _KINDS:
                # The asynchronous pair is counted where it ends, whose shape is the result's.
                if re.search(rf" {kind}(?:-done)?\(", operation):
                    shape = re.split(rf" {kind}", operation)[0]
                    total = found.setdefault(kind, [0, 0])
                    total[0] += times
                    total[1] += times * _size(shape)
            known = _TRIPS.search(operation)
            rounds = int(known.group(1)) if known else unknown_trips
            for how, several, one in _CALLED.findall(operation):
                trips = rounds if how in ("body", "condition") else 1
                for called in (several or one).replace("%", "").split(", "):
                    if not called.startswith("async_collective_fusion"):
                        visit(called, times * trips)

    visit(entry, 1)
    return {kind: Collective(*total) for kind, total in sorted(found.items())}


def _size(shapes: str) -> int:
    """Bytes of all arrays in a printed shape."""
    total = 0
    for dtype, sides in _SHAPE.findall(shapes):
        count = 1
        for side in filter(None, sides.split(",")):
            count *= int(side)
        total += count * _BYTES.get(dtype, 4)
    return total
