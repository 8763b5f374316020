"""Timing contenders side by side: taking turns, waiting for the device."""

import dataclasses
import functools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from emojax_kernels.shapes import SPEED, Shape

from benchmarks import processor
from emojax import files
from emojax.errors import UserError

# PyTorch's peers share the GPU with JAX: memory is taken when it is needed.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

SHAPES = flags.DEFINE_list(
    "shapes", None, f"Some of {', '.join(SPEED)} (default: cpu,gemma; on a GPU S,L,G,gemma)."
)
REPEATS = flags.DEFINE_integer("repeats", 20, "Samples per contender.", lower_bound=1)
IMPLEMENTATIONS = flags.DEFINE_list(
    "implementations", None, "Ours (default: xla; on a GPU xla,triton)."
)
OUTPUT = flags.DEFINE_string("output", "benchmarks/results", "Folder of JSON and figure.")

PACKAGES = ("jax", "jaxlib", "optax", "torch", "triton", "jax-triton", "eai-sparsify", "sae-lens")
# Contenders take turns this many times, so that whatever else the machine does falls on all alike.
_TURNS = 5
# Off the CPU a sample is the mean of this many calls, so that the host is ahead of the device.
_CALLS_IN_A_ROW = 10


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
      prepare: makes what a turn needs, anew, and returns the call to time.
      wait: blocks until what a call returned is there.
      peak_mib: after a turn, the peak of its memory as its framework knows it; None where it does
        not (PyTorch on a CPU).
      ours: whether it is for this project to mend if it fails; a peer is not.
    """

    prepare: Callable[[], Callable[[], Any]]
    wait: Callable[[Any], Any]
    peak_mib: Callable[[], float] | None = None
    ours: bool = True


def jitted(
    function: Callable, *arguments: Any, start: Callable[[], Any] | None = None
) -> Contender:
    """A JAX function of `arguments`, or with `start` a step `(state, *arguments)` to a new state.

    A state is made by `start` for each turn and donated to each step. Memory is the compiler's
    count: arguments, results that alias none, temporaries.
    """

    @functools.cache
    def compiled() -> Any:
        if start is None:
            return jax.jit(function).lower(*arguments).compile()
        state = jax.eval_shape(start)
        return jax.jit(function, donate_argnums=0).lower(state, *arguments).compile()

    def prepare() -> Callable[[], Any]:
        run = compiled()
        if start is None:
            return lambda: run(*arguments)
        held = [jax.tree.map(jnp.copy, start())]

        def call() -> Any:
            held[0] = run(held[0], *arguments)
            return held[0]

        return call

    def peak() -> float:
        found = compiled().memory_analysis()
        size = found.argument_size_in_bytes + found.output_size_in_bytes
        return (size - found.alias_size_in_bytes + found.temp_size_in_bytes) / 2**20

    return Contender(prepare, jax.block_until_ready, peak)


def timed(contenders: Mapping[str, Contender | str], repeats: int) -> dict[str, dict[str, Any]]:
    """What each contender took; see `clock` for the kind of time.

    Args:
      contenders: by name; a text in place of one says why it cannot run here.
      repeats: samples of each, at least.

    Returns:
      By name: `median_ms`, `least_ms`, `queued_ms` (the host's part of the median: until the calls
      were queued) and `memory_mib` (`Contender.peak_mib`); or `absent` with the reason why it was
      not tried; or `failed` with what it raised, and `ours`.
    """
    results: dict[str, dict[str, Any]] = {}
    taken: dict[str, list[tuple[float, float]]] = {}
    for name, contender in contenders.items():
        if isinstance(contender, str):
            results[name] = {"absent": contender}
        else:
            taken[name] = []
    for turn in range(_TURNS):
        for name in tuple(taken):
            contender = contenders[name]
            assert isinstance(contender, Contender)
            # One that fails (out of memory, an operation its device lacks) costs its own row only.
            try:
                taken[name] += _turn(contender, math.ceil(repeats / _TURNS))
                if turn == _TURNS - 1:
                    results[name] = _summary(contender, taken[name])
            except Exception as error:
                del taken[name]
                text = " ".join(f"{type(error).__name__}: {error}".split())
                results[name] = {"failed": text[:200], "ours": contender.ours}
    return {name: results[name] for name in contenders}


def _turn(contender: Contender, samples: int) -> list[tuple[float, float]]:
    """Milliseconds of a call, and of queueing it, several times."""
    calls = _calls(jax.default_backend())
    call = contender.prepare()
    contender.wait(call())
    found = []
    for _ in range(samples):
        started = time.perf_counter()
        out = call()
        for _ in range(calls - 1):
            out = call()
        queued = time.perf_counter()
        contender.wait(out)
        ended = time.perf_counter()
        found.append((1e3 * (ended - started) / calls, 1e3 * (queued - started) / calls))
    return found


def _summary(contender: Contender, taken: list[tuple[float, float]]) -> dict[str, Any]:
    whole, queued = np.array(taken).T
    memory = contender.peak_mib() if contender.peak_mib is not None else None
    return {
        "median_ms": round(float(np.median(whole)), 4),
        "least_ms": round(float(whole.min()), 4),
        "queued_ms": round(float(np.median(queued)), 4),
        "memory_mib": None if memory is None else round(memory),
    }


def _calls(platform: str) -> int:
    return 1 if platform == "cpu" else _CALLS_IN_A_ROW


def clock(platform: str) -> str:
    """What kind of time was measured on a platform."""
    if platform == "cpu":
        return "wall clock of a call until its result is there"
    return (
        f"wall clock of {_calls(platform)} calls queued in a row and waited for once, per call: "
        "the device's own time wherever queueing them (`queued_ms` in the JSON) took less"
    )


def ratio(figures: Mapping[str, dict[str, Any]], of: str, to: str) -> float | str:
    """How many times as fast as contender `to` contender `of` is, or why nobody knows."""
    for name in (of, to):
        figure = figures.get(name, {"absent": "not asked for"})
        if "failed" in figure:
            return f"FAILED: {name}: {figure['failed']}"
        if "absent" in figure:
            return f"not run here: {name}: {figure['absent']}"
    return figures[to]["median_ms"] / figures[of]["median_ms"]


def least(ratios: Iterable[float | str]) -> float | str:
    """The least of several ratios, or why one of them is not known."""
    ratios = list(ratios)
    unknown = [ratio for ratio in ratios if isinstance(ratio, str)]
    return unknown[0] if unknown else min(ratio for ratio in ratios if not isinstance(ratio, str))


def rows(figures: Mapping[str, dict[str, Any]], tokens: int, base: str) -> Iterator[str]:
    """A line of the printed table for each contender."""
    for name, figure in figures.items():
        if "failed" in figure:
            yield f"    {name:32s}FAILED: {figure['failed']}"
            continue
        if "absent" in figure:
            yield f"    {name:32s}{figure['absent']}"
            continue
        faster = ratio(figures, name, base)
        memory = "" if figure["memory_mib"] is None else f"{figure['memory_mib']:9,d} MiB"
        yield (
            f"    {name:32s}{figure['median_ms']:10.2f} ms"
            f"{math.nan if isinstance(faster, str) else faster:8.2f} x"
            f"{1e3 * tokens / figure['median_ms']:12,.0f} tokens/s{memory}"
        )


def bar(text: str, measured: float | str, least: float, here: bool) -> dict[str, Any]:
    """Prints one of the bars that were set before any measurement, and what became of it.

    Args:
      text: what is asked.
      measured: the figure, or why there is none.
      least: what it must reach.
      here: whether the bar was set for this machine.
    """
    if not here:
        verdict = "not run here"
    elif isinstance(measured, str):
        verdict = measured
    else:
        verdict = f"{measured:.2f}: " + ("met" if measured >= least else "MISSED")
    print(f"  bar: {text}: {verdict}")
    known = here and not isinstance(measured, str)
    return {
        "bar": text,
        "least": least,
        "measured": measured if known else None,
        "verdict": verdict,
    }


def failures(results: Mapping[str, Any], *path: str) -> Iterator[str]:
    """Where in nested results something of ours failed."""
    if "failed" in results:
        if results["ours"]:
            yield ", ".join(path)
        return
    for name, part in results.items():
        if isinstance(part, Mapping):
            yield from failures(part, *path, name)


def end(results: Mapping[str, Any]) -> None:
    """Ends the program with status 1 if anything of ours failed, once all is written."""
    failed = list(failures(results))
    if failed:
        sys.exit(
            f"error: {len(failed)} of our own failed ({'; '.join(failed)}); the reasons stand in "
            "the table and in the JSON, where everything else was written too."
        )


def shapes() -> dict[str, Shape]:
    """The shapes asked for.

    Raises:
      UserError: a name is not in `SPEED`.
    """
    on_gpu = jax.default_backend() == "gpu"
    names: Sequence[str] = SHAPES.value or (
        ("S", "L", "G", "gemma") if on_gpu else ("cpu", "gemma")
    )
    unknown = [name for name in names if name not in SPEED]
    if unknown:
        raise UserError(f"--shapes: {', '.join(unknown)} unknown; use some of {', '.join(SPEED)}.")
    return {name: SPEED[name] for name in names}


def implementations() -> list[str]:
    """Our implementations that take part."""
    on_gpu = jax.default_backend() == "gpu"
    return IMPLEMENTATIONS.value or (["xla", "triton"] if on_gpu else ["xla"])


def work_dtype() -> str:
    """Of the matrix products: what the platform is used with."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def on_h100() -> bool:
    """Whether the bars that were set for an H100 apply."""
    return "H100" in jax.devices()[0].device_kind


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "machine": processor.name(),
        "cores": os.cpu_count(),
        "clock": clock(jax.default_backend()),
        "python": platform.python_version(),
        "versions": versions,
    }


def output(name: str) -> Path:
    """Where a result of that name goes."""
    return Path(OUTPUT.value) / name


def write(name: str, report: dict[str, Any]) -> None:
    """The JSON of one benchmark, whole or not at all."""
    path = output(f"{name}-{jax.default_backend()}.json")
    with files.atomic(path) as partial:
        partial.write_text(json.dumps(machine() | report, indent=1) + "\n")
    print(f"written to {path}")
