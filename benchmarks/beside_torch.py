"""What `benchmarks.capture` and `benchmarks.generate` share: the other side, turns, memory, bars.

The other side is `transformers` on PyTorch, from the very files that we read, in the same type and,
on a CPU, with as many threads as there are cores; nobody else's measurements are quoted.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import timing
from emojax.errors import UserError
from emojax.lm import sources
from emojax.lm.config import DecoderConfig
from emojax.lm.model import LanguageModel

MODELS = flags.DEFINE_list(
    "lms", ["gemma-3-270m", "smollm2-135m-instruct"], "As emojax.lm.sources.load takes them."
)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of weights and products.")
TURNS = flags.DEFINE_integer("turns", 5, "Timed calls per contender.", lower_bound=1)
MEMORY = flags.DEFINE_bool("memory", True, "Measure peak memory, a process per contender.")

# Between two calls, so that threads of one side that still look for work are asleep.
_PAUSE = 0.1
# The matrices whose product says what the device can do; on a CPU they would take seconds.
_SQUARE = {"gpu": 8192, "cpu": 2048}


class Bar(NamedTuple):
    """How many times as fast as `other` our side should be."""

    other: str
    cpu: float
    gpu: float


class Subject(NamedTuple):
    """A model as both sides need it; each loads its own weights, and only those."""

    source: str
    directory: Path
    config: DecoderConfig
    dtype: str

    def ours(self) -> LanguageModel:
        """Loaded into JAX."""
        return sources.load(self.source, dtype=jnp.dtype(self.dtype))

    def theirs(self) -> Any:
        """Loaded into PyTorch.

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
        model = AutoModelForCausalLM.from_pretrained(
            self.directory, dtype=getattr(torch, self.dtype)
        )
        return model.eval().to("cuda" if jax.default_backend() == "gpu" else "cpu")


# Name to a function that loads the model and returns the work.
Makers = Mapping[str, Callable[[], Callable[[], Any]]]


def subject(source: str) -> Subject:
    """The model of that name, in the type of the flag `dtype`."""
    lm = sources.load(source, dtype=jnp.dtype(DTYPE.value))
    return Subject(source, lm.directory, lm.config, DTYPE.value)


def in_turns(makers: Makers) -> tuple[dict[str, dict], dict[str, Any]]:
    """Seconds of what each maker makes, taking turns, and what it returns.

    The first call of each, which compiles, is not among those that are timed; what it takes longer
    is its time to compile.
    """
    calls = {name: make() for name, make in makers.items()}
    first, found, taken = {}, {}, {name: [] for name in calls}
    for turn in range(1 + TURNS.value):
        for name, call in calls.items():
            time.sleep(_PAUSE)
            started = time.perf_counter()
            out = call()
            seconds = time.perf_counter() - started
            if turn == 0:
                first[name], found[name] = seconds, out
            else:
                taken[name].append(seconds)
    figures = {
        name: {
            "median_seconds": round(float(np.median(taken[name])), 4),
            "least_seconds": round(min(taken[name]), 4),
            "compile_seconds": round(max(0.0, first[name] - float(np.median(taken[name]))), 2),
        }
        for name in calls
    }
    return figures, found


def peaks(makers: Makers, figures: Mapping[str, dict]) -> None:
    """Adds to each contender's figures the peak memory of a process that does its work once.

    Its model is included: on a CPU all that is resident (Linux only), else what its framework
    allocated on the device.
    """
    if not MEMORY.value:
        return
    for name, make in makers.items():
        # Waits for the process to end by itself: killed, as by a `Pool`, it would leave the lock of
        # its progress bar to Python's resource tracker, which warns of it.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            figures[name]["peak_gib"] = pool.submit(_once, make).result()


def _once(make: Callable[[], Callable[[], Any]]) -> float:
    make()()
    if jax.default_backend() == "cpu":
        # `getrusage` would count what the parent held when it started this process.
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 2**20, 2)
    import torch

    # One of the two, as only one side has done anything here.
    ours = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return round(max(ours, torch.cuda.max_memory_allocated()) / 2**30, 2)


def matmul_rate() -> float:
    """Floating-point operations per second of one large square product, in the flag's type."""
    size = _SQUARE["gpu" if jax.default_backend() == "gpu" else "cpu"]
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(DTYPE.value))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = np.inf
    for _ in range(5):
        time.sleep(_PAUSE)
        started = time.perf_counter()
        out = [product(a, a) for _ in range(4)]
        jax.block_until_ready(out)
        best = min(best, (time.perf_counter() - started) / 4)
    return 2 * size**3 / best


def judge(
    title: str,
    figures: Mapping[str, dict],
    ours: str,
    bars: tuple[Bar, ...],
    tokens: int,
    operations: float | None = None,
) -> list[dict]:
    """Prints one table with its bars; returns what became of these.

    With `operations`, how many a token needs at least, each side's share of `matmul_rate` is told.
    """
    rate = matmul_rate() if operations else None
    print(f"{title} (load average {os.getloadavg()[0]:.1f})")
    for name, figure in figures.items():
        figure["tokens_per_second"] = round(tokens / figure["median_seconds"])
        ratio = figure["median_seconds"] / figures[ours]["median_seconds"]
        text = f"  {name:32s}{figure['median_seconds']:9.3f} s{figure['tokens_per_second']:10,d} "
        text += f"tokens/s   emojax is {ratio:5.2f} x"
        text += f"{figure['compile_seconds']:7.1f} s to compile"
        if "peak_gib" in figure:
            text += f"{figure['peak_gib']:8.2f} GiB"
        if rate is not None:
            share = figure["tokens_per_second"] * operations / rate
            figure["share_of_matmul_rate"] = round(share, 3)
            text += f"   {share:.0%} of the matmul rate"
        print(text)
    on_gpu = jax.default_backend() == "gpu"
    verdicts = []
    for bar in bars:
        asked = bar.gpu if on_gpu else bar.cpu
        ratio = round(figures[bar.other]["median_seconds"] / figures[ours]["median_seconds"], 3)
        met = ratio >= asked
        print(f"  bar: {asked} x {bar.other}: {ratio:.2f}, {'met' if met else 'MISSED'}")
        if not on_gpu:
            print(f"  bar: {bar.gpu} x {bar.other} on a GPU: not run here")
        verdicts.append({"beside": bar.other, "asked": asked, "ratio": ratio, "met": met})
    return verdicts


def write(name: str, results: dict) -> None:
    """The JSON of a benchmark, with the versions of both sides."""
    import torch
    import transformers

    timing.write(
        name,
        {
            "torch": torch.__version__,
            "torch_threads": torch.get_num_threads(),
            "transformers": transformers.__version__,
            "load_average": round(os.getloadavg()[0], 2),
            "turns": TURNS.value,
            "dtype": DTYPE.value,
            "results": results,
        },
    )
