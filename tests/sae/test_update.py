"""Which of the step's two ways `train.update=auto` is."""

import dataclasses

import pytest

from emojax.sae.coder import SaeConfig
from emojax.sae.step import fused_moves_less, is_fused
from emojax.sae.train_config import TrainConfig

SAE = SaeConfig(d_model=128, n_latents=16384, k=16, model="planted", layer=0)
TRAIN = TrainConfig(batch_tokens=128)


def by_hand(tokens, slots, rows, d, shards):
    """Bytes that one CPU device moves in each way, beyond what both move."""
    own, others = tokens // shards, tokens - tokens // shards
    fused = others * 2 * d * 4 + others * slots * 5 * d * 4
    optax = (shards - 1) * 2 * (2 * rows // shards * d * 4) + own * slots * d * 4
    return fused, optax


@pytest.mark.parametrize("shards", [2, 4, 8])
@pytest.mark.parametrize("rows", [512, 2048, 8192, 32768])
@pytest.mark.parametrize("tokens", [64, 1024])
def test_on_a_cpu_it_is_what_moves_fewer_bytes(tokens, rows, shards):
    fused, optax = by_hand(tokens, 16, rows, 128, shards)
    assert fused != optax
    assert fused_moves_less("cpu", tokens, 16, rows, 128, shards) == (fused < optax)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu", "another"])
def test_one_shard_of_tokens_is_fused_and_a_full_batch_over_several_is_not(platform):
    assert fused_moves_less(platform, 131072, 64, 8192, 4096, 1)
    assert not fused_moves_less(platform, 131072, 64, 8192, 4096, 8)
    # Few tokens on many rows: less than the gradients of all rows.
    assert fused_moves_less(platform, 256, 64, 131072, 4096, 8)


def test_auto_looks_at_what_a_device_holds():
    over_four = dataclasses.replace(TRAIN, data_shards=4)
    assert is_fused(SAE, over_four, "cpu")
    # The rows that a device touches are as many, and it holds a sixteenth of them.
    assert not is_fused(SAE, dataclasses.replace(over_four, latent_shards=16), "cpu")
    assert not is_fused(SAE, dataclasses.replace(over_four, batch_tokens=1024), "cpu")


@pytest.mark.parametrize("update", ["fused", "optax"])
def test_what_is_asked_for_is_taken(update):
    for shards in (1, 4):
        settings = dataclasses.replace(TRAIN, data_shards=shards, update=update)
        assert is_fused(SAE, settings, "tpu") == (update == "fused")


@pytest.mark.parametrize("architecture", ["matryoshka", "relu"])
def test_auto_is_optax_for_several_codes_and_dense_ones(architecture):
    assert not is_fused(dataclasses.replace(SAE, architecture=architecture), TRAIN, "cpu")
