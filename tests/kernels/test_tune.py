"""The tuning of tiles: what it measures, in Triton's interpreter, and what it chooses."""

import dataclasses

import pytest
from emojax_kernels.shapes import Shape
from emojax_kernels.topk_encode.tiles import TILES, Tile

from benchmarks import tune
from emojax.errors import UserError

pytest.importorskip("triton", reason="the Triton kernels need triton (extra test)")

SMALL = Tile(rows=16, latents=64, columns=16, num_warps=4, num_stages=2)


def test_candidates_that_run_at_every_shape_are_timed():
    broken = dataclasses.replace(SMALL, columns=24)  # no power of two
    shapes = {"a": Shape(8, 32, 128, 2), "b": Shape(4, 16, 64, 2)}
    taken = tune.measure(shapes, "float32", (SMALL, broken), repeats=1)
    assert list(taken) == [SMALL]
    assert len(taken[SMALL]) == 2
    assert min(taken[SMALL]) > 0


def test_the_least_geometric_mean_is_chosen():
    other = dataclasses.replace(SMALL, num_warps=8)
    assert tune.best({SMALL: [1.0, 9.0], other: [2.0, 4.0]}) == other
    with pytest.raises(UserError, match="No candidate ran"):
        tune.best({})


def test_without_a_gpu_it_says_so():
    with pytest.raises(UserError, match="there is none"):
        tune.main([])


def test_the_kernels_tiles_are_candidates():
    assert set(TILES) == {"bfloat16", "float32"}
    assert set(TILES.values()) <= set(tune.CANDIDATES)
