"""TopK encode with candidates scored in 8 bits: the same result, or another way to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emojax_kernels import topk_encode
from emojax_kernels.shapes import Shape
from emojax_kernels.topk_encode import scoring
from kernel_problems import assert_close, dictionary
from test_topk_encode import loss

SHAPE = Shape(48, 83, 1003, 5)
FP8 = "float8_e4m3fn"
encode = jax.jit(functools.partial(topk_encode, k=SHAPE.k, scoring=FP8))
candidates = jax.jit(functools.partial(scoring.candidates, k=SHAPE.k))


def same(got, want):
    np.testing.assert_array_equal(got[1], want[1])
    assert_close(got[0], want[0], str(want[0].dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_the_reference_and_most_tokens_are_certified(dtype):
    # Sums of few rows, as a dictionary's activations are: a wide gap below the k-th latent.
    _, w, b, _, _ = dictionary(SHAPE, dtype=dtype)
    picked = np.random.default_rng(3).integers(0, SHAPE.n, (SHAPE.tokens, SHAPE.k))
    x = w.astype("float32")[picked].sum(1).at[5:8, 0].set(99.0).astype(dtype)
    want = topk_encode(x, w, b * 0, SHAPE.k, implementation="reference")
    values, indices, certified = candidates(x, w, b * 0)
    same((values[certified], indices[certified]), (want[0][certified], want[1][certified]))
    assert 0 < int((~certified).sum()) <= SHAPE.tokens // 8  # some are encoded again
    same(encode(x, w, b * 0), want)


def test_gradients_equal_the_references():
    inputs = dictionary(SHAPE)[:3]

    def scored(x, w, b):
        values, _ = topk_encode(x, w, b, SHAPE.k, scoring=FP8)
        weights = jnp.cos(jnp.arange(values.size, dtype=jnp.float32)).reshape(values.shape)
        return (values.astype(jnp.float32) ** 2 * weights).sum()

    got = jax.jit(jax.grad(scored, argnums=(0, 1, 2)))(*inputs)
    assert_close(got, jax.jit(jax.grad(loss("reference", SHAPE.k), argnums=(0, 1, 2)))(*inputs))


def test_where_eight_bits_choose_wrongly_the_result_is_still_exact():
    """One large coordinate: its rounding is as large as what tells the latents apart."""
    x, w, b, _, _ = dictionary(SHAPE)
    x = x.at[:, 0].set(300.0).at[:, 1].set(0)
    # The second coordinate decides each row's scale, hence how the first is rounded.
    w = w.at[:, 0].set(1.0 + 0.06 * w[:, 0]).at[:, 1].set(2 + jnp.linspace(0, 1, SHAPE.n))
    want = topk_encode(x, w, b, SHAPE.k, implementation="reference")
    _, indices, certified = candidates(x, w, b)
    wrong = (jnp.sort(indices) != jnp.sort(want[1])).any(1)
    assert wrong.any() and not (wrong & certified).any()
    same(encode(x, w, b), want)


def test_ties_rows_that_are_not_finite_and_a_row_of_zeros():
    x, w, b, _, _ = dictionary(SHAPE)
    w = w.at[500:].set(w[:503])  # every latent of the first half has a twin
    x = x.at[1, 2].set(jnp.nan).at[2, 2].set(jnp.inf).at[3].set(0)
    want = topk_encode(x, w, b.at[500:].set(b[:503]), SHAPE.k, implementation="reference")
    got = encode(x, w, b.at[500:].set(b[:503]))
    same([a[3:] for a in got], [a[3:] for a in want])
    same([a[:1] for a in got], [a[:1] for a in want])
    assert np.isnan(got[0][1]).all() and (got[1] < SHAPE.n).all()


def test_a_mask_that_leaves_too_few_and_no_tokens():
    x, w, b, _, _ = dictionary(SHAPE)
    mask = jnp.zeros(SHAPE.n, bool).at[jnp.array([4, 400])].set(True)
    values, indices = topk_encode(x, w, b + 100, SHAPE.k, mask=mask, scoring=FP8)
    assert (values[:, :2] > 0).all() and not values[:, 2:].any()
    assert set(np.unique(indices[:, :2]).tolist()) == {4, 400}
    assert topk_encode(x[:0], w, b, SHAPE.k, scoring=FP8)[0].shape == (0, SHAPE.k)


def test_works_under_vmap():
    x, w, b, _, _ = dictionary(SHAPE)
    pair = jnp.stack([x[:4], 3 * x[4:8]])
    got = jax.jit(jax.vmap(lambda x: topk_encode(x, w, b, SHAPE.k, scoring=FP8)))(pair)
    want = jax.vmap(lambda x: topk_encode(x, w, b, SHAPE.k, implementation="reference"))(pair)
    same(got, want)


def test_errors_name_what_is_supported():
    x, w, b, _, _ = dictionary(SHAPE)
    with pytest.raises(ValueError, match="scoring='int8' with implementation='xla'; supported"):
        topk_encode(x, w, b, SHAPE.k, scoring="int8")
    with pytest.raises(ValueError, match="implementation='reference'; supported: None, or 'float8"):
        topk_encode(x, w, b, SHAPE.k, scoring=FP8, implementation="reference")
