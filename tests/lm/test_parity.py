"""Every family, feature by feature, against `transformers` in PyTorch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import parity_table
import pytest
from safetensors.numpy import load_file
from tiny_models import CONFIGS, NumberTokenizer
from torch_models import (
    load_reference,
    run_cached,
    run_reference,
    run_sites,
    save_reference,
)

from emojax.errors import UserError
from emojax.lm import capture as capture_module
from emojax.lm import decoder, generate, weights
from emojax.lm.capture import Tap, capture
from emojax.lm.config import DecoderConfig
from emojax.lm.families import FAMILIES
from emojax.lm.model import LanguageModel

# The prompts and their real tokens; every row has some in the first `PREFILL` positions if padded
# on the left.
TIME, PREFILL, LENGTHS = 40, 24, np.array([40, 33, 21, 18])
# Those whose ropes change when a row crosses the original context of 32 tokens.
LENGTH_ROPES = [name for name in CONFIGS if "dynamic" in name or "longrope" in name]


@pytest.mark.torch
@pytest.mark.parametrize("name", CONFIGS)
def test_parity_with_transformers(name, tmp_path, parity):
    pytest.importorskip("torch")
    reference = save_reference(CONFIGS[name], tmp_path)
    attributes = json.loads((tmp_path / "config.json").read_text())
    config = DecoderConfig.from_hf(attributes)
    params = weights.load(tmp_path, config)
    # 96 stands for an image where there are any.
    tokens = np.random.default_rng(0).integers(3, 96, (len(LENGTHS), TIME))
    tokens = tokens.astype(np.int32)

    found = parity[name] = {check: 0.0 for check in parity_table.CHECKS}
    with jax.default_matmul_precision("highest"):
        for side in ("right", "left"):
            mask = np.arange(TIME) < LENGTHS[:, None]
            mask = mask if side == "right" else mask[:, ::-1]
            logits, layers = run_reference(reference, tokens, mask)
            ours = decoder.logits(config, params, jnp.asarray(tokens), jnp.asarray(mask))
            found[f"logits, {side} padding"] = error(ours, logits, mask)
            read = capture(config, params, tokens, mask, [Tap(i) for i in range(config.n_layers)])
            every = "residual stream, every layer"
            for tap, values in read.items():
                new = error(values, layers[tap.layer], mask)
                found[every] = float(np.maximum(found[every], new))  # keeps a NaN
        # On the left, as a hole in the middle would count in the window of `transformers`.
        ours = cached_logits(config, params, tokens, mask)
        theirs, real = logits[:, PREFILL - 1 :], np.ones_like(mask[:, PREFILL - 1 :])
        if name in LENGTH_ROPES:  # whose older keys keep their turn, as theirs in a cache do
            theirs = run_cached(reference, tokens, mask, PREFILL)
            assert error(theirs, logits[:, PREFILL - 1 :], real) > 1e-3
        found["KV-cache steps"] = error(ours, theirs, real)
    assert all(found[check] < 1e-5 for check in parity_table.CHECKS), found

    if FAMILIES[config.family].part:
        found[parity_table.ROUND_TRIP] = "refused"
        with pytest.raises(UserError, match="part of a"):
            weights.save(tmp_path / "again", config, params, attributes)
        return
    weights.save(tmp_path / "again", config, params, attributes)
    first, again = (load_file(d / "model.safetensors") for d in (tmp_path, tmp_path / "again"))
    assert first.keys() == again.keys()
    for tensor, value in first.items():
        assert again[tensor].tobytes() == value.tobytes(), tensor
    found[parity_table.ROUND_TRIP] = "same bits"


@pytest.mark.torch
@pytest.mark.parametrize("name", LENGTH_ROPES)
def test_ropes_of_short_and_long_prompts(name, tmp_path, monkeypatch):
    """Within the original context and beyond it, by one program; texts written across it."""
    pytest.importorskip("torch")
    monkeypatch.setattr(capture_module, "_PART_TOKENS", TIME)  # each row by itself
    reference = save_reference(CONFIGS[name], tmp_path)
    config = DecoderConfig.from_hf(json.loads((tmp_path / "config.json").read_text()))
    params = weights.load(tmp_path, config)
    assert {rope.original_context for rope in config.ropes} & {32} and config.context >= 64
    tokens = np.random.default_rng(1).integers(3, 97, (len(LENGTHS), TIME)).astype(np.int32)
    last, compiled = Tap(config.n_layers - 1, "final_norm"), None
    with jax.default_matmul_precision("highest"):
        for longest in (31, 32, 33, TIME):
            mask = np.arange(TIME) < np.minimum(LENGTHS, longest)[:, None]
            theirs, _ = run_reference(reference, tokens, mask)
            ours = decoder.logits(config, params, jnp.asarray(tokens), jnp.asarray(mask))
            assert error(ours, theirs, mask) < 1e-5
            (read,) = capture(config, params, tokens, mask, [last]).values()
            assert error(decoder.unembed(config, params, read), theirs, mask) < 1e-5
            compiled = compiled or decoder.logits._cache_size()
        assert decoder.logits._cache_size() == compiled

        lm = LanguageModel(name, config, params, NumberTokenizer(), tmp_path, "none")
        settings = generate.GenerateSettings(max_new_tokens=16, temperature=0.0, stop_tokens=())
        rows = [row[:PREFILL].tolist() for row in tokens[:2]]
        (ours, _) = written = generate.generate(lm, rows, settings).tokens
        assert len(ours) == 16
        assert written == greedy(reference, rows, 16)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["gemma3", "llama_gqa_tied", "neox"])
def test_bfloat16_is_as_near_to_float32_as_in_pytorch(name, tmp_path):
    """Both round to 8 bits at their own places, so neither can be the other's reference.

    Each error is a sum over many roundings and many tokens, so that with as many of them theirs and
    ours are alike; a rounding too many (a norm or a softmax in bfloat16) would tell.
    """
    torch = pytest.importorskip("torch")
    save_reference(CONFIGS[name], tmp_path)
    reference = load_reference(tmp_path, torch.bfloat16)
    config = DecoderConfig.from_hf(CONFIGS[name])
    # What both sides hold, so that float32 has the same weights.
    rounded = weights.load(tmp_path, config, jnp.bfloat16)
    exact = jax.tree.map(lambda a: a.astype(jnp.float32), rounded)
    tokens = np.random.default_rng(0).integers(3, 96, (len(LENGTHS), TIME)).astype(np.int32)
    mask = np.arange(TIME) < LENGTHS[:, None]
    theirs, _ = run_reference(reference, tokens, mask)
    real = jnp.asarray(tokens), jnp.asarray(mask)
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(decoder.logits(config, exact, *real))[mask]
    ours = np.asarray(decoder.logits(config, rounded, *real))[mask]
    errors = [np.linalg.norm(a - expected) for a in (ours, theirs[mask])]
    size = np.linalg.norm(expected)
    assert 0 < errors[0] < 1.25 * errors[1], errors
    # A layer rounds about ten times, each by at most 2**-9 of what it rounds.
    assert max(errors) < 10 * config.n_layers * 2**-9 * size, errors / size


@pytest.mark.torch
@pytest.mark.parametrize("name", ["gemma3", "llama_biases"])
def test_sites_inside_a_layer(name, tmp_path):
    pytest.importorskip("torch")
    reference = save_reference(CONFIGS[name], tmp_path)
    config = DecoderConfig.from_hf(CONFIGS[name])
    tokens = np.random.default_rng(0).integers(3, 97, (len(LENGTHS), TIME)).astype(np.int32)
    mask = np.arange(TIME) < LENGTHS[:, None]
    theirs = run_sites(reference, tokens, mask)
    assert len(theirs) == 4 * config.n_layers
    with jax.default_matmul_precision("highest"):
        taps = [Tap(layer, site) for layer, site in theirs]
        ours = capture(config, weights.load(tmp_path, config), tokens, mask, taps)
    found = {tap: error(ours[tap], theirs[tap.layer, tap.site], mask) for tap in taps}
    assert all(value < 1e-5 for value in found.values()), found  # a NaN is not less


def error(ours, theirs, mask):
    return np.abs(np.asarray(ours) - theirs)[mask].max() / np.abs(theirs[mask]).max()


def greedy(reference, rows, n):
    """The likeliest `n` tokens after rows of one length, as `transformers` writes them."""
    import torch

    reference.generation_config.eos_token_id = None
    prompts = torch.tensor(rows)
    out = reference.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=n, do_sample=False
    )
    return out[:, prompts.shape[1] :].tolist()


def cached_logits(config, params, tokens, mask):
    """Logits from the last prefilled position on, each step from the cache."""
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    step = jax.jit(generate.decode_step, static_argnums=(0, 3))
    h, cache = generate.prefill(config, params, tokens[:, :PREFILL], mask[:, :PREFILL], TIME)
    read, layers = [h], decoder.by_layer(params)  # as `generate` has them for its steps
    for slot in range(PREFILL, TIME):
        h, cache = step(config, layers, tokens[:, slot], TIME, cache)
        read.append(h)
    return decoder.unembed(config, params, jnp.stack(read, axis=1))


@pytest.mark.smoke
def test_the_document_lists_every_model_and_check():
    cells = parity_table.read()
    assert {row["family"] for row in cells.values() if "family" in row} == FAMILIES.keys()
    for name in CONFIGS:
        row = cells[name]
        traits = [row[column] for column in ("family", "heads", "positions", "window")]
        assert traits == list(parity_table.traits(name))
        assert all(0 < float(row[check]) < 1e-5 for check in parity_table.CHECKS), name
        family = FAMILIES[row["family"]]
        assert row[parity_table.ROUND_TRIP] == ("refused" if family.part else "same bits")
    for model in parity_table.REAL_MODELS:
        assert all(0 < float(cells[model][check]) < 1e-4 for check in parity_table.REAL_CHECKS)
