import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import ragged, tiny

from emojax.lm import attention, decoder
from emojax.lm.capture import Tap, capture


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["gemma3", "llama_gqa_tied", "gpt2"])
def test_padding_changes_nothing(name):
    config, params = tiny(name)
    row = np.random.default_rng(0).integers(3, 97, 20)
    plain = decoder.logits(config, params, jnp.asarray(row[None]), jnp.ones((1, 20), bool))[0]
    for before in (0, 5, 12):
        tokens = np.pad(row[None], ((0, 0), (before, 12 - before)), constant_values=7)
        mask = np.pad(np.ones((1, 20), bool), ((0, 0), (before, 12 - before)))
        padded = decoder.logits(config, params, jnp.asarray(tokens), jnp.asarray(mask))
        np.testing.assert_allclose(padded[0, before : before + 20], plain, atol=2e-5)


@pytest.mark.smoke
def test_no_token_sees_a_later_one():
    config, params = tiny("llama_mha")
    tokens, mask = jnp.arange(3, 15)[None], jnp.ones((1, 12), bool)

    def logit_sum(embed, t):
        return decoder.logits(config, params | {"embed": embed}, tokens, mask)[0, t].sum()

    for t in (0, 5, 11):
        reached = jnp.abs(jax.grad(logit_sum)(params["embed"], t)[tokens[0]]).max(axis=-1)
        assert (reached[: t + 1] > 0).all() and (reached[t + 1 :] == 0).all()


@pytest.mark.smoke
def test_layers_of_their_own_lie_in_the_stack():
    _, params = tiny("gemma3")
    apart = decoder.by_layer(params)
    assert apart.keys() == params.keys() and len(apart["layers"]) == 4
    for number, (layer, p) in enumerate(apart["layers"]):
        assert int(layer) == number and p.keys() == params["layers"].keys()
        for name, a in p.items():
            stack = params["layers"][name]
            np.testing.assert_array_equal(a, stack[number])
            if a.nbytes % 64 == 0:  # what JAX on a CPU takes without a copy
                start = stack.unsafe_buffer_pointer() + number * a.nbytes
                assert a.unsafe_buffer_pointer() == start
    # Traced parameters stay as they are.
    kept = jax.eval_shape(decoder.by_layer, params)
    assert jax.tree.structure(kept) == jax.tree.structure(params)


@pytest.mark.smoke
def test_a_window_ends_where_it_says():
    config, params = tiny("gemma3_untied", n_layers=1)
    assert config.windows == (8,)
    tokens, mask = jnp.arange(3, 23)[None], jnp.ones((1, 20), bool)

    def logit_sum(embed):
        return decoder.logits(config, params | {"embed": embed}, tokens, mask)[0, -1].sum()

    reached = jnp.abs(jax.grad(logit_sum)(params["embed"])[tokens[0]]).max(axis=-1)
    assert (reached[-8:] > 0).all() and (reached[:-8] == 0).all()


@pytest.mark.smoke
def test_long_rows_in_blocks_of_queries(monkeypatch):
    config, params = tiny("gemma3")
    tokens, mask = map(jnp.asarray, ragged(config, 3, 30, "left"))
    whole = decoder.logits(config, params, tokens, mask)
    monkeypatch.setattr(attention, "_BLOCK", 7)
    blocks = decoder.logits(config, params, tokens, mask)
    np.testing.assert_allclose(blocks[mask], whole[mask], atol=2e-5)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["gemma3", "llama_mha"])
def test_the_module_is_the_functions(name):
    config, params = tiny(name)
    tokens, mask = map(jnp.asarray, ragged(config, 2, 9, "right"))
    model = decoder.Decoder(config, params)
    graphdef, state = nnx.split(model)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(params))
    expected = decoder.logits(config, params, tokens, mask)
    np.testing.assert_array_equal(nnx.merge(graphdef, state)(tokens, mask), expected)
    jitted = nnx.jit(lambda model, tokens, mask: model(tokens, mask))
    np.testing.assert_allclose(jitted(model, tokens, mask), expected, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, model.pure_params(), params)


@pytest.mark.smoke
def test_bfloat16_parameters_compute_in_bfloat16():
    config, params = tiny("gemma3")
    tokens, mask = map(jnp.asarray, ragged(config, 2, 9, "right"))
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    read = capture(config, half, tokens, mask, [Tap(3)])[Tap(3)]
    assert read.dtype == jnp.bfloat16
    full = capture(config, params, tokens, mask, [Tap(3)])[Tap(3)]
    error = jnp.linalg.norm(read.astype(jnp.float32) - full) / jnp.linalg.norm(full)
    assert 0 < error < 0.05
