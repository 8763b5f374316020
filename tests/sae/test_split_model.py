"""A language model that is split over a host, or in bfloat16, gives the batches of a whole one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = str(Path(__file__).parent / "split_model.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    command = [sys.executable, PROGRAM, str(tmp_path_factory.mktemp("stores"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.split("FOUND")[1])


@pytest.mark.parametrize("shards", [2, 4])
def test_a_split_model_s_batches_are_those_of_a_whole_one(found, shards):
    whole, split = found["float32 1"], found[f"float32 {shards}"]
    assert (whole["devices"], whole["share"]) == (8, 1.0)
    assert (split["devices"], split["share"]) == (8, 1 / shards)
    whole, split = (np.array(x["batches"]) for x in (whole, split))
    assert whole.shape == (2, 128, 16)
    np.testing.assert_allclose(split, whole, rtol=1e-5, atol=1e-5 * np.abs(whole).max())


def test_a_split_model_is_stored_and_measured_as_a_whole_one(found):
    whole, split = ({k: np.array(v) for k, v in found[name].items()} for name in ("whole", "split"))
    assert whole["loss"].size > 60
    np.testing.assert_allclose(split["loss"], whole["loss"], rtol=1e-5)
    most = np.abs(whole["stored"]).max()  # as far apart as the store's halves of floats
    np.testing.assert_allclose(split["stored"], whole["stored"], rtol=2e-3, atol=1e-3 * most)


def test_activations_of_a_model_in_bfloat16_are_as_far_off_as_its_bits(found):
    exact, half = (np.array(found[key]["batches"]) for key in ("float32 2", "bfloat16 2"))
    off = np.linalg.norm(half - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    assert 2**-9 < np.median(off) < 2**-6  # eight bits, rounded at every step of two layers
    assert off.max() < 2**-4


def test_what_cannot_be_split_so_is_refused(found):
    devices, heads = found["refused"]
    assert "over 3 of the 8 devices" in devices
    assert "does not divide the model's n_heads of 4" in heads
