import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import ragged, tiny

from emojax.errors import UserError
from emojax.lm import decoder, intervene, loss
from emojax.lm.capture import Tap, capture
from emojax.lm.loss import Splice, divergence, next_token_loss

pytestmark = pytest.mark.smoke


def problem(name="gemma3", side="right"):
    config, params = tiny(name)
    return config, params, *ragged(config, 3, 14, side)


def by_logits(config, params, tokens, mask):
    logits = decoder.logits(config, params, jnp.asarray(tokens), jnp.asarray(mask))
    logprobs = jax.nn.log_softmax(logits)[:, :-1]
    chosen = jnp.take_along_axis(logprobs, jnp.asarray(tokens)[:, 1:, None], axis=-1)[..., 0]
    return np.where(mask[:, 1:] & mask[:, :-1], -chosen, 0.0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gemma3", "llama_mha"])
def test_it_is_the_cross_entropy_of_the_logits(name, side, monkeypatch):
    args = problem(name, side)
    expected = by_logits(*args)
    np.testing.assert_allclose(next_token_loss(*args), expected, atol=1e-5)
    # In chunks that do not divide the tokens.
    monkeypatch.setattr(loss, "_LOGITS", 97 * 5)
    jax.clear_caches()
    np.testing.assert_allclose(next_token_loss(*args), expected, atol=1e-5)


def test_logits_are_never_all_in_memory(monkeypatch):
    config, params = tiny("gemma3", n_layers=1)
    wide = dataclasses.replace(config, vocab_size=50_000)
    params = params | {"embed": jnp.zeros((50_000, 32))}
    monkeypatch.setattr(loss, "_LOGITS", 50_000 * 16)
    tokens, mask = jnp.ones((4, 65), jnp.int32), jnp.ones((4, 65), bool)
    args = (params, tokens, mask, (), jnp.asarray(0), None)
    compiled = loss._loss.lower(wide, None, None, *args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 64 * 50_000 * 4 / 4


def scaled(args, h):
    return h * args["scale"] + args["shift"]


def test_a_splice_is_the_intervention_that_does_the_same():
    args = problem()
    plain = next_token_loss(*args)
    same = Splice(Tap(2), scaled, {"scale": 1.0, "shift": 0.0})
    np.testing.assert_array_equal(next_token_loss(*args, splice=same), plain)
    for layer in (0, 2):
        spliced = next_token_loss(
            *args, splice=Splice(Tap(layer), scaled, {"scale": 0.5, "shift": 0.0})
        )
        edit = intervene.direction("scale", np.ones(32), layer=layer, strength=0.5)
        np.testing.assert_allclose(spliced, next_token_loss(*args, [edit]), atol=1e-5)
        assert (np.asarray(spliced) != plain).any()


def test_other_layers_and_arguments_of_a_splice_do_not_compile_again():
    args = problem()
    next_token_loss(*args, splice=Splice(Tap(2), scaled, {"scale": 1.0, "shift": 0.0}))
    before = loss._loss._cache_size()
    next_token_loss(*args, splice=Splice(Tap(1), scaled, {"scale": 0.3, "shift": 2.0}))
    assert loss._loss._cache_size() == before


@pytest.mark.parametrize("side", ["left", "right"])
def test_divergence_is_the_textbook_sum_and_nothing_at_padding(side, monkeypatch):
    config, params, tokens, mask = problem(side=side)
    splice = Splice(Tap(config.n_layers - 1, "final_norm"), scaled, {"scale": 2.0, "shift": 0.0})
    h = decoder.normed(
        config, params, jnp.asarray(tokens), jnp.asarray(mask), lambda site, layer, h: h
    )
    p, q = (jax.nn.log_softmax(decoder.unembed(config, params, x)) for x in (h, 2 * h))
    wanted = jnp.sum(jnp.exp(p) * (p - q), axis=-1)[:, :-1]
    wanted = np.where(mask[:, 1:] & mask[:, :-1], wanted, 0)
    assert wanted.max() > 1e-3
    np.testing.assert_allclose(divergence(*problem(side=side), splice), wanted, atol=1e-5)
    # In chunks that do not divide the tokens.
    monkeypatch.setattr(loss, "_LOGITS", 2 * 97 * 5)
    jax.clear_caches()
    np.testing.assert_allclose(divergence(*problem(side=side), splice), wanted, atol=1e-5)


def test_gradients_reach_a_splice_and_the_parameters():
    config, params, tokens, mask = problem()

    def total(args, params):
        splice = Splice(Tap(1), scaled, args)
        return next_token_loss(config, params, tokens, mask, splice=splice).sum()

    args = {"scale": jnp.asarray(0.8), "shift": jnp.full(32, 0.1)}
    gradients = jax.grad(total, argnums=(0, 1))(args, params)
    for leaf in jax.tree.leaves(gradients):
        assert jnp.isfinite(leaf).all() and (leaf != 0).any()
    with jax.default_matmul_precision("highest"):
        more, less = (total(args | {"scale": 0.8 + e}, params) for e in (1e-2, -1e-2))
    np.testing.assert_allclose(gradients[0]["scale"], (more - less) / 2e-2, rtol=1e-2)


def test_a_splice_that_does_not_fit():
    args = problem()
    with pytest.raises(UserError, match="layer 9"):
        next_token_loss(*args, splice=Splice(Tap(9), scaled, {}))
    with pytest.raises(UserError, match="'attention'"):
        next_token_loss(*args, splice=Splice(Tap(1, "attention"), scaled, {}))
    with pytest.raises(UserError, match="layer 9"):
        divergence(*args, Splice(Tap(9), scaled, {}))
    with pytest.raises(UserError, match="no tokens"):
        next_token_loss(*args[:3], np.zeros_like(args[3]))


def test_an_ablated_last_layer_is_worth_as_much_as_its_mean():
    """Setting the last residual to what was captured changes nothing, so splice and tap agree."""
    config, params, tokens, mask = problem()
    h = capture(config, params, tokens, mask, [Tap(2, "resid_mid")])[Tap(2, "resid_mid")]
    splice = Splice(Tap(2, "resid_mid"), replaced, h)
    found = next_token_loss(config, params, tokens, mask, splice=splice)
    expected = next_token_loss(config, params, tokens, mask)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def replaced(args, h):
    return args
