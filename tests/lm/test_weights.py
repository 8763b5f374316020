import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_models import tiny

from emojax.errors import UserError
from emojax.lm import weights

pytestmark = pytest.mark.smoke


def hf_tensors(config, params):
    """Our parameters under Hugging Face's names and in its layout."""
    tensors = {}
    for leaf, value in params.items():
        if leaf != "layers":
            tensors[weights._OUTER[leaf]] = value.T if leaf == "unembed" else value
    for leaf, stacked in params["layers"].items():
        for layer, value in enumerate(stacked):
            name = weights._layer_name(config, leaf, layer)
            tensors[name] = value.T if leaf in weights._TRANSPOSED else value
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


def assert_same(found, params):
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize("name", ["gemma3", "gemma3_untied", "llama_mha", "llama_gqa_tied"])
def test_one_file(name, tmp_path):
    config, params = tiny(name)
    save_file(hf_tensors(config, params), tmp_path / "model.safetensors")
    assert_same(weights.load(tmp_path, config), params)


def test_several_files_with_an_index(tmp_path):
    config, params = tiny("llama_mha")
    tensors = hf_tensors(config, params)
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
def test_types_are_converted(stored, tmp_path):
    config, params = tiny("llama_gqa_tied")
    tensors = {n: v.astype(stored) for n, v in hf_tensors(config, params).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    as_stored = jax.tree.map(lambda a: a.astype(stored), params)
    found = weights.load(tmp_path, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    assert_same(found, jax.tree.map(lambda a: a.astype(jnp.float32), as_stored))
    assert_same(weights.load(tmp_path, config, stored), as_stored)


def test_a_tied_head_saved_again_is_fine(tmp_path):
    config, params = tiny("llama_gqa_tied")
    tensors = hf_tensors(config, params)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(weights.load(tmp_path, config), params)


def test_all_that_does_not_fit_is_listed(tmp_path):
    config, params = tiny("llama_mha")
    tensors = hf_tensors(config, params)
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


def test_no_weights_and_broken_weights(tmp_path):
    config, params = tiny("llama_mha")
    with pytest.raises(UserError, match=r"lacks \*\.safetensors"):
        weights.load(tmp_path, config)
    file = tmp_path / "model.safetensors"
    save_file(hf_tensors(config, params), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        weights.load(tmp_path, config)
