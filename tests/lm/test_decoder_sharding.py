"""Eight devices that XLA makes of one CPU, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec as P
from tiny_models import tiny

from emojax.errors import UserError
from emojax.lm import decoder, sharding

HERE = Path(__file__).parent
MODELS = ("gemma3", "gpt2", "neox")
SCRIPT = """
import json, sys, tempfile
from pathlib import Path

import jax, jax.numpy as jnp, numpy as np
from tiny_models import CONFIGS, NumberTokenizer, ragged
from emojax.lm import capture as capturing
from emojax.lm import decoder, generate, intervene, sharding, weights
from emojax.lm.capture import Tap, capture
from emojax.lm.config import DecoderConfig
from emojax.lm.model import LanguageModel
from emojax.lm.run_with_cache import run_with_cache

jax.config.update("jax_default_matmul_precision", "highest")
assert len(jax.devices()) == 8
mesh = sharding.make_mesh(data=2, model=4)
found = {}


# The largest difference of two lists of arrays; a NaN is a NaN.
def apart(a, b):
    pairs = zip(a, b, strict=True)
    return float(np.max([np.abs(np.asarray(x) - np.asarray(y)).max() for x, y in pairs]))


# All that reads and writes rows, on one device and on eight: three rows, or a single one.
def over_rows(config, params, split, tokens, mask):
    lone, wide = (
        LanguageModel("", config, p, NumberTokenizer(), Path(), "") for p in (params, split)
    )
    prompts = [row[m].tolist() for row, m in zip(tokens, mask)][:3]
    vectors = np.random.default_rng(0).normal(size=(3, config.d_model))
    edit = intervene.direction("add", vectors, layer=1, strength=[0.0, 1.0, 3.0])
    how = generate.GenerateSettings(max_new_tokens=8, temperature=0.9, seed=1)
    one, eight = (generate.generate(lm, prompts, how, [edit]) for lm in (lone, wide))
    found = {"same tokens": one.tokens == eight.tokens, "rows": []}
    found["logprobs"] = apart(one.logprobs, eight.logprobs)
    inside = generate.begin(wide, prompts, how, [edit], None)[0]
    found["rows"].append([inside.shape[0], inside.addressable_shards[0].data.shape[0]])

    tap, whole = Tap(2), capturing._capture

    def watched(config, params, tokens, *rest):
        if params is split:
            shard = tokens.addressable_shards[0].data
            found["rows"].append([tokens.shape[0], shard.shape[0]])
        return whole(config, params, tokens, *rest)

    capturing._capture = watched
    rows = [*prompts, prompts[0][:2], [5]]
    one, eight = ([part[tap] for part in capturing.stream(lm, rows, [tap], 40)]
                  for lm in (lone, wide))
    assert all((a.rows == b.rows).all() for a, b in zip(one, eight, strict=True))
    found["stream"] = apart([a.values for a in one], [b.values for b in eight])
    one, eight = (capturing.last_token(lm, rows, tap) for lm in (lone, wide))
    found["last_token"] = apart([one], [eight])
    one, eight = (run_with_cache(lm, prompts, [tap], [edit]) for lm in (lone, wide))
    real = np.asarray(one[1].mask)
    found["run_with_cache"] = apart(
        *[[np.asarray(a)[real] for a in (logits, cache[tap])] for logits, cache in (one, eight)]
    )
    return found


for name in sys.argv[1:]:
    config = DecoderConfig.from_hf(CONFIGS[name] | {"vocab_size": 96})
    params = decoder.init(config, jax.random.key(0))
    tokens, mask = ragged(config, 4, 20, "left")
    one = decoder.logits(config, params, jnp.asarray(tokens), jnp.asarray(mask))
    with tempfile.TemporaryDirectory() as folder:
        weights.save(Path(folder), config, params, CONFIGS[name] | {"vocab_size": 96})
        split = weights.load(Path(folder), config, shardings=sharding.shardings(config, mesh))
        written = (Path(folder) / "model.safetensors").read_bytes()
        weights.save(Path(folder), config, split, CONFIGS[name] | {"vocab_size": 96})
        assert (Path(folder) / "model.safetensors").read_bytes() == written
    moved = sharding.shard_params(config, params, mesh)
    for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(moved), strict=True):
        assert a.sharding == b.sharding
        for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert x.device == y.device and (x.data == y.data).all()
    rows = sharding.shard_rows(mesh, tokens, mask)
    eight = decoder.logits(config, split, *rows)
    found[name] = {
        "error": float(np.abs(np.asarray(eight) - one)[mask].max()),
        "devices": len(eight.sharding.device_set),
        "bytes": {
            leaf: split["layers"][leaf].addressable_shards[0].data.nbytes
            / split["layers"][leaf].nbytes
            for leaf in ("q", "k", "o", "up", "down", "attn_norm")
        } | {"embed": split["embed"].addressable_shards[0].data.nbytes / split["embed"].nbytes},
    }
    if name == "gemma3":
        tap = Tap(2)
        alone, read = (capture(config, *args, [tap])[tap] for args in (
            (params, tokens, mask), (split, *rows)
        ))
        found[name]["residual"] = float(np.abs(np.asarray(read) - alone)[mask].max())
        prefill = jax.jit(generate.prefill, static_argnums=(0, 4))
        h, _ = prefill(config, split, *rows, 24)
        ours = np.asarray(decoder.unembed(config, split, h))
        found[name]["prefill"] = float(np.abs(ours - one[:, -1]).max())
        found[name] |= over_rows(config, params, split, tokens, mask)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def on_eight():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *MODELS], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", MODELS)
def test_eight_devices_give_what_one_gives(name, on_eight):
    found = on_eight[name]
    of_rows = ("logprobs", "stream", "last_token", "run_with_cache")
    every = ("error", "residual", "prefill", *of_rows)
    errors = [found[what] for what in every if what in found]
    assert all(error < 1e-5 for error in errors)  # a NaN is not less
    assert len(errors) == (len(every) if name == "gemma3" else 1), found
    assert found["devices"] == 8


@pytest.mark.parametrize("name", MODELS)
def test_each_device_has_its_part(name, on_eight):
    # Two key heads cannot be split in four; `gpt2` and `neox` have four.
    keys = 0.25 if name in ("gpt2", "neox") else 1.0
    quarter = dict.fromkeys(("q", "o", "up", "down", "embed"), 0.25)
    assert on_eight[name]["bytes"] == quarter | {"k": keys, "attn_norm": 1.0}


@pytest.mark.smoke
def test_rules_on_one_device():
    config, params = tiny("gpt2")
    mesh = sharding.make_mesh()
    placed = sharding.shardings(config, mesh)
    assert placed["layers"]["q_bias"].spec == P(None, "model")
    assert placed["positions"].spec == placed["layers"]["down_bias"].spec == P()
    moved = sharding.shard_params(config, params, mesh)
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("moved"), moved, params)


@pytest.mark.smoke
def test_meshes_that_do_not_fit():
    config, _ = tiny("llama_mha")
    with pytest.raises(UserError, match=r"data=3 by model=400 .* devices"):
        sharding.make_mesh(3, 400)
    fake = jax.sharding.AbstractMesh((2, 3), ("data", "model"))
    with pytest.raises(UserError, match="model of 3 does not divide the model's n_heads of 4"):
        sharding.shardings(config, fake)
    fake = jax.sharding.AbstractMesh((4,), ("data",))
    with pytest.raises(UserError, match="lacks the axis model"):
        sharding.shardings(config, fake)
    with pytest.raises(UserError, match="axis data of 2 does not divide the batch of 3 rows"):
        sharding.shard_rows(
            jax.sharding.AbstractMesh((2, 1), ("data", "model")), *[jax.numpy.zeros((3, 5))] * 2
        )
    # A vocabulary that does not divide stays whole.
    fake = jax.sharding.AbstractMesh((1, 4), ("data", "model"))
    assert sharding.shardings(config, fake)["embed"].spec == P()
    assert decoder.shapes(config)["embed"] == (97, 32)


def test_rows_are_split_over_the_data_axis(on_eight):
    found = on_eight["gemma3"]
    assert found["same tokens"]
    # Three rows became four, a single one two; half of them on each of the axis' two.
    assert [4, 2] in found["rows"] and [2, 1] in found["rows"]
    assert all(rows == 2 * part for rows, part in found["rows"])
