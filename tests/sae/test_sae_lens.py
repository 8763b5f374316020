import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from sae_toys import SAE, D, N, activations
from safetensors.numpy import load_file, save_file

from emojax.errors import UserError
from emojax.sae import coder
from emojax.sae.formats import sae_lens


def dictionary(
    input_scale: str = "unit_norm", architecture: str = "topk"
) -> coder.SparseAutoencoder:
    rng = np.random.default_rng(2)
    config = dataclasses.replace(
        SAE,
        input_scale=input_scale,
        layer=1,
        site="mlp_out",
        architecture=architecture,
        max_active=None if architecture == "topk" else N,
    )
    least = 0.0 if architecture == "relu" else rng.uniform(0.1, 1.0, N)
    return dataclasses.replace(
        coder.init(config, jnp.asarray(0.1 * rng.normal(size=D), jnp.float32)),
        w_enc=jnp.asarray(rng.normal(size=(N, D)), jnp.float32),
        b_enc=jnp.asarray(0.1 * rng.normal(size=N), jnp.float32),
        threshold=None if architecture == "topk" else jnp.full(N, least, jnp.float32),
    )


def their_forward(directory, x: np.ndarray) -> np.ndarray:
    """SAELens' documented forward pass: normalise, subtract b_dec, activate, decode, undo."""
    cfg = json.loads((directory / "cfg.json").read_text())
    w = {
        n: a.astype(np.float64) for n, a in load_file(directory / "sae_weights.safetensors").items()
    }
    factor = np.ones((len(x), 1))
    if cfg["normalize_activations"] == "constant_norm_rescale":
        factor = np.sqrt(cfg["d_in"]) / np.linalg.norm(x, axis=1, keepdims=True)
    x = x * factor
    read = (x - w["b_dec"] * cfg["apply_b_dec_to_input"]) @ w["W_enc"]
    if cfg["architecture"] == "gated":
        size = np.maximum(np.exp(w["r_mag"]) * read + w["b_mag"], 0)
        z = size * (read + w["b_gate"] > 0)
    else:
        pre = read + w["b_enc"]
        lowest = w.get("threshold", 0)
        if cfg["architecture"] == "topk":
            lowest = np.sort(pre, axis=1)[:, [-cfg["k"] - 1]]
        z = np.where(pre > lowest, np.maximum(pre, 0), 0)
    return (z @ w["W_dec"] + w["b_dec"]) / factor


@pytest.mark.parametrize(
    ("input_scale", "architecture", "theirs"),
    [
        ("unit_norm", "topk", "topk"),
        ("none", "topk", "topk"),
        ("unit_norm", "batch_topk", "jumprelu"),
        ("mean_norm", "matryoshka", "jumprelu"),
        ("none", "jumprelu", "jumprelu"),
        ("none", "gated", "jumprelu"),
        ("unit_norm", "relu", "standard"),
    ],
)
def test_export_reconstructs_the_same_and_comes_back(tmp_path, input_scale, architecture, theirs):
    sae, x = dictionary(input_scale, architecture), activations(30)
    sae_lens.export(tmp_path, sae)
    ours = np.asarray(coder.reconstruct(sae, jnp.asarray(x)))
    np.testing.assert_allclose(
        their_forward(tmp_path, x), ours, rtol=1e-4, atol=1e-4 * abs(ours).max()
    )
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == theirs
    back = sae_lens.load(tmp_path)
    if architecture == "topk":
        assert back.config == sae.config
    again = np.asarray(coder.reconstruct(back, jnp.asarray(x)))
    np.testing.assert_allclose(again, ours, rtol=1e-4, atol=1e-4 * abs(ours).max())
    for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
        np.testing.assert_allclose(getattr(back, name), getattr(sae, name), rtol=1e-6)


def test_a_dictionary_that_does_not_subtract_b_dec_is_folded(tmp_path):
    sae_lens.export(tmp_path, dictionary())
    cfg = json.loads((tmp_path / "cfg.json").read_text()) | {"apply_b_dec_to_input": False}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    x = activations(30)
    ours = np.asarray(coder.reconstruct(sae_lens.load(tmp_path), jnp.asarray(x)))
    np.testing.assert_allclose(
        their_forward(tmp_path, x), ours, rtol=1e-4, atol=1e-4 * abs(ours).max()
    )


@pytest.mark.parametrize("subtracted", [True, False])
def test_a_gated_dictionary_is_read_as_the_jumprelu_that_it_is(tmp_path, subtracted):
    sae_lens.export(tmp_path, dictionary(architecture="jumprelu"))
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    cfg |= {"architecture": "gated", "apply_b_dec_to_input": subtracted}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    rng = np.random.default_rng(3)
    for name in ("b_gate", "b_mag", "r_mag"):
        tensors[name] = rng.normal(size=N).astype(np.float32)
    kept = {n: a for n, a in tensors.items() if n not in ("b_enc", "threshold")}
    save_file(kept, tmp_path / "sae_weights.safetensors")
    x = activations(30)
    ours = np.asarray(coder.reconstruct(sae_lens.load(tmp_path), jnp.asarray(x)))
    theirs = their_forward(tmp_path, x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * abs(theirs).max())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "temporal"}, "architecture is 'temporal'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm is True"),
        ({"skip": True}, "skip is unknown"),
        ({"metadata": {"model_name": "toy", "hook_name": "blocks.1.attn.hook_z"}}, "metadata"),
        ({"k": None}, "cfg.json"),
    ],
)
def test_what_we_cannot_do_is_named(tmp_path, change, said):
    sae_lens.export(tmp_path, dictionary())
    cfg = json.loads((tmp_path / "cfg.json").read_text()) | change
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(UserError, match=said):
        sae_lens.load(tmp_path)


def test_missing_files_and_wrong_shapes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"needs cfg\.json"):
        sae_lens.load(tmp_path)
    sae_lens.export(tmp_path, dictionary())
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    save_file(tensors | {"b_enc": tensors["b_dec"]}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(UserError, match="does not have the tensors"):
        sae_lens.load(tmp_path)
    with pytest.raises(UserError, match="Transcoders are not written"):
        config = dataclasses.replace(SAE, target_site="mlp_out", input_scale="none")
        sae_lens.export(tmp_path, dataclasses.replace(dictionary(), config=config))
    with pytest.raises(UserError, match="no name for the site"):
        sae = dictionary()
        odd = dataclasses.replace(sae.config, site="final_norm")
        sae_lens.export(tmp_path, dataclasses.replace(sae, config=odd))


def test_a_model_without_bos_is_exported_as_such(tmp_path):
    for name, prepend_bos in (("gemma", True), ("qwen", False)):
        sae_lens.export(tmp_path / name, dictionary(), prepend_bos=prepend_bos)
        cfg = json.loads((tmp_path / name / "cfg.json").read_text())
        assert cfg["metadata"]["prepend_bos"] is prepend_bos
