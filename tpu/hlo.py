"""Collectives of a compiled program, read from its text: kind, how often, how many bytes."""

import dataclasses
import functools
import re
from collections import Counter

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
_BRANCHES = ("true_computation", "false_computation", "branch_computations")
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


def collectives(text: str, unknown_trips: int, *, least: bool = False) -> dict[str, Collective]:
    """Kind to what a step does of it; loops are multiplied out.

    Args:
      text: `compiled.as_text()`.
      unknown_trips: how often a loop runs whose number of rounds is data.
      least: count that branch of a condition which sends the least, and not all of them.
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

    @functools.cache
    def inside(computation: str) -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for line in computations.get(computation, []):
            result, _, operation = line.partition(" = ")
            # A collective that runs beside products is written down where it starts, in each
            # fusion that it runs beside, and where it ends: only the last one counts.
            if "async-collective-start" in result:
                continue
            for kind in _KINDS:
                # The asynchronous pair is counted where it ends, whose shape is the result's.
                if re.search(rf" {kind}(?:-done)?\(", operation):
                    found[kind, "count"] += 1
                    found[kind, "bytes"] += _size(re.split(rf" {kind}", operation)[0])
            known = _TRIPS.search(operation)
            rounds = int(known.group(1)) if known else unknown_trips
            branches = []
            for how, several, one in _CALLED.findall(operation):
                for called in (several or one).replace("%", "").split(", "):
                    if called.startswith("async_collective_fusion"):
                        continue
                    if how in _BRANCHES:
                        branches.append(inside(called))
                        continue
                    for key, number in inside(called).items():
                        found[key] += number * (rounds if how in ("body", "condition") else 1)
            for branch in [min(branches, key=_sent)] if least and branches else branches:
                found += branch
        return found

    found = inside(entry)
    kinds = sorted({kind for kind, _ in found})
    return {kind: Collective(found[kind, "count"], found[kind, "bytes"]) for kind in kinds}


def _sent(found: Counter[tuple[str, str]]) -> int:
    """Bytes of all kinds."""
    return sum(number for (_, what), number in found.items() if what == "bytes")


def _size(shapes: str) -> int:
    """Bytes of all arrays in a printed shape."""
    total = 0
    for dtype, sides in _SHAPE.findall(shapes):
        count = 1
        for side in filter(None, sides.split(",")):
            count *= int(side)
        total += count * _BYTES.get(dtype, 4)
    return total
