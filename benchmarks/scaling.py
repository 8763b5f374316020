"""How the trainer's step grows with n, d, k and B, beside how a roofline says that it must.

    python -m benchmarks.scaling [--sizes cpu|gpu] [--repeats 10]

One of the four grows eightfold while the others stay. The step is that of `experiments.train_sae`
(TopK, AuxK, Adam) on Gaussian activations; all sizes take turns, so that the one that the axes
share is measured once. Prints a table and a verdict for each axis; writes
`benchmarks/results/scaling-<platform>.json` and a figure of it beside, which
`python -m benchmarks.sae_tables` brings into the README.

The roofline counts what the method must do, at rates measured in the same run (a GEMM and an update
in place, as `benchmarks.train_step`):

    FLOPs   2·B·n·d (encoder) + 10·B·k·d (decoder, the codes' gradient, both matrices', the input's)
    bytes   48·n·d (both matrices and their moments, read and written) + 8·B·n (pre-activations)
            + 24·B·k·d (rows of k latents a token, read, and added to)
    memory  32·n·d (matrices, moments, gradients) + 4·B·n up to 256 MiB (pre-activations) + 16·B·d

**The bars, set before any measurement**: from the smallest to the largest size of an axis, time and
memory grow at most `FACTOR` times as much as the roofline's. Growing less is no fault: a small size
pays for what does not grow, and so is the farthest from the roofline. How near each size comes is
"its share": the roofline's time over the measured one.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from emojax_kernels.shapes import Shape

from benchmarks import activations, figure, timing, train_step
from benchmarks.timing import Contender
from emojax import errors
from emojax.errors import UserError
from emojax.sae import state as states
from emojax.sae.coder import SaeConfig
from emojax.sae.step import train_step as step_of
from emojax.sae.store import Batch
from emojax.sae.train_config import TrainConfig
from emojax.sae.trainer import placed

flags.set_default(timing.REPEATS, 10)
SIZES = flags.DEFINE_enum(
    "sizes", None, ["cpu", "gpu"], "Which sizes (default: those of the platform)."
)

FACTOR = 1.5
BASE = {"cpu": Shape(512, 512, 8192, 32), "gpu": Shape(8192, 2048, 65536, 64)}
AXES = {"n": "latents", "d": "width", "k": "active latents a token", "tokens": "tokens a step"}
# What is compared: the names of a figure and of its roofline.
COMPARED = {"time": ("median_ms", "roofline_ms"), "memory": ("memory_mib", "roofline_mib")}
# Pre-activations that `topk_encode` holds at once.
HELD = 1 << 26


def chosen() -> Shape:
    """The size that all axes share.

    Raises:
      UserError: sizes for a GPU are asked for where there is none.
    """
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and SIZES.value == "gpu":
        raise UserError(
            "The sizes for a GPU would take hours and tens of GiB on a CPU, and JAX finds no GPU; "
            "leave --sizes out, or install JAX for it (pip install 'emojax-kernels[cuda]')."
        )
    return BASE[SIZES.value or ("cpu" if on_cpu else "gpu")]


def sizes(base: Shape, axis: str) -> list[Shape]:
    """The base, half and a quarter of it, and its double along one axis."""
    middle = getattr(base, axis)
    values = (middle // 4, middle // 2, middle, middle * 2)
    fields = {"tokens": base.tokens, "d": base.d, "n": base.n, "k": base.k}
    return [Shape(**fields | {axis: value}) for value in values]


def flops(shape: Shape) -> float:
    """Of a step: see the top of this file."""
    return 2.0 * shape.tokens * shape.d * (shape.n + 5 * shape.k)


def moved(shape: Shape) -> float:
    """Bytes that a step reads and writes."""
    rows = 24.0 * shape.tokens * shape.k * shape.d
    return 48.0 * shape.n * shape.d + 8.0 * shape.tokens * shape.n + rows


def held(shape: Shape) -> float:
    """Bytes that a step holds."""
    scores = 4.0 * min(shape.tokens * shape.n, HELD)
    return 32.0 * shape.n * shape.d + scores + 16.0 * shape.tokens * shape.d


def step(shape: Shape) -> Contender:
    """The trainer's step at one size."""
    config = SaeConfig(d_model=shape.d, n_latents=shape.n, k=shape.k, model="gaussian", layer=0)
    settings = TrainConfig(batch_tokens=shape.tokens)
    mesh = states.make_mesh(settings, shape.n)
    x = np.random.default_rng(0).standard_normal((shape.tokens, shape.d), np.float32)
    batch = placed(Batch(x), mesh)
    fresh = jax.jit(functools.partial(states.fresh, config, settings))

    def start() -> states.TrainState:
        return fresh(jnp.zeros(shape.d), jnp.ones(()), jnp.ones(2))

    @functools.cache
    def compiled() -> Any:
        like = jax.eval_shape(start)
        return step_of.lower(config, settings, 1000, mesh, like, batch).compile()

    def prepare() -> Callable[[], Any]:
        state = [start()]

        def call() -> Any:
            state[0] = compiled()(state[0], batch)
            return state[0]

        return call

    def peak() -> float:
        found = compiled().memory_analysis()
        size = found.argument_size_in_bytes + found.output_size_in_bytes
        return (size - found.alias_size_in_bytes + found.temp_size_in_bytes) / 2**20

    return Contender(prepare, jax.block_until_ready, peak)


def measure(base: Shape, rates: dict[str, float], repeats: int) -> dict[Shape, dict[str, Any]]:
    """The figures of every size of every axis, and their rooflines."""
    shapes = dict.fromkeys(shape for axis in AXES for shape in sizes(base, axis))
    figures = timing.timed({str(shape): step(shape) for shape in shapes}, repeats)
    found = {shape: figures[str(shape)] for shape in shapes}
    for shape, own in found.items():
        floor = flops(shape) / rates["tflops"] / 1e9 + moved(shape) / rates["gb_per_s"] / 1e6
        own |= {"roofline_ms": round(floor, 4), "roofline_mib": round(held(shape) / 2**20)}
        if "median_ms" in own:
            own["tokens_per_second"] = round(1e3 * shape.tokens / own["median_ms"])
    return found


def judged(axis: str, base: Shape, found: dict[Shape, dict[str, Any]]) -> dict[str, Any]:
    """One axis: prints its figures by size, and the verdict on its time and its memory."""
    figures = {str(getattr(shape, axis)): found[shape] for shape in sizes(base, axis)}
    others = ", ".join(f"{name} = {getattr(base, name):,}" for name in AXES if name != axis)
    print(f"{axis} ({AXES[axis]}); {others}")
    head = ("ms", "roofline", "its share", "tokens/s", "MiB", "roofline")
    print(f"{axis:>10s}" + "".join(f"{name:>10s}" for name in head))
    for size, f in figures.items():
        if "failed" in f:
            print(f"{size:>10s}  FAILED: {f['failed']}")
            continue
        print(
            f"{size:>10s}{f['median_ms']:10.1f}{f['roofline_ms']:10.1f}"
            f"{f['roofline_ms'] / f['median_ms']:10.0%}{f['tokens_per_second']:10,d}"
            f"{f['memory_mib']:10,d}{f['roofline_mib']:10,d}"
        )
    bars = [bar(axis, figures, what, *of) for what, of in COMPARED.items()]
    return {"load_average": round(os.getloadavg()[0], 2), "figures": figures, "bars": bars}


def bar(axis: str, figures: dict[str, Any], what: str, of: str, to: str) -> dict[str, Any]:
    """How much one thing grew from the smallest size to the largest, beside the roofline."""
    text = f"{axis}, {what}: the roofline's growth over the measured one is at least 1 / {FACTOR}"
    grew = growth(figures, of)
    known = "an end failed" if grew is None else (growth(figures, to) or 0.0) / grew
    return timing.bar(text, known, 1 / FACTOR, here=True)


def growth(figures: dict[str, Any], of: str) -> float | None:
    """From the smallest size to the largest; None if one of the two failed."""
    first, last = next(iter(figures.values())), next(reversed(figures.values()))
    return last[of] / first[of] if of in first and of in last else None


def main(argv: Sequence[str]) -> None:
    """Measures, prints, draws, writes."""
    del argv
    shape, repeats = chosen(), timing.REPEATS.value
    rates = train_step.roofline(
        activations.problem(shape, "gaussian", timing.work_dtype()), repeats
    )
    if "failed" in rates:
        raise UserError(f"The roofline could not be measured ({rates['failed']}); mend that first.")
    print(f"{rates['tflops']:.2f} TFLOP/s, {rates['gb_per_s']:.1f} GB/s")
    found = measure(shape, rates, repeats)
    results = {axis: judged(axis, shape, found) for axis in AXES}
    report = {"repeats": repeats, "factor": FACTOR, "base": vars(shape), "rates": rates}
    report |= {"results": results}
    timing.write("scaling", report)
    platform = jax.default_backend()
    figure.draw_scaling(report | timing.machine(), AXES, timing.output(f"scaling-{platform}.svg"))
    timing.end(results)


if __name__ == "__main__":
    errors.run(main)
