"""Timing contenders side by side: taking turns, waiting for the device."""

import dataclasses
import functools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from emojax_kernels.shapes import SPEED, Shape

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
# On a GPU a sample is the mean of this many calls in a row, waited for once.
_CALLS_ON_GPU = 10


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
      prepare: makes what a turn needs, anew, and returns the call to time.
      wait: blocks until what a call returned is there.
      peak_mib: after a turn, the peak of its memory as its framework knows it; None where it does
        not (PyTorch on a CPU).
    """

    prepare: Callable[[], Callable[[], Any]]
    wait: Callable[[Any], Any]
    peak_mib: Callable[[], float] | None = None


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
    """What each contender took.

    Args:
      contenders: by name; a text in place of one says why it cannot run here.
      repeats: samples of each, at least.

    Returns:
      By name: `median_ms`, `least_ms` and `memory_mib` (`Contender.peak_mib`), or `absent` with the
      reason.
    """
    calls = 1 if jax.default_backend() == "cpu" else _CALLS_ON_GPU
    results: dict[str, dict[str, Any]] = {}
    taken: dict[str, list[float]] = {}
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
                call = contender.prepare()
                out = call()
                contender.wait(out)
                for _ in range(math.ceil(repeats / _TURNS)):
                    started = time.perf_counter()
                    for _ in range(calls):
                        out = call()
                    contender.wait(out)
                    taken[name].append(1e3 * (time.perf_counter() - started) / calls)
            except Exception as error:
                del taken[name]
                results[name] = {"absent": f"failed: {type(error).__name__}: {error}"[:200]}
                continue
            if turn == _TURNS - 1:
                median, least = float(np.median(taken[name])), min(taken[name])
                memory = contender.peak_mib() if contender.peak_mib is not None else None
                results[name] = {
                    "median_ms": round(median, 4),
                    "least_ms": round(least, 4),
                    "memory_mib": None if memory is None else round(memory),
                }
            del call, out
    return {name: results[name] for name in contenders}


def ratio(figures: Mapping[str, dict[str, Any]], of: str, to: str) -> float | None:
    """How many times as fast as contender `to` contender `of` is; None where one did not run."""
    if not all("median_ms" in figures.get(name, {}) for name in (of, to)):
        return None
    return figures[to]["median_ms"] / figures[of]["median_ms"]


def rows(figures: Mapping[str, dict[str, Any]], tokens: int, base: str) -> Iterator[str]:
    """A line of the printed table for each contender."""
    for name, figure in figures.items():
        if "absent" in figure:
            yield f"    {name:32s}{figure['absent']}"
            continue
        memory = "" if figure["memory_mib"] is None else f"{figure['memory_mib']:9,d} MiB"
        yield (
            f"    {name:32s}{figure['median_ms']:10.2f} ms"
            f"{ratio(figures, name, base) or math.nan:8.2f} x"
            f"{1e3 * tokens / figure['median_ms']:12,.0f} tokens/s{memory}"
        )


def bar(text: str, measured: float | None, least: float, here: bool) -> dict[str, Any]:
    """Prints one of the bars that were set before any measurement, and what became of it."""
    if not here or measured is None:
        verdict = "not run here"
    else:
        verdict = f"{measured:.2f}: " + ("met" if measured >= least else "MISSED")
    print(f"  bar: {text}: {verdict}")
    return {"bar": text, "least": least, "measured": measured if here else None, "verdict": verdict}


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
        "machine": platform.machine(),
        "cores": os.cpu_count(),
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
