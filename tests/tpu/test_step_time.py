import dataclasses
import itertools
import subprocess
import sys

import pytest

from emojax.errors import UserError
from emojax.sae.step import fused_moves_less
from tpu.chips import CHIPS
from tpu.models import MODELS, Model
from tpu.step_time import (
    MARKS,
    README,
    UPDATES,
    Work,
    best,
    capture_cost,
    sae_cost,
    scaling,
    slices_of,
    state_bytes,
    summaries,
)

# One layer of width 4: q and o 4·8 each, k and v 4·4 each, three MLP matrices 4·10: 216.
TINY = Model(
    {
        "hidden_size": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 2,
        "intermediate_size": 10,
    },
    layer=0,
)
WORK = Work(TINY, latents=64, active=2, tokens=32, context=8, products=6)
# Unit rates, so that seconds are FLOPs and bytes.
UNIT = dataclasses.replace(
    CHIPS["v5e"], flops=1.0, hbm_rate=1.0, ici_rate=1.0, dcn_rate=1.0, hbm_bytes=1e9
)


def test_the_parameters_of_a_layer_are_counted():
    assert TINY.layer_params == 2 * 32 + 2 * 16 + 3 * 40
    # The published sizes, less embeddings and norms, are near 42 and 32 of these.
    assert MODELS["gemma2_9b"].layer_params == 198_180_864
    assert MODELS["llama31_8b"].layer_params == 218_103_808


def test_capture_by_hand():
    cost = capture_cost(WORK, UNIT, slices=1, groups=4, t=2, gathered=False)
    # 8 chips: 32 tokens × (2 · 216 + 4 · 8 · 8) FLOPs.
    assert cost.arithmetic == 32 * (432 + 256) / 8
    # A group's 8 tokens are 8 · 4 · 2 = 64 bytes; its weights 432 bytes over two chips.
    assert cost.memory == 432 / 2 + 8 * 64 / 2
    # Three sums: of the embedding, after attention and after the MLP.
    assert cost.ici == 3 * 2 * (1 / 2) * 64
    assert cost.dcn == 0


def test_gathered_weights_travel_and_are_written_before_they_are_read():
    kept = capture_cost(WORK, UNIT, slices=1, groups=4, t=2, gathered=False)
    gathered = capture_cost(WORK, UNIT, slices=1, groups=4, t=2, gathered=True)
    assert gathered.arithmetic == kept.arithmetic
    assert gathered.memory - kept.memory == 432 / 2
    assert gathered.ici - kept.ici == 432 / 2 * (3 / 4)


def test_sae_by_hand():
    cost = sae_cost(WORK, UNIT, chips=8, data=2, across="", update="optax", aligned=False)
    # 16 tokens and 16 latents of width 4 on each chip.
    assert cost.arithmetic == 6 * 2 * 16 * 16 * 4
    products = 6 * (4 * 16 * 4 + 8 * 16 * 16)
    adam = 32 * 2 * 16 * 4
    tokens = 4 * 16 * (2 * 4 + 8 * 4)
    assert cost.memory == products + adam + tokens
    x, values, gradients = 4 * 16 * 4, 4 * 16 * 2 * 4, 4 * 2 * 16 * 4
    assert cost.ici == (x + values + 2 * x) * 3 / 4 + 2 * gradients * 1 / 2
    assert cost.dcn == 0


def test_a_fused_update_sees_the_tokens_of_all_shards():
    cost = sae_cost(WORK, UNIT, chips=8, data=2, across="", update="fused", aligned=False)
    # Two products of the chip's own 16 tokens, three of all 32.
    assert cost.arithmetic == 2 * 2 * 16 * 16 * 4 + 3 * 2 * 32 * 16 * 4
    products = 5 * 4 * 16 * 4 + 2 * 8 * 16 * 16 + 3 * 8 * 32 * 16
    assert cost.memory == products + 32 * 2 * 16 * 4 + 4 * 16 * (2 * 4 + 8 * 4)
    x, values, tokens = 4 * 16 * 4, 4 * 16 * 2 * 4, 32 * (2 * 4 * 4 + 2 * 4 * 2)
    assert cost.ici == (x + values + 2 * x) * 3 / 4 + tokens * 1 / 2


def test_with_one_shard_of_tokens_a_fused_update_spares_one_product():
    fused, optax = (
        sae_cost(WORK, UNIT, 8, data=1, across="", update=update, aligned=False)
        for update in UPDATES
    )
    assert optax.arithmetic - fused.arithmetic == 2 * 32 * 8 * 4
    assert optax.memory - fused.memory == 4 * 8 * 4 + 8 * 32 * 8
    assert (fused.ici, fused.latency) == (optax.ici, optax.latency)


def test_activations_move_where_capture_splits_the_rows_otherwise():
    moved, kept = (
        sae_cost(WORK, UNIT, 8, data=2, across="", update="optax", aligned=aligned)
        for aligned in (False, True)
    )
    assert moved.ici - kept.ici == 4 * 16 * 4 * 3 / 4
    assert moved.arithmetic == kept.arithmetic


@pytest.mark.parametrize(
    ("tpu", "times"), [("v5e", 1.05), ("v5p", 1.05), ("v6e", 1.05), ("tpu7x", 1.7)]
)
def test_what_the_trainer_takes_by_itself_is_near_the_rooflines_choice(tpu, times):
    chip, taken = CHIPS[tpu], set()
    for tokens, latents, data in itertools.product((1024, 131072), (2**17, 2**20), (1, 2, 16)):
        work = Work(MODELS["llama31_8b"], latents, 64, tokens, 512, 6)
        fused = fused_moves_less("tpu", tokens, 64, latents // (64 // data), 4096, data)
        costs = {
            update: sae_cost(work, chip, 64, data, "", update, aligned=True).seconds
            for update in UPDATES
        }
        taken.add(update := "fused" if fused else "optax")
        assert costs[update] <= times * min(costs.values())
    assert taken == set(UPDATES)


def test_one_dense_product_leaves_k_rows_a_token_for_the_others():
    sparse = dataclasses.replace(WORK, products=1)
    optax = sae_cost(sparse, UNIT, chips=8, data=2, across="", update="optax", aligned=False)
    assert optax.arithmetic == 2 * 16 * 16 * 4 + 2 * 5 * 16 * 2 * 4 / 4
    fused = sae_cost(sparse, UNIT, chips=8, data=2, across="", update="fused", aligned=False)
    assert fused.arithmetic == 2 * 16 * 16 * 4 + 2 * (16 + 3 * 32) * 2 * 4 / 4


def test_slices_talk_over_the_network():
    # Two slices of 256; latents within a slice, so that gradients cross.
    across_data = sae_cost(
        WORK, UNIT, chips=512, data=8, across="data", update="optax", aligned=False
    )
    # 1 latent of width 4: gradients of 32 bytes, reduced among 4 within a slice first.
    assert across_data.dcn == 2 * 32 / 4 * (1 / 2)
    across_latent = sae_cost(
        WORK, UNIT, chips=512, data=8, across="latent", update="optax", aligned=False
    )
    # 4 tokens: x 64 bytes, 2 values of 64 shards 2048 bytes; 32 chips of a slice share them.
    assert across_latent.dcn == (64 + 2048 + 2 * 64) / 32 * (1 / 2)


def test_slices_are_whole_pods():
    assert [slices_of(CHIPS["v5e"], n) for n in (8, 256, 512, 4096)] == [1, 1, 2, 16]
    assert slices_of(CHIPS["v5p"], 4096) == 1


def test_state_is_weights_moments_and_gradients():
    plan = best(WORK, UNIT, 8)
    assert plan is not None
    lm = 2 * 216 / plan.lm_split / (plan.lm_groups if plan.lm_gathered else 1)
    own = lm + 16 * 2 * 64 / plan.latent * 4
    for update, gathered in (("optax", 0), ("fused", 8 * 32 * 4 * (plan.data > 1))):
        planned = dataclasses.replace(plan, update=update)
        assert state_bytes(WORK, UNIT, 8, planned) == own + gathered


def test_the_best_plan_uses_all_chips_and_fits():
    work = Work(MODELS["gemma2_9b"], 131072, 64, 131072, 1024, 6)
    for chips in (8, 64, 512):
        plan = best(work, CHIPS["v5e"], chips)
        assert plan is not None
        assert plan.data * plan.latent == chips == plan.lm_groups * plan.lm_split
        assert state_bytes(work, CHIPS["v5e"], chips, plan) < CHIPS["v5e"].hbm_bytes


def test_a_dictionary_that_is_too_large_has_no_plan():
    # 16 · 2 · n · d bytes of state over 8 chips: 15 GB each.
    work = Work(MODELS["gemma2_9b"], 1048576, 64, 131072, 1024, 6)
    assert best(work, CHIPS["v5e"], 8) is None
    assert best(work, CHIPS["v5p"], 8) is not None


def test_arithmetic_alone_scales_perfectly_and_links_stop_it():
    work = Work(MODELS["llama31_8b"], 131072, 64, 2**22, 1024, 6)
    endless = dataclasses.replace(
        CHIPS["v5p"], hbm_rate=1e30, ici_rate=1e30, dcn_rate=1e30, hbm_bytes=1e30
    )
    plans, stop = scaling(work, endless)
    assert stop is None
    assert plans[8].capture.arithmetic / plans[4096].capture.arithmetic == pytest.approx(512)
    slow = dataclasses.replace(CHIPS["v5p"], ici_rate=CHIPS["v5p"].ici_rate / 1000)
    _, stop = scaling(work, slow)
    assert stop is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 33}, "multiple"),
        ({"latents": 0}, "latents"),
        ({"products": 7}, "at most 6"),
        ({"updates": ("adam",)}, "some of fused, optax"),
    ],
)
def test_work_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(WORK, **changes)


def test_the_program_says_what_it_is_and_where_it_stops():
    arguments = ["--tpus=v5e", "--models=gemma2_9b", "--latents=131072"]
    command = [sys.executable, "-m", "tpu.step_time", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing was run on a TPU" in done.stdout
    # A header and ten numbers of chips; a header and one row that sums them up.
    assert done.stdout.count("\n| ") == 1 + 10 + 2
    assert "\nStops scaling at " in done.stdout


@pytest.mark.parametrize("products", MARKS)
def test_the_readmes_tables_are_what_the_program_prints(products):
    works = [
        (tpu, name, Work(model, latents, 64, 131072, 1024, products))
        for (name, model), latents, tpu in itertools.product(
            MODELS.items(), (131072, 1048576), CHIPS
        )
    ]
    begin, end = MARKS[products]
    assert f"{begin}\n\n{summaries(works)}\n\n{end}" in README.read_text()
