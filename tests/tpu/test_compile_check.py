import dataclasses
import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest

from emojax.errors import UserError
from tpu import exchanges
from tpu.chips import Slices
from tpu.compile_check import (
    KEPT,
    README,
    Case,
    check_within,
    comparison,
    compiled,
    counted,
    merged,
    named,
    parse_target,
    row,
    table,
)
from tpu.models import MODELS

CASE = Case(
    slices=Slices("v5e", 16, 2),
    model="llama31_8b",
    latents=131072,
    active=64,
    rows=256,
    context=512,
    latent_shards=16,
    update="auto",
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
    assert dataclasses.replace(CASE, slices=Slices("v5e", 32), latent_shards=32).mesh_shape == (
        1,
        32,
    )
    assert dataclasses.replace(CASE, slices=Slices("tpu7x", 4)).mesh_shape == (1, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "gpt"}, "gpt"),
        ({"rows": 33}, "multiples"),
        ({"latents": 100}, "multiples"),
        ({"model_shards": 3}, "32 heads, 14336 MLP units .* 4 devices of a host .* over 3"),
        ({"model_shards": 8}, "over 8; give other --model_shards"),
        ({"capture_tokens": 1024}, "no whole rows of 512 for each of its 4 devices"),
    ],
)
def test_a_case_that_cannot_be_split_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CASE, **changes)


def test_a_row_says_what_does_not_fit():
    found = {"target": "v5e-8", "mesh": (1, 8), "model": None, "latents": 1 << 20, "tokens": 512}
    found |= {
        "update": "fused",
        "memory": 16 << 30,
        "seconds": 3.2,
        "fits": False,
        "reason": "too much",
    }
    assert row(found) == (
        "| v5e-8 | 1×8 | – | 1,048,576 | 512 | fused | – | – | – | 16.0 | too much | 3 | **no** |"
    )


def test_a_case_that_takes_too_long_is_given_up_and_named():
    found = check_within(0, CASE)
    assert not found["fits"]
    assert row(found) == (
        "| v5e-16x2 | 2×16 | llama31_8b/4 | 131,072 | 131,072 | optax | – | – | – | 16.0 "
        "| not compiled within 0 s | 0 | not known |"
    )


@pytest.mark.skipif(not WITHOUT_LIBTPU, reason="libtpu is here")
def test_a_compiler_that_breaks_off_is_named():
    with pytest.raises(UserError, match="broke off at v5e-16x2"):
        check_within(120, CASE)


def test_the_table_holds_the_newest_row_of_each_case_from_small_slices_to_large():
    def found(target, latents=1024, seconds=1.0):
        what = {"target": target, "mesh": [1, 8], "model": "llama31_8b", "latents": latents}
        what |= {
            "tokens": 512,
            "update": "fused",
            "memory": 16 << 30,
            "seconds": seconds,
            "fits": False,
        }
        return what | {"reason": "too much", "jax": "0.10.2", "cores": 1, "active": 64}

    old = [found("v5p-256"), found("v5e-16x2"), found("v5e-8", 4096), found("v5e-8")]
    new = merged(merged([], old), [found("v5e-8", seconds=2.0), found("v5e-16")])
    cases = [(row["target"], row["latents"], row["seconds"]) for row in new]
    assert cases == [
        ("v5e-8", 1024, 2.0),
        ("v5e-8", 4096, 1.0),
        ("v5e-16", 1024, 1.0),
        ("v5e-16x2", 1024, 1.0),
        ("v5p-256", 1024, 1.0),
    ]
    assert [line for line in table(new).splitlines() if line][2:] == [
        "|---" * 13 + "|",
        *map(row, new),
    ]


def test_the_readmes_tables_are_what_was_kept():
    kept, readme = json.loads(KEPT.read_text()), README.read_text()
    assert table(kept) in readme
    assert comparison(kept) in readme


def test_the_rooflines_bytes_are_those_of_the_compiled_programs():
    exact = halved = 0
    for found in json.loads(KEPT.read_text()):
        for kind, size in counted(found).items() if "collectives" in found else ():
            there, within = compiled(found)[kind], parse_target(found["target"]).count == 1
            over_data = found["mesh"][0] > 1 and kind == ("all-gather" if within else "recv-done")
            if found["update"] == "fused" and over_data:
                # Of the inputs of all tokens, and with AuxK's latents of twice as many, XLA gathers
                # all, some or none in bfloat16, as the products read them.
                inputs = 3 * 2 * found["tokens"] * MODELS[found["model"]].d_model
                assert (size - inputs) * 0.999 <= there <= size * 1.2
                halved += there == pytest.approx(size - inputs, rel=1e-3)
                continue
            exact += 1
            assert size == pytest.approx(there, rel=1e-3)
    assert exact > 10
    assert halved > 1


def test_an_exchange_by_hand():
    # 8 tokens on each of two shards, 4 latents of width 4 on each of two; k = 2.
    optax = exchanges.sae(4, 8, 2, 16, data=2, latent=2, update="optax")
    assert optax == {"latent": (4 * 8 * 2 * 2, 4 * 8 * 4), "data": (0, 2 * 4 * 4 * 4)}
    fused = exchanges.sae(4, 8, 2, 16, data=2, latent=2, update="fused")
    assert fused["data"] == (16 * (2 * 4 * 4 + 2 * 2 * 4), 0)
    alone = exchanges.sae(4, 8, 2, 16, data=1, latent=1, update="fused")
    assert set(alone.values()) == {(0, 0)}


@pytest.mark.skipif(not WITHOUT_LIBTPU, reason="libtpu is here")
def test_without_the_compiler_the_program_says_what_to_install():
    command = [sys.executable, "-m", "tpu.compile_check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: The compiler for TPUs is missing; run: pip install 'jax[tpu]'\n"


def compiled_on_v5e_8(*small: str) -> tuple[subprocess.CompletedProcess[str], list[Any]]:
    """What the program did for Llama-3.1-8B, and the JSON of each of its rows."""
    command = [sys.executable, "-m", "tpu.compile_check", "--targets=v5e-8", "--models=llama31_8b"]
    done = subprocess.run([*command, *small], capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stderr.splitlines() if line[0] == "{"]
    assert rows, done.stderr
    return done, rows


@pytest.mark.tpu_backend
@pytest.mark.skipif(WITHOUT_LIBTPU, reason="needs libtpu: pip install 'jax[tpu]'")
def test_the_trainers_step_compiles_for_a_slice_and_is_too_large_for_its_memory_when_it_is():
    small = ["--nocapture", "--rows=64", "--context=8", "--latent_shards=8"]
    done, (fits, misses) = compiled_on_v5e_8(*small, "--latents=1024,8388608")
    assert done.stdout.count("| v5e-8 |") == 2
    assert done.returncode == 1
    assert "Of 2 cases 1 do not fit" in done.stderr
    assert fits["fits"]
    # Weights and two moments of 128 latents and the batch, in float32.
    assert fits["argument"] == pytest.approx(6 * 128 * 4096 * 4 + 512 * 4096 * 4, rel=0.02)
    assert {"all-gather", "all-reduce"} <= fits["collectives"].keys()
    assert not misses["fits"]


@pytest.mark.tpu_backend
@pytest.mark.skipif(WITHOUT_LIBTPU, reason="needs libtpu: pip install 'jax[tpu]'")
def test_all_that_a_step_runs_compiles_for_a_slice_and_exchanges_what_is_counted():
    small = ["--latents=1024", "--latent_shards=4", "--rows=16"]
    done, (found,) = compiled_on_v5e_8(*small, "--context=128", "--capture_tokens=1024")
    assert done.returncode == 0, done.stderr
    runs = {name: program["runs"] for name, program in found["programs"].items()}
    assert runs == {"train_step": 1, "capture": 2, "gather": 2, "draw": 1, "put": 1}
    for kind, size in counted(found).items():
        assert compiled(found)[kind] == pytest.approx(size, rel=1e-3)
