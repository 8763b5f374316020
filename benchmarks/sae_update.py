"""The trainer's whole step with the fused row update, beside the same step with optax.

    python -m benchmarks.sae_update [--latents 4096,16384] [--data_shards 1,4] [--repeats 20]

Prints a table, with what `train.update=auto` takes, and writes
`benchmarks/results/sae_update-<platform>.json`. Both steps are those that `experiments.train_sae`
runs (`emojax.sae.step`), on data with planted directions, and take turns, so that whatever else the
machine does falls on both alike. The time is that of a blocked call, the median of `--repeats`; the
memory is what XLA plans for. On a CPU, shards of tokens are devices of one process that share its
cores and memory, so that the time is that of all shards' work.
"""

import dataclasses
import itertools
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import timing
from emojax import errors
from emojax.sae import state as states
from emojax.sae.coder import SaeConfig
from emojax.sae.step import is_fused, train_step
from emojax.sae.store import Batch
from emojax.sae.train_config import TrainConfig
from emojax.sae.trainer import placed

UPDATES = ("fused", "optax")
LATENTS = flags.DEFINE_list("latents", ["4096", "16384"], "Sizes of the dictionary.")
D_MODEL = flags.DEFINE_integer("d_model", 640, "Width of the activations.")
K = flags.DEFINE_integer("k", 64, "Active latents per token.")
SHARDS = flags.DEFINE_list("data_shards", ["1"], "Numbers of shards of tokens.")
TOKENS = flags.DEFINE_integer("tokens", 512, "Tokens per step.")
ARCHITECTURE = flags.DEFINE_string("architecture", "topk", "topk, batch_topk or matryoshka.")


def activations(tokens: int, width: int, active: int) -> np.ndarray:
    """Sparse sums of 2,048 directions."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((2048, width)).astype(np.float32)
    chosen = rng.integers(0, 2048, (tokens, active))
    size = rng.exponential(size=(tokens, active)).astype(np.float32)
    return np.einsum("tk,tkd->td", size, directions[chosen])


def measure(n: int, shards: int) -> tuple[dict[str, dict[str, float]], str]:
    """Milliseconds and planned memory of each way, and which of them `auto` is."""
    config = SaeConfig(
        d_model=D_MODEL.value,
        n_latents=n,
        k=K.value,
        model="planted",
        layer=0,
        architecture=ARCHITECTURE.value,
    )
    auto = TrainConfig(batch_tokens=TOKENS.value, data_shards=shards)
    batch = Batch(activations(TOKENS.value, D_MODEL.value, 16))
    runs = {}
    figures: dict[str, dict[str, float]] = {}
    for update in UPDATES:
        settings = dataclasses.replace(auto, update=update)
        mesh = states.make_mesh(settings, n)
        state = states.start(config, settings, batch, mesh)
        static = (config, settings, 1000, mesh)
        x = placed(batch, mesh)
        memory: Any = train_step.lower(*static, state, x).compile().memory_analysis()
        figures[update] = {"temporary_mib": round(memory.temp_size_in_bytes / 2**20)}
        runs[update] = (static, train_step(*static, state, x), x)
    taken: dict[str, list[float]] = {update: [] for update in UPDATES}
    for _ in range(timing.REPEATS.value):
        for update, (static, state, x) in runs.items():
            jax.block_until_ready(state)
            started = time.perf_counter()
            state = jax.block_until_ready(train_step(*static, state, x))
            taken[update].append(1e3 * (time.perf_counter() - started))
            runs[update] = (static, state, x)
    for update, times in taken.items():
        figures[update] |= {
            "median_ms": round(float(np.median(times)), 1),
            "least_ms": round(min(times), 1),
        }
    return figures, "fused" if is_fused(config, auto, jax.default_backend()) else "optax"


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    shards = [int(number) for number in SHARDS.value]
    # Devices of one process, where there are no others; JAX heeds it on the CPU alone.
    jax.config.update("jax_num_cpu_devices", max(shards))
    results = []
    for n, number in itertools.product(map(int, LATENTS.value), shards):
        load = os.getloadavg()[0]
        figures, auto = measure(n, number)
        case = {"latents": n, "data_shards": number, "auto": auto, "load_average": round(load, 1)}
        results.append(case | figures)
        faster = figures["optax"]["median_ms"] / figures["fused"]["median_ms"]
        print(
            f"n={n}, {number} shard(s) of tokens, load average {load:.1f}: fused is {faster:.2f} x "
            f"as fast as optax; auto takes {auto}"
        )
        for update, figure in figures.items():
            print(f"  {update:6s} {figure}")
    shape = {
        "architecture": ARCHITECTURE.value,
        "d_model": D_MODEL.value,
        "k": K.value,
        "tokens": TOKENS.value,
        "repeats": timing.REPEATS.value,
    }
    timing.write("sae_update", shape | {"results": results})


if __name__ == "__main__":
    errors.run(main)
