"""What the real TPU compiler makes of the kernels; no TPU is needed, only libtpu."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest
from emojax_kernels.shapes import SPEED

pytestmark = pytest.mark.tpu_backend


@pytest.fixture(scope="module")
def compiled():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install -e './kernels[tpu]'")
    program = pathlib.Path(__file__).with_name("compile_pallas_tpu.py")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_every_program_compiles_for_every_generation(compiled):
    small = {}
    for line in compiled:
        if line["shape"][0] < 8192:
            small.setdefault(line["topology"], []).append((line["program"], line["dtype"]))
    assert set(small) == {"v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"}
    assert len({tuple(sorted(programs)) for programs in small.values()}) == 1
    programs = {name for name, _ in small["v5e:2x2"]}
    assert len(programs) == 10 and "sharded_gradients" in programs


def test_no_dense_code_and_no_gathered_rows_exist(compiled):
    """No array as large as `[tokens, n]` or `[tokens, k, d]`, forward, backward and in the update.

    The largest is a matrix of the dictionary; next to float32 gradients of those, which JAX asks
    for, temporaries are small.
    """
    wide = [line for line in compiled if line["shape"][0] == 8192]
    encoded = {tuple(line["shape"]) for line in wide if line["program"] == "topk_encode"}
    assert encoded == {dataclasses.astuple(SPEED[name]) for name in ("S", "L", "G")}
    both = {tuple(line["shape"]) for line in wide if line["program"] == "autoencoder_gradients"}
    assert both == {dataclasses.astuple(SPEED[name]) for name in ("S", "L")}
    for line in wide:
        tokens, d, n, k = line["shape"]
        assert line["largest"] == n * d < min(tokens * n, tokens * k * d), line
        gradient = 4 * n * d if line["program"] == "autoencoder_gradients" else 0
        assert line["temporary"] - gradient < 2 * tokens * n / 8, line


def test_the_row_update_is_in_place_and_has_no_gradient(compiled):
    lines = [line for line in compiled if line["program"] == "fused_row_update_float32"]
    (line,) = (line for line in lines if line["shape"][0] == 8192)
    _, d, n, _ = line["shape"]
    # Two matrices, four moments, two shadows.
    assert line["aliased"] >= (6 * 4 + 2 * 2) * n * d
    assert line["temporary"] < n * d / 8
