"""What each fast mode of the training step does to the loss, beside the noise between seeds.

    python -m benchmarks.fast_modes [--seeds 3] [--steps 200]

Trains a small TopK dictionary (2,048 latents, k = 32, batches of 256) on captured Gemma-3-270m
activations (`activations.py`): exactly, and with each option alone, then with all of them. The seed
draws the first rows and the order of the tokens, the same for every option. Prints the fraction of
variance unexplained on 2,048 tokens held out, and how far an option's mean lies from the exact one,
in standard deviations between the seeds; writes `benchmarks/results/fast_modes-<platform>.json`.
"""

import functools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from emojax_kernels import RowAdam, decode_error, init_rows, topk_encode

from benchmarks import activations, timing, train_step
from emojax import errors

SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each option.", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 200, "Steps of each run.", lower_bound=1)

LATENTS, K, BATCH, HELD_OUT, EVERY = 2048, 32, 256, 2048, 20
EXACT, FP8 = RowAdam(), "float8_e4m3fn"
# Name to settings of the update, dtype of the weights, scoring of the encoder.
OPTIONS: dict[str, tuple[RowAdam, str, str | None]] = {
    "exact": (EXACT, "float32", None),
    "bfloat16 moments": (RowAdam(moments="bfloat16"), "float32", None),
    "8-bit moments": (RowAdam(moments="int8"), "float32", None),
    "bfloat16 weights": (EXACT, "bfloat16", None),
    "fp8 scoring": (EXACT, "float32", FP8),
    "8-bit moments, bfloat16 weights, fp8 scoring": (RowAdam(moments="int8"), "bfloat16", FP8),
}


@jax.jit
def unexplained(held: tuple, x: jax.Array) -> jax.Array:
    """Fraction of the variance of x that the dictionary does not explain."""
    rows, b_dec, _ = held
    w_enc, w_dec = (w.astype("float32") for w in (rows.w_enc, rows.w_dec))
    code = topk_encode(x, w_enc, rows.b_enc, K)
    squared, _ = decode_error(*code, w_dec, b_dec, x)
    return squared.sum() / ((x - x.mean(0)) ** 2).sum()


def curve(option: str, seed: int, steps: int, train: jax.Array, held_out: jax.Array) -> list[float]:
    """What is unexplained of the held-out tokens, every `EVERY` steps and at the end."""
    settings, weights, _ = OPTIONS[option]
    optimiser = optax.adam(train_step.RATE)
    key, order = jax.random.split(jax.random.key(seed))
    first = train_step.unit(jax.random.normal(key, (LATENTS, train.shape[1])))
    b_dec = jnp.zeros(train.shape[1])
    rows = init_rows(first.astype(weights), jnp.zeros(LATENTS), first.astype(weights), settings)
    held = rows, b_dec, optimiser.init(b_dec)
    chosen = jax.random.randint(order, (steps, BATCH), 0, len(train))
    step = _step(option)
    found = []
    for number in range(steps):
        held = step(held, train[chosen[number]].astype(weights))
        if (number + 1) % EVERY == 0 or number + 1 == steps:
            found.append(float(unexplained(held, held_out)))
    return found


@functools.cache
def _step(option: str) -> Callable:
    settings, _, scoring = OPTIONS[option]
    optimiser = optax.adam(train_step.RATE)
    return jax.jit(train_step.fused(K, settings, optimiser, "xla", scoring))


def main(argv: Sequence[str]) -> None:
    """Trains, prints, writes."""
    del argv
    x = jnp.asarray(activations.centred())
    train, held_out = x[:-HELD_OUT], x[-HELD_OUT:]
    seeds, steps = SEEDS.value, STEPS.value
    print(f"{LATENTS} latents, k {K}, {steps} steps of {BATCH} tokens, {seeds} seeds")
    results, curves = {}, {}
    for option in OPTIONS:
        runs = [curve(option, seed, steps, train, held_out) for seed in range(seeds)]
        curves[option] = np.array(runs)
        final, exact = curves[option][:, -1], curves["exact"]
        noise = float(exact[:, -1].std(ddof=1))
        apart = float((curves[option] - exact).mean(0)[-1])
        widest = float(np.abs((curves[option] - exact).mean(0)).max())
        results[option] = {
            "unexplained": [round(float(f), 6) for f in final],
            "mean": round(float(final.mean()), 6),
            "deviation_between_seeds": round(float(final.std(ddof=1)), 6),
            "from_exact": round(apart, 6),
            "from_exact_in_deviations": round(apart / noise, 3),
            "widest_on_the_curve": round(widest, 6),
            "curves": np.round(curves[option], 5).tolist(),
        }
        print(
            f"  {option:46s}{final.mean():.5f} ± {final.std(ddof=1):.5f}   "
            f"from exact {apart:+.5f} ({apart / noise:+.2f} deviations)   "
            f"widest on the curve {widest:.5f}",
            flush=True,
        )
    report = {"steps": steps, "seeds": seeds, "every": EVERY, "load_average": os.getloadavg()[0]}
    timing.write("fast_modes", report | {"results": results})


if __name__ == "__main__":
    errors.run(main)
