import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from emojax.errors import UserError
from tpu.chips import Slices
from tpu.compile_check import Case, named, parse_target, row

CASE = Case(
    slices=Slices("v5e", 16, 2),
    model="llama31_8b",
    latents=131072,
    active=64,
    rows=256,
    context=512,
    latent_shards=16,
    capture=True,
)
WITHOUT_LIBTPU = importlib.util.find_spec("libtpu") is None


@pytest.mark.parametrize(
    ("text", "slices"),
    [
        ("v5e-8", Slices("v5e", 8)),
        ("v5p-256", Slices("v5p", 128)),
        ("v5e-16x2", Slices("v5e", 16, 2)),
    ],
)
def test_targets_are_named_as_cloud_tpu_names_them(text, slices):
    assert parse_target(text) == slices
    assert named(slices) == text


@pytest.mark.parametrize("text", ["v5e", "v5e-x2", "", "v9-8", "v5e-12"])
def test_targets_that_are_none_are_refused(text):
    with pytest.raises(UserError):
        parse_target(text)


def test_latents_stay_within_a_slice():
    assert CASE.devices == 32
    assert CASE.mesh_shape == (2, 16)
    assert dataclasses.replace(CASE, latent_shards=64).mesh_shape == (2, 16)
    assert dataclasses.replace(CASE, slices=Slices("tpu7x", 4)).mesh_shape == (1, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"model": "gpt"}, "gpt"), ({"rows": 33}, "multiples"), ({"latents": 100}, "multiples")],
)
def test_a_case_that_cannot_be_split_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CASE, **changes)


def test_a_row_says_what_does_not_fit():
    found = {"target": "v5e-8", "mesh": (1, 8), "model": None, "latents": 1 << 20}
    found |= {"memory": 16 << 30, "seconds": 3.2, "fits": False, "reason": "too much"}
    assert row(found) == (
        "| v5e-8 | 1×8 | – | 1,048,576 | – | – | – | 16.0 | too much | 3 | **no** |"
    )


@pytest.mark.skipif(not WITHOUT_LIBTPU, reason="libtpu is here")
def test_without_the_compiler_the_program_says_what_to_install():
    command = [sys.executable, "-m", "tpu.compile_check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: The compiler for TPUs is missing; run: pip install 'jax[tpu]'\n"


@pytest.mark.tpu_backend
@pytest.mark.skipif(WITHOUT_LIBTPU, reason="needs libtpu: pip install 'jax[tpu]'")
def test_the_trainers_step_compiles_for_a_slice_and_is_too_large_for_its_memory_when_it_is():
    small = [
        "--targets=v5e-8",
        "--models=llama31_8b",
        "--nocapture",
        "--rows=64",
        "--context=8",
        "--latent_shards=8",
    ]
    command = [sys.executable, "-m", "tpu.compile_check", *small, "--latents=1024,8388608"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.stdout.count("| v5e-8 |") == 2, done.stderr
    fits, misses = (json.loads(line) for line in done.stderr.splitlines() if line[0] == "{")
    assert done.returncode == 1
    assert "Of 2 cases 1 do not fit" in done.stderr
    assert fits["fits"]
    # Weights and two moments of 128 latents, in float32, and the batch in bfloat16.
    assert fits["argument"] == pytest.approx(6 * 128 * 4096 * 4 + 512 * 4096 * 2, rel=0.02)
    assert {"all-gather", "all-reduce"} <= fits["collectives"].keys()
    assert not misses["fits"]
