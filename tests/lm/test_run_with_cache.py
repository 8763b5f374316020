import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from tiny_models import tiny_lm

from emojax.errors import UserError
from emojax.lm import decoder, intervene
from emojax.lm.batching import pad
from emojax.lm.capture import Tap
from emojax.lm.run_with_cache import HOOK_NAMES, named, run_with_cache, tap_of

pytestmark = pytest.mark.smoke

ROWS = [[2, 5, 9, 40, 7], [2, 60, 3]]


@pytest.fixture
def lm(tmp_path):
    return tiny_lm("llama_gqa_tied", tmp_path)


def test_logits_and_every_site(lm):
    logits, cache = run_with_cache(lm, ROWS)
    np.testing.assert_array_equal(cache.mask.sum(axis=1), [5, 3])
    np.testing.assert_array_equal(cache.last, [4, 2])
    plain = decoder.logits(lm.config, lm.params, cache.tokens, cache.mask)
    np.testing.assert_allclose(logits[cache.mask], plain[cache.mask], atol=1e-5)
    assert len(cache) == lm.config.n_layers * len(HOOK_NAMES) + 1
    assert set(decoder.SITES) == {tap.site for tap in cache}
    for layer, site in cache:
        width = decoder.site_width(lm.config, site)
        assert cache[layer, site].shape == (2, 5, width)
        assert jnp.any(cache[layer, site] != 0)
    np.testing.assert_array_equal(cache["blocks.1.hook_resid_post"], cache[Tap(1)])
    np.testing.assert_array_equal(cache["blocks.1.hook_resid_post"], cache[2, "resid_pre"])


def test_hook_names_lead_to_their_sites():
    for site, name in HOOK_NAMES.items():
        assert named(name.format(12)) == Tap(12, site)
    for name in ("blocks.x.hook_resid_post", "hook_embed", "blocks.1.hook_resid_posts"):
        with pytest.raises(UserError, match=f"hook name '{name}'.*blocks.N.attn.hook_z"):
            named(name)


def test_places_are_written_in_several_ways():
    for place in (Tap(3, "z"), (3, "z"), ("z", 3), "blocks.3.attn.hook_z"):
        assert tap_of(place, 4) == Tap(3, "z")
    for place in (3, [3, "z"], (3,), None):
        with pytest.raises(UserError, match=r"is no place in a model; give .*or a hook name"):
            tap_of(place, 4)


def test_chosen_taps_and_interventions(lm):
    edit = intervene.ablate(np.zeros(lm.config.d_ff), layer=1, site="mlp_hidden")
    logits, cache = run_with_cache(lm, ROWS, ["blocks.1.mlp.hook_post", (1, "mlp_out")], [edit])
    assert list(cache) == [Tap(1, "mlp_hidden"), Tap(1, "mlp_out")]
    for values in cache.values():
        assert (values[cache.mask] == 0).all()
    assert not np.allclose(logits, run_with_cache(lm, ROWS, [("z", 0)])[0])
    with pytest.raises(UserError, match=r"nothing of Tap.layer=0, site='z'.;"):
        cache["blocks.0.attn.hook_z"]
    for missing in ((0, "z"), "blocks.0.attn.hook_z", "hook_embed"):
        assert missing not in cache
        assert cache.get(missing) is None
        assert cache.get(missing, 5) == 5
    with pytest.raises(UserError, match=r"^There is no site with the hook name 'hook_embed'"):
        cache["hook_embed"]
    for there in (Tap(1, "mlp_out"), (1, "mlp_out"), ("mlp_out", 1), "blocks.1.hook_mlp_out"):
        assert there in cache
        assert cache.get(there) is cache[1, "mlp_out"]


def test_patches_from_a_cache(lm):
    _, cache = run_with_cache(lm, ROWS, [(1, "resid_post")])
    values = cache[1, "resid_post"]
    for swap in (
        cache.patch("blocks.1.hook_resid_post", row=1, rows=[1, 0], positions=(0, 3)),
        intervene.patch(values[1], cache.mask[1], layer=1, rows=[1, 0], positions=(0, 3)),
    ):
        _, patched = run_with_cache(lm, ROWS, [(1, "resid_post")], [swap])
        np.testing.assert_array_equal(patched[1, "resid_post"][0, :3], values[1, :3])
        np.testing.assert_array_equal(patched[1, "resid_post"][0, 3:], values[0, 3:])
    with pytest.raises(UserError, match=r"row 0 has 5 tokens and .* gets 3"):
        run_with_cache(lm, ROWS, [(1, "resid_post")], [cache.patch((1, "resid_post"), row=1)])
    # Each row's own activations, of another run.
    others = [[2, 6, 10, 41, 8], [2, 61, 4]]
    whole = cache.patch((1, "resid_post"))
    _, patched = run_with_cache(lm, others, [(1, "resid_post")], [whole])
    np.testing.assert_array_equal(patched[1, "resid_post"][cache.mask], values[cache.mask])


def test_what_cannot_be_read(lm):
    for prompts, taps, message in (
        ([], None, "no prompt"),
        ("so", None, "A list of texts.* 'so' is a single one; put it in brackets"),
        ([[2], []], None, "Row 1"),
        ([[2]], ["blocks.3.hook_resid_pre"], "layer 3"),
        ([[2]], [(0, "attn")], "site 'attn'"),
    ):
        with pytest.raises(UserError, match=message):
            run_with_cache(lm, prompts, taps)


def test_layers_from_the_last_and_sites_first(lm):
    _, cache = run_with_cache(lm, ROWS, [(-1, "resid_post"), ("mlp_out", 1), Tap(0)])
    assert list(cache) == [Tap(2), Tap(1, "mlp_out"), Tap(0)]
    for same in ((2, "resid_post"), ("resid_post", 2), (-1, "resid_post"), ("resid_post", -1)):
        assert cache[same] is cache[Tap(2)]
    assert cache["mlp_out", -2] is cache["blocks.1.hook_mlp_out"]
    assert (-4, "resid_post") not in cache and (3, "resid_post") not in cache
    for layer in (-4, 3, 1.0, None):
        assert tap_of(("z", layer), 3) == Tap(layer, "z")  # which `capture` refuses by name
    for place in (3, ("resid_post",), (1, "z", 2), None):
        with pytest.raises(UserError, match="is no place in a model"):
            tap_of(place, 3)


def test_prompts_and_taps_that_are_no_lists(lm):
    run = inspect.unwrap(run_with_cache)  # the tests check annotations at every call
    for prompts in ("happy", [2, 9, 10]):
        with pytest.raises(UserError, match="is a single one; put it in brackets"):
            run(lm, prompts)
    for taps in ("blocks.1.hook_resid_post", Tap(1)):
        with pytest.raises(UserError, match="is a single tap where a list is needed"):
            run(lm, ROWS, taps)


def test_an_array_of_tokens_is_read_as_its_rows(lm):
    rows = [[2, 5, 9, 40, 7], [2, 60, 3, 8, 8]]
    expected, _ = run_with_cache(lm, rows, [])
    for array in (np.array(rows), jnp.array(rows)):
        np.testing.assert_array_equal(run_with_cache(lm, array, [])[0], expected)


def test_gradients_flow_to_interventions_and_parameters(lm):
    rng = np.random.default_rng(0)
    vector = jnp.asarray(rng.normal(size=lm.config.d_model), jnp.float32)

    def of_vector(vector):
        """Something of the logits and of an activation after the edit."""
        edit = intervene.direction("add", vector, layer=0, strength=0.5, rows=[1, 0])
        logits, cache = run_with_cache(lm, ROWS, [(1, "z"), (2, "mlp_out")], [edit])
        real = jnp.where(cache.mask[..., None], logits, 0.0)
        return jnp.sum(jnp.sin(real)) + jnp.sum(cache[1, "z"][0] ** 2)

    with jax.default_matmul_precision("highest"):
        check_grads(of_vector, (vector,), order=1, modes="rev", eps=1e-2, rtol=2e-2)
        assert jnp.any(jax.grad(of_vector)(vector) != 0)

    def of_params(params):
        return run_with_cache(dataclasses.replace(lm, params=params), ROWS, [])[0][0, -1, 7]

    def by_hand(params):
        tokens, mask = map(jnp.asarray, pad(ROWS, 2, 5))
        return decoder.logits(lm.config, params, tokens, mask)[0, -1, 7]

    found, expected = jax.grad(of_params)(lm.params), jax.grad(by_hand)(lm.params)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
