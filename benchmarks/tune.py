"""Chooses the tiles of the Triton encoders' GEMM on the GPU at hand.

    python -m benchmarks.tune [--shapes S,L,G] [--repeats 20]

Times every candidate at every shape, in turns, in bfloat16 and in float32, prints a table of those
that ran, and writes the one with the least geometric mean of its times, by dtype, into
`kernels/emojax_kernels/topk_encode/tiles.json`, which the kernels read. A candidate that does not
fit on the GPU is left out. Then run `benchmarks.kernels` and `benchmarks.train_step` again.
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from emojax_kernels.shapes import SPEED, Shape
from emojax_kernels.topk_encode.tiles import FILE, TILES, Tile

from benchmarks import activations, timing
from emojax import errors, files
from emojax.errors import UserError

CANDIDATES = tuple(
    Tile(*sizes)
    for sizes in itertools.product((64, 128), (64, 128, 256), (32, 64), (4, 8), (2, 3, 4))
)


def measure(
    shapes: Mapping[str, Shape], dtype: str, candidates: Sequence[Tile], repeats: int
) -> dict[Tile, list[float]]:
    """Median milliseconds of each candidate at each shape; of those that ran at all of them."""
    from emojax_kernels.topk_encode import triton

    taken: dict[Tile, list[float]] = {tile: [] for tile in candidates}
    for shape in shapes.values():
        x, w_enc, b_enc, _, _ = activations.problem(shape, "gaussian", dtype)
        given = (x, w_enc, b_enc, jnp.full(shape.n, -jnp.inf))
        contenders = {
            str(number): dataclasses.replace(
                timing.jitted(functools.partial(triton.preactivations, tile=tile), *given),
                ours=False,
            )
            for number, tile in enumerate(candidates)
        }
        for name, figure in timing.timed(contenders, repeats).items():
            if "median_ms" in figure:
                taken[candidates[int(name)]].append(figure["median_ms"])
    return {tile: times for tile, times in taken.items() if len(times) == len(shapes)}


def best(taken: Mapping[Tile, Sequence[float]]) -> Tile:
    """The candidate with the least geometric mean.

    Raises:
      UserError: none ran.
    """
    if not taken:
        raise UserError(
            "No candidate ran at every shape; choose smaller --shapes, or look at the GPU."
        )
    return min(taken, key=lambda tile: math.prod(taken[tile]))


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    if jax.default_backend() != "gpu":
        raise UserError("Tiles are tuned on an NVIDIA GPU and there is none; run it where one is.")
    shapes = {name: SPEED[name] for name in timing.SHAPES.value or ("S", "L", "G")}
    chosen: dict[str, Any] = {}
    for dtype, before in TILES.items():
        taken = measure(shapes, dtype, CANDIDATES, timing.REPEATS.value)
        chosen[dtype] = dataclasses.asdict(best(taken))
        print(f"{dtype}, ms at {', '.join(shapes)} (was {before})")
        for tile, times in sorted(taken.items(), key=lambda item: math.prod(item[1])):
            print(f"  {' '.join(f'{t:8.3f}' for t in times)}  {tile}")
    with files.atomic(Path(str(FILE))) as partial:
        partial.write_text(json.dumps(chosen, indent=1) + "\n")
    print(f"written to {FILE} for {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    errors.run(main)
