import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_gguf
from gguf.constants import GGMLQuantizationType
from safetensors.numpy import load_file, save_file
from tiny_models import CONFIGS, tiny

from emojax.errors import UserError
from emojax.lm import decoder, tensor_file, weights
from emojax.lm.config import DecoderConfig

pytestmark = pytest.mark.smoke
# Every family that can be saved, all it may have among its parameters.
SAVED = ["gemma2", "gemma3_untied", "gpt2", "gpt2_untied", "llama_biases", "mistral"]
SAVED += ["neox", "neox_sequential", "qwen2", "qwen3_longrope"]


@pytest.fixture
def hf_tensors(tmp_path_factory):
    """Our parameters under Hugging Face's names and in its layout."""

    def saved(name):
        config, params = tiny(name)
        directory = tmp_path_factory.mktemp("saved")
        weights.save(directory, config, params, CONFIGS[name])
        return load_file(directory / "model.safetensors")

    return saved


def assert_same(found, params):
    jax.tree.map(np.testing.assert_array_equal, found, params)


# One or two of every family that can be saved.
@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_saved_is_loaded_bit_by_bit(name, dtype, tmp_path):
    config, params = tiny(name)
    params = jax.tree.map(lambda a: a.astype(dtype), params)
    weights.save(tmp_path, config, params, CONFIGS[name] | {"torch_dtype": "float16"})
    found = weights.load(tmp_path, config, dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
    assert_same(found, params)
    attributes = json.loads((tmp_path / "config.json").read_text())
    assert DecoderConfig.from_hf(attributes) == config
    assert attributes["dtype"] == jnp.dtype(dtype).name and "torch_dtype" not in attributes


@pytest.mark.torch
@pytest.mark.parametrize("name", ["gemma2", "gpt2", "neox", "qwen2"])
def test_transformers_loads_what_is_saved(name, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config, params = tiny(name)
    weights.save(tmp_path, config, params, CONFIGS[name])
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    tokens = np.arange(3, 33)[None]
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    ours = decoder.logits(config, params, jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_attributes_of_another_model_are_not_saved(tmp_path):
    config, params = tiny("llama_mha")
    with pytest.raises(UserError, match="not those of the model's config"):
        weights.save(tmp_path, config, params, CONFIGS["llama_biases"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["model.safetensors.index.json", "part-0.safetensors"])
def test_nothing_is_saved_beside_other_weights(other, tmp_path):
    config, params = tiny("llama_mha")
    (tmp_path / other).write_text("{}")
    with pytest.raises(UserError, match=f"already holds {other}"):
        weights.save(tmp_path, config, params, CONFIGS["llama_mha"])
    assert [path.name for path in tmp_path.iterdir()] == [other]
    (tmp_path / other).unlink()
    for _ in range(2):  # an earlier save is replaced
        weights.save(tmp_path, config, params, CONFIGS["llama_mha"])
    assert_same(weights.load(tmp_path, config), params)


@pytest.mark.parametrize("before", ["", "transformer."])
def test_prefixes_and_masks_of_older_checkpoints(before, hf_tensors, tmp_path):
    config, params = tiny("gpt2")
    tensors = {
        before + name.removeprefix("transformer."): value
        for name, value in hf_tensors("gpt2").items()
    }
    tensors[f"{before}h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.uint8)
    tensors[f"{before}h.0.attn.masked_bias"] = np.float32([-1e4])
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(weights.load(tmp_path, config), params)


def test_several_files_with_an_index(hf_tensors, tmp_path):
    config, params = tiny("llama_mha")
    tensors = hf_tensors("llama_mha")
    names = sorted(tensors)
    index = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in ("part-0.safetensors", "part-1.safetensors"):
        save_file({n: tensors[n] for n in names if index[n] == part}, tmp_path / part)
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_same(weights.load(tmp_path, config), params)

    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks part-1\.safetensors"):
        weights.load(tmp_path, config)
    file.write_text("{}")
    with pytest.raises(UserError, match="not an index"):
        weights.load(tmp_path, config)


@pytest.mark.parametrize("stored", [np.float16, jnp.bfloat16])
def test_types_are_converted(stored, hf_tensors, tmp_path):
    config, params = tiny("llama_gqa_tied")
    tensors = {n: v.astype(stored) for n, v in hf_tensors("llama_gqa_tied").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    as_stored = jax.tree.map(lambda a: a.astype(stored), params)
    found = weights.load(tmp_path, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    assert_same(found, jax.tree.map(lambda a: a.astype(jnp.float32), as_stored))
    assert_same(weights.load(tmp_path, config, stored), as_stored)


def test_a_tied_head_saved_again_is_fine(hf_tensors, tmp_path):
    config, params = tiny("llama_gqa_tied")
    tensors = hf_tensors("llama_gqa_tied")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(weights.load(tmp_path, config), params)


def test_all_that_does_not_fit_is_listed(hf_tensors, tmp_path):
    config, _ = tiny("llama_mha")
    tensors = hf_tensors("llama_mha")
    del tensors["lm_head.weight"], tensors["model.layers.2.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    tensors["model.norm.weight"] = np.zeros(33, np.float32)
    tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((48, 32), np.float32)
    tensors["model.layers.1.mlp.gate_proj.weight"] = np.zeros((48, 32), np.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as error:
        weights.load(tmp_path, config)
    for problem in (
        "lm_head.weight is missing",
        "model.layers.2.mlp.up_proj.weight is missing",
        "model.layers.0.self_attn.q_proj.bias is unexpected",
        "model.norm.weight has shape (33,) instead of (32,)",
        "model.layers.1.mlp.down_proj.weight has shape (48, 32) instead of (32, 48)",
        "model.layers.1.mlp.gate_proj.weight has type I8",
    ):
        assert problem in str(error.value)


def test_no_weights_and_broken_weights(hf_tensors, tmp_path):
    config, _ = tiny("llama_mha")
    with pytest.raises(UserError, match=r"lacks \*\.safetensors"):
        weights.load(tmp_path, config)
    file = tmp_path / "model.safetensors"
    save_file(hf_tensors("llama_mha"), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        weights.load(tmp_path, config)


@pytest.mark.parametrize("index", [[], {"weight_map": 3}, {"weight_map": {"a": ["b"]}}, 3])
def test_an_index_that_is_none(index, tmp_path):
    config, _ = tiny("llama_mha")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="is not an index of safetensors"):
        weights.load(tmp_path, config)


MEASURE = """
import json
import sys
from pathlib import Path

import jax, jax.numpy as jnp
from emojax.lm import gguf, sharding, weights
from emojax.lm.config import DecoderConfig

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

path = Path(sys.argv[1])
jax.block_until_ready(jnp.zeros(8) + 1)
devices = len(jax.devices())
assert devices == int(sys.argv[3])
mesh = sharding.make_mesh(model=devices)
before = kilobytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
if path.suffix == ".gguf":
    path = gguf.convert(path, "0" * 64, path.parent)
config = DecoderConfig.from_hf(json.loads((path / "config.json").read_text()))
there = sharding.shardings(config, mesh) if devices > 1 else None
params = jax.block_until_ready(weights.load(path, config, jnp.dtype(sys.argv[2]), there))
peak = kilobytes("VmHWM")
assert len(params["embed"].sharding.device_set) == devices
for leaf in (params["embed"], params["layers"]["down"][-1]):
    assert jnp.isfinite(leaf).all() and (leaf != 0).mean() > 0.99
print((peak - before) * 1024, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts peaks")


def assert_little_more_memory_than_the_weights(path, dtype, devices=1):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), dtype, str(devices)],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    peak, size = map(int, done.stdout.split())
    assert size > 90e6
    assert 0.9 * size < peak < 1.3 * size


@LINUX
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("devices", "parts"), [(1, 1), (2, 3)])
def test_loading_needs_little_more_memory_than_the_weights(devices, parts, dtype, tmp_path):
    # As in Gemma-3-270m, most of it is one tensor.
    attributes = CONFIGS["gemma3"] | {
        "vocab_size": 60_000,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "head_dim": 128,
    }
    config = DecoderConfig.from_hf(attributes)
    expected = weights._expected(config, weights._where(config, {}))
    kind = {"float32": "F32", "bfloat16": "BF16"}[dtype]
    names, index = list(expected), {}
    for part in range(parts):
        file = f"part-{part}.safetensors" if parts > 1 else "model.safetensors"
        tensors = {name: (kind, expected[name][0]) for name in names[part::parts]}
        ones = (np.ones(shape, jnp.dtype(dtype)) for _, shape in tensors.values())
        tensor_file.write(tmp_path / file, tensors, ones)
        index |= dict.fromkeys(tensors, file)
    if parts > 1:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (tmp_path / "model.safetensors.index.json").write_text(text)
    (tmp_path / "config.json").write_text(json.dumps(attributes))
    assert_little_more_memory_than_the_weights(tmp_path, dtype, devices)


@LINUX
def test_reading_gguf_needs_little_more_memory_than_the_weights(tmp_path, monkeypatch):
    """Converted, which is done once, and then loaded."""
    for name, size in {"D": 512, "FF": 4096, "LAYERS": 5}.items():
        monkeypatch.setattr(tiny_gguf, name, size)
    tiny_gguf.write(tmp_path / "large.gguf", "llama", GGMLQuantizationType.F16)
    assert_little_more_memory_than_the_weights(tmp_path / "large.gguf", "float32")


@pytest.mark.parametrize(
    "dtype", [jnp.int8, "int8", np.int32, bool, np.float64, jnp.float8_e4m3fn, "banana", None]
)
def test_weights_are_read_as_floats_that_products_know(dtype, tmp_path, monkeypatch):
    config, params = tiny("gpt2")
    weights.save(tmp_path, config, params, CONFIGS["gpt2"])
    monkeypatch.setattr(tensor_file, "read", None)
    with pytest.raises(UserError, match=r"give jnp\.float32, jnp\.bfloat16 or"):
        weights.load(tmp_path, config, dtype)
