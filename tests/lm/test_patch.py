"""Patches from runs whose rows differ in length and in where their padding is."""

import jax
import numpy as np
import pytest
from tiny_models import ragged, tiny, tiny_lm

from emojax.errors import UserError
from emojax.lm import capture as capturing
from emojax.lm import intervene
from emojax.lm.capture import Tap, capture
from emojax.lm.generate import GenerateSettings, generate
from emojax.lm.intervention_checks import prepare
from emojax.lm.loss import next_token_loss
from emojax.lm.run_with_cache import run_with_cache

pytestmark = pytest.mark.smoke

BATCH, TIME = 3, 10
TAP = Tap(1)
LAST = Tap(3, "final_norm")
# A sentence that says what, where, and what to do.
MISFIT = (
    r"^Intervention 1 of 1 \(at resid_post, layer 1\): row 1 has 3 tokens and the run whose "
    r"activations it gets 5, so that only one has position 3; patch rows .*positions=\(0, 3\)\.$"
)


def run(lengths, side, interventions=(), seed=0, time=TIME, taps=(TAP, LAST)):
    """A run of random rows with so many tokens, padded on a side; its mask too."""
    config, params = tiny("gemma3")
    rng = np.random.default_rng(seed)
    mask = np.arange(time) < np.array(lengths)[:, None]
    mask = mask if side == "right" else mask[:, ::-1]
    tokens = np.zeros((len(lengths), time), np.int32)
    tokens[mask] = rng.integers(3, config.vocab_size, mask.sum())
    read = capture(config, params, tokens, mask, list(taps), interventions)
    return {tap: np.asarray(values) for tap, values in read.items()}, mask


def of_row(read, mask, row):
    """What a run read of a row's real tokens."""
    return {tap: values[row][mask[row]] for tap, values in read.items()}


@pytest.mark.parametrize("target", ["left", "right"])
@pytest.mark.parametrize("source", ["left", "right"])
def test_runs_are_aligned_by_their_first_real_tokens(source, target):
    lengths = [10, 4, 7]
    theirs, mask = run(lengths, source, seed=1, time=TIME + 2)
    whole = intervene.patch(theirs[TAP], mask, layer=1)
    found, own = run(lengths, target, [whole])
    for row in range(BATCH):
        expected, patched = of_row(theirs, mask, row), of_row(found, own, row)
        np.testing.assert_array_equal(patched[TAP], expected[TAP])
        # The stream carries all that later layers read, so the rest of the run is the other's.
        np.testing.assert_allclose(patched[LAST], expected[LAST], atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_row_is_patched_where_both_have_tokens(side):
    plain, mask = run([6, 3, 9], side)
    other = intervene.patch(
        plain[TAP][1], mask[1], layer=1, rows=[1, 0, 0.5], positions=([0, 0, 1], [3, 9, 2])
    )
    found, _ = run([6, 3, 9], side, [other])
    source = of_row(plain, mask, 1)[TAP]
    for row, expected in enumerate(of_row(plain, mask, row)[TAP].copy() for row in range(3)):
        if row == 0:
            expected[:3] = source
        if row == 2:
            expected[1] = (expected[1] + source[1]) / 2
        np.testing.assert_allclose(of_row(found, mask, row)[TAP], expected, atol=1e-6)


def chosen(*positions):
    return np.isin(np.arange(12), positions)


FITS = {
    "positions that both have": {"positions": (0, 3)},
    "up to where the shorter ends": {"positions": ([0, 0], [99, 3])},
    "a mask that both have": {"positions": chosen(0, 2)},
    "beyond both": {"positions": chosen(0, 2, 7)},
    "a row that is not patched": {"rows": [1.0, 0.0]},
    "generated tokens alone": {"phase": "generated"},
}
DOES_NOT_FIT = {
    "every position": {},
    "a range": {"positions": (3, 99)},
    "a range of that row": {"positions": ([0, 2], [5, 4])},
    "a mask": {"positions": chosen(1, 3)},
    "a mask of that row": {"positions": np.stack([chosen(0), chosen(3, 4)])},
    "a little": {"rows": 0.1},
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("why", [*FITS, *DOES_NOT_FIT])
def test_rows_of_different_length_need_positions_that_both_have(why, side, monkeypatch):
    theirs, mask = run([5], side, seed=1)
    swap = intervene.patch(theirs[TAP][0], mask[0], layer=1, **(FITS | DOES_NOT_FIT)[why])
    if why in FITS:
        before, own = run([5, 3], side)
        after, _ = run([5, 3], side, [swap])
        same = before[TAP][1] == after[TAP][1]
        assert same[own[1]][1].all() == (why != "positions that both have" and "up" not in why)
    else:
        monkeypatch.setattr(capturing, "_dispatch", None)  # before anything is compiled
        with pytest.raises(UserError, match=MISFIT):
            run([5, 3], side, [swap])


def test_the_other_way_round():
    theirs, mask = run([3], "right", seed=1)
    swap = intervene.patch(theirs[TAP][0, :3], True, layer=1)
    with pytest.raises(UserError, match=r"row 0 has 5 tokens and .* gets 3, .* position 3; "):
        run([5, 3], "right", [swap])
    named = intervene.patch(theirs[TAP], mask, layer=1)
    with pytest.raises(UserError, match=r"values has shape \(1, 10, 32\)"):
        run([3, 3], "right", [named])


def test_the_same_check_where_text_is_written_and_judged(tmp_path):
    lm = tiny_lm("gemma3", tmp_path)
    _, cache = run_with_cache(lm, [[2, 5, 9, 40, 7], [2, 60, 3]], [TAP])
    swap = cache.patch(TAP, row=0)
    settings = GenerateSettings(max_new_tokens=4, stop_tokens=())
    with pytest.raises(UserError, match=MISFIT):
        generate(lm, [[2] * 5, [2] * 3], settings, [swap])
    with pytest.raises(UserError, match=MISFIT):
        next_token_loss(lm.config, lm.params, cache.tokens, cache.mask, [swap])


def test_tokens_beyond_the_other_run_are_written_as_they_would_be(tmp_path):
    lm = tiny_lm("gemma3", tmp_path)
    rows = [[2, 5, 9, 40, 7], [2, 60, 3, 8, 8]]
    _, cache = run_with_cache(lm, rows, [(0, "resid_pre")])
    settings = GenerateSettings(max_new_tokens=6, temperature=0.0, stop_tokens=())
    # Who reads the other's embeddings writes what the other writes.
    swap = cache.patch((0, "resid_pre"), row=1)
    found = generate(lm, rows, settings, [swap]).tokens
    assert found == [generate(lm, rows[1:], settings).tokens[0]] * 2


def test_a_traced_patch_is_aligned_too():
    config, _ = tiny("gemma3")
    _, mask = ragged(config, BATCH, TIME, "left")
    values = np.random.default_rng(3).normal(size=(BATCH, TIME, 32)).astype(np.float32)
    lengths = mask.sum(axis=1)

    def prepared(values, mask):
        return prepare(config, [intervene.patch(values, mask, layer=1)], lengths, TIME)[0].edit

    jax.tree.map(
        np.testing.assert_array_equal, jax.jit(prepared)(values, mask), prepared(values, mask)
    )


@pytest.mark.parametrize(
    ("place", "row", "message"),
    [
        ("blocks.0.hook_resid_post", 0, "nothing of Tap"),
        (TAP, 2, r"no row 2 to patch with; give one from 0 to 1\.$"),
        (TAP, -1, "no row -1"),
    ],
)
def test_what_a_cache_cannot_patch_with(place, row, message, tmp_path):
    _, cache = run_with_cache(tiny_lm("gemma3", tmp_path), [[2, 5], [2]], [TAP])
    with pytest.raises(UserError, match=message):
        cache.patch(place, row)
