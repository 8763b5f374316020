"""How the trainer's step grows with n, d, k and B, beside how a roofline says that it must.

    python -m benchmarks.scaling [--repeats 10]

One of the four grows eightfold while the others stay. The step is that of `experiments.train_sae`
(TopK, AuxK, Adam) on Gaussian activations. Prints a table and a verdict for each axis; writes
`benchmarks/results/scaling-<platform>.json` and a figure of it beside.

The roofline counts what the method must do, at rates measured in the same run (a GEMM and an update
in place, as `benchmarks.train_step`):

    FLOPs   2·B·n·d (encoder) + 10·B·k·d (decoder, the codes' gradient, both matrices', the input's)
    bytes   48·n·d (both matrices and their moments, read and written) + 8·B·n (pre-activations)
            + 24·B·k·d (rows of k latents a token, read, and added to)
    memory  32·n·d (matrices, moments, gradients) + 4·B·n up to 256 MiB (pre-activations) + 16·B·d

**The bars, set before any measurement**: from the smallest to the largest size of an axis, time and
memory grow at most `FACTOR` times as much as the roofline's. Growing less is no fault: a small size
pays for what does not grow. Where an axis misses, the table shows from which size on.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from emojax_kernels.shapes import Shape

from benchmarks import activations, figure, timing, train_step
from benchmarks.timing import Contender
from emojax import errors
from emojax.sae import state as states
from emojax.sae.coder import SaeConfig
from emojax.sae.step import train_step as step_of
from emojax.sae.store import Batch
from emojax.sae.train_config import TrainConfig
from emojax.sae.trainer import placed

FACTOR = 1.5
BASE = {"cpu": Shape(512, 512, 8192, 32), "gpu": Shape(8192, 2048, 65536, 64)}
AXES = {"n": "latents", "d": "width", "k": "active latents a token", "tokens": "tokens a step"}
# Pre-activations that `topk_encode` holds at once.
HELD = 1 << 26


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
    run = functools.partial(step_of, config, settings, 1000, mesh)

    def start() -> states.TrainState:
        fresh = jax.jit(functools.partial(states.fresh, config, settings))
        return fresh(jnp.zeros(shape.d), jnp.ones(()), jnp.ones(2))

    def prepare() -> Callable[[], Any]:
        state = [start()]

        def call() -> Any:
            state[0] = run(state[0], batch)
            return state[0]

        return call

    @functools.cache
    def peak() -> float:
        compiled = step_of.lower(config, settings, 1000, mesh, jax.eval_shape(start), batch)
        found: Any = compiled.compile().memory_analysis()
        size = found.argument_size_in_bytes + found.output_size_in_bytes
        return (size - found.alias_size_in_bytes + found.temp_size_in_bytes) / 2**20

    return Contender(prepare, jax.block_until_ready, peak)


def measure(axis: str, base: Shape, rates: dict[str, float], repeats: int) -> dict[str, Any]:
    """One axis: figures by size, and the verdict on its time and its memory."""
    shapes = sizes(base, axis)
    figures = timing.timed({str(getattr(s, axis)): step(s) for s in shapes}, repeats)
    for shape, found in zip(shapes, figures.values(), strict=True):
        floor = flops(shape) / rates["tflops"] / 1e9 + moved(shape) / rates["gb_per_s"] / 1e6
        found |= {"roofline_ms": round(floor, 4), "roofline_mib": round(held(shape) / 2**20)}
        if "median_ms" in found:
            found["tokens_per_second"] = round(1e3 * shape.tokens / found["median_ms"])
    print(f"{axis} ({AXES[axis]}); the others as in {base}")
    print(f"{axis:>10s}{'ms':>10s}{'roofline':>10s}{'tokens/s':>11s}{'MiB':>8s}{'roofline':>10s}")
    for size, f in figures.items():
        if "absent" in f:
            print(f"{size:>10s}  {f['absent']}")
            continue
        print(
            f"{size:>10s}{f['median_ms']:10.1f}{f['roofline_ms']:10.1f}"
            f"{f['tokens_per_second']:11,d}{f['memory_mib']:8,d}{f['roofline_mib']:10,d}"
        )
    bars = [
        bar(axis, figures, "time", "median_ms", "roofline_ms"),
        bar(axis, figures, "memory", "memory_mib", "roofline_mib"),
    ]
    return {"load_average": round(os.getloadavg()[0], 2), "figures": figures, "bars": bars}


def bar(axis: str, figures: dict[str, Any], what: str, of: str, to: str) -> dict[str, Any]:
    """How much more than the roofline one thing grew, from the smallest size to the largest."""
    ends = (next(iter(figures.values())), next(reversed(figures.values())))
    text = f"{axis}, {what}: the roofline's growth over the measured one is at least 1 / {FACTOR}"
    if not all(of in end for end in ends):
        return timing.bar(text, "an end was not measured", 1 / FACTOR, here=True)
    first, last = ends
    return timing.bar(text, last[to] / first[to] / (last[of] / first[of]), 1 / FACTOR, here=True)


def main(argv: Sequence[str]) -> None:
    """Measures, prints, draws, writes."""
    del argv
    platform, repeats = jax.default_backend(), timing.REPEATS.value
    base = BASE["cpu" if platform == "cpu" else "gpu"]
    rates = train_step.roofline(activations.problem(base, "gaussian", timing.work_dtype()), repeats)
    print(f"{rates['tflops']:.2f} TFLOP/s, {rates['gb_per_s']:.1f} GB/s")
    results = {axis: measure(axis, base, rates, repeats) for axis in AXES}
    report = {"repeats": repeats, "factor": FACTOR, "base": vars(base), "rates": rates}
    report |= {"results": results}
    timing.write("scaling", report)
    figure.draw_scaling(report | timing.machine(), AXES, timing.output(f"scaling-{platform}.svg"))


if __name__ == "__main__":
    errors.run(main)
