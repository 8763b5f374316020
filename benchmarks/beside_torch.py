"""What `benchmarks.capture` and `benchmarks.generate` share: the other side, turns, memory, bars.

The other side is `transformers` on PyTorch, from the very files that we read, in float32 with as
many threads as there are cores; nobody else's measurements are quoted.
"""

import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from benchmarks import timing
from emojax.errors import UserError
from emojax.lm import sources
from emojax.lm.model import LanguageModel

MODELS = flags.DEFINE_list(
    "models", ["gemma-3-270m", "smollm2-135m-instruct"], "As emojax.lm.sources.load takes them."
)
TURNS = flags.DEFINE_integer("turns", 7, "Timed calls per contender.", lower_bound=1)
MEMORY = flags.DEFINE_bool("memory", True, "Measure peak memory, a process per contender.")


class Bar(NamedTuple):
    """How many times as fast as `other` our side should be."""

    other: str
    cpu: float
    gpu: float


def reference(directory: Path) -> Any:
    """The PyTorch model of the same weights, in float32.

    Raises:
      UserError: PyTorch is not installed.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise UserError(
            "This benchmark compares with PyTorch; run: pip install -e '.[parity]'."
        ) from None
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return model.to("cuda") if jax.default_backend() == "gpu" else model


def in_turns(makers: Mapping[str, Callable[[], Callable]]) -> tuple[dict, dict[str, Any]]:
    """Seconds of what each maker makes, taking turns, and what it returns.

    The first call of each, which compiles, is not among those that are timed; what it takes longer
    is its time to compile.
    """
    calls = {name: make() for name, make in makers.items()}
    first, found, taken = {}, {}, {name: [] for name in calls}
    for name, call in calls.items():
        started = time.perf_counter()
        found[name] = call()
        first[name] = time.perf_counter() - started
    for _ in range(TURNS.value):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - started)
    figures = {
        name: {
            "median_seconds": round(float(np.median(taken[name])), 4),
            "least_seconds": round(min(taken[name]), 4),
            "compile_seconds": round(max(0.0, first[name] - float(np.median(taken[name]))), 2),
        }
        for name in calls
    }
    return figures, found


def peak_gib(makers: Callable[[str], dict[str, Callable]], model: str, name: str) -> float:
    """Peak resident memory of a process that does one contender's work once, its model included.

    `makers(model)[name]()` loads the model and returns the work. Linux only.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_once, (makers, model, name))


def _once(makers: Callable[[str], dict[str, Callable]], model: str, name: str) -> float:
    makers(model)[name]()()
    # `getrusage` would count what the parent held when it started this process.
    status = Path("/proc/self/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) / 2**20, 2)


def load(source: str) -> LanguageModel:
    """The language model, in float32."""
    return sources.load(source)


def judge(
    title: str, figures: dict[str, dict], ours: str, bars: tuple[Bar, ...], tokens: int
) -> list[dict]:
    """Prints one table with its bars; returns what became of these."""
    print(f"{title} (load average {os.getloadavg()[0]:.1f})")
    for name, figure in figures.items():
        figure["tokens_per_second"] = round(tokens / figure["median_seconds"])
        ratio = figure["median_seconds"] / figures[ours]["median_seconds"]
        memory = f"{figure['peak_gib']:6.2f} GiB" if "peak_gib" in figure else ""
        print(
            f"  {name:32s}{figure['median_seconds']:9.3f} s{figure['tokens_per_second']:10,d} "
            f"tokens/s   emojax is {ratio:5.2f} x{figure['compile_seconds']:7.1f} s to compile"
            f"  {memory}"
        )
    on_gpu = jax.default_backend() == "gpu"
    verdicts = []
    for bar in bars:
        asked = bar.gpu if on_gpu else bar.cpu
        ratio = figures[bar.other]["median_seconds"] / figures[ours]["median_seconds"]
        met = ratio >= asked
        print(f"  bar: {asked} x {bar.other}: {ratio:.2f}, {'met' if met else 'MISSED'}")
        if not on_gpu:
            print(f"  bar: {bar.gpu} x {bar.other} on a GPU: not run here")
        verdicts.append({"beside": bar.other, "asked": asked, "ratio": round(ratio, 3), "met": met})
    return verdicts


def write(name: str, results: dict) -> None:
    """The JSON of a benchmark, with the versions of both sides."""
    import torch
    import transformers

    timing.write(
        name,
        {
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "torch_threads": torch.get_num_threads(),
            "transformers": transformers.__version__,
            "load_average": round(os.getloadavg()[0], 2),
            "turns": TURNS.value,
            "dtype": "float32",
            "results": results,
        },
    )
