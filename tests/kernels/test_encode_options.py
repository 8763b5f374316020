"""Mask, threshold and GroupMax: what an encoder selects other than the plain TopK."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emojax_kernels import groupmax_encode, threshold_encode, topk_encode
from emojax_kernels.shapes import Shape
from kernel_problems import assert_close, dictionary

SHAPES = [Shape(16, 40, 512, 8), Shape(7, 33, 1500, 5)]


def gradients(encode, *inputs):
    """Of a sum that gives every value its own weight."""

    def total(*inputs):
        values = encode(*inputs)[0].astype(jnp.float32)
        return (values**2 * jnp.cos(jnp.arange(values.size)).reshape(values.shape)).sum()

    return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*inputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_keeps_to_its_latents(shape):
    """AuxK: the encoder rows of the dead latents, and of no others, receive a gradient."""
    x, w, b, _, _ = dictionary(shape)
    dead = jnp.arange(shape.n) % 7 == 3

    def encode(implementation):
        return lambda x, w, b: topk_encode(
            x, w, b, shape.k, mask=dead, implementation=implementation
        )

    values, indices = encode(None)(x, w, b)
    want = jax.lax.top_k((x @ w.T + b)[:, 3::7], shape.k)
    np.testing.assert_allclose(values, jax.nn.relu(want[0]), rtol=1e-5)
    np.testing.assert_array_equal(indices, want[1] * 7 + 3)
    got = gradients(encode(None), x, w, b)
    assert_close(got, gradients(encode("reference"), x, w, b))
    assert jnp.abs(got[1]).sum(1)[dead].any() and not jnp.abs(got[1]).sum(1)[~dead].any()


def test_a_mask_with_fewer_latents_than_slots():
    x, w, b, _, _ = dictionary(SHAPES[0])
    mask = jnp.zeros(512, bool).at[jnp.array([4, 400])].set(True)
    values, indices = topk_encode(x, w, b + 100, 8, mask=mask)
    assert (values[:, :2] > 0).all() and (values[:, 2:] == 0).all()
    assert set(np.unique(indices[:, :2]).tolist()) == {4, 400}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_threshold_equals_the_reference(shape, masked):
    x, w, b, _, _ = dictionary(shape)
    # Some tokens have fewer latents than slots, some have more.
    x = x * jnp.linspace(0.2, 2, shape.tokens)[:, None]
    threshold = jnp.linspace(1.0, 3.0, shape.n)
    mask = jnp.arange(shape.n) % 5 != 2 if masked else jnp.ones(shape.n, bool)

    def encode(implementation):
        return lambda x, w, b: threshold_encode(
            x,
            w,
            b,
            threshold,
            shape.k,
            mask=mask if masked else None,
            implementation=implementation,
        )

    got, want = encode(None)(x, w, b), encode("reference")(x, w, b)
    assert_close(got[0], want[0])
    np.testing.assert_array_equal(got[2], want[2])
    used = np.asarray(got[0] > 0)
    np.testing.assert_array_equal(np.asarray(got[1])[used], np.asarray(want[1])[used])
    pre = np.asarray(x @ w.T + b)
    np.testing.assert_array_equal(got[2], ((pre > np.asarray(threshold)) & mask).sum(1))
    assert int(got[2].min()) < shape.k < int(got[2].max())
    slopes = gradients(encode(None), x, w, b)
    assert_close(slopes, gradients(encode("reference"), x, w, b))
    assert slopes[1].any() and not slopes[1][~mask].any()


def test_threshold_above_everything_and_a_row_of_nan():
    x, w, b, _, _ = dictionary(SHAPES[0])
    values, indices, count = threshold_encode(x.at[3].set(jnp.nan), w, b, jnp.full(512, 1e6), 8)
    others = np.delete(np.arange(16), 3)
    assert not values[others].any() and not count[others].any()
    assert np.isnan(values[3]).all() and count[3] == 512
    assert int(indices.min()) >= 0 and int(indices.max()) < 512


def test_a_negative_threshold_keeps_no_negative_preactivation():
    x, w, b, _, _ = dictionary(SHAPES[0])
    values, _, count = threshold_encode(x, w, b, jnp.full(512, -9.0), 512)
    np.testing.assert_array_equal(count, (x @ w.T + b > 0).sum(1))
    np.testing.assert_array_equal(count, (values > 0).sum(1))


@pytest.mark.parametrize("shape", [Shape(16, 40, 512, 8), Shape(7, 33, 1500, 5)])
def test_groupmax_equals_a_loop_over_groups(shape):
    x, w, b, _, _ = dictionary(shape)
    pre, size = np.asarray(x @ w.T + b), shape.n // shape.k
    values, indices = groupmax_encode(x, w, b, shape.k)
    for group in range(shape.k):
        part = pre[:, group * size : (group + 1) * size]
        np.testing.assert_array_equal(indices[:, group], part.argmax(1) + group * size)
        np.testing.assert_allclose(values[:, group], np.maximum(part.max(1), 0), rtol=1e-5)

    def encode(implementation):
        return lambda x, w, b: groupmax_encode(x, w, b, shape.k, implementation=implementation)

    assert_close(gradients(encode(None), x, w, b), gradients(encode("reference"), x, w, b))


def test_groupmax_with_a_mask_that_leaves_one_group_nothing():
    shape = SHAPES[0]
    x, w, b, _, _ = dictionary(shape)
    mask = (jnp.arange(shape.n) % 3 != 1).at[64:128].set(False)

    def encode(implementation):
        return lambda x, w, b: groupmax_encode(
            x, w, b, shape.k, mask=mask, implementation=implementation
        )

    values, indices = encode(None)(x, w, b)
    pre = np.where(mask, x @ w.T + b, -np.inf).reshape(shape.tokens, shape.k, 64)
    np.testing.assert_array_equal(indices, pre.argmax(2) + 64 * np.arange(shape.k))
    np.testing.assert_allclose(values, np.maximum(pre.max(2), 0), rtol=1e-5)
    assert not values[:, 1].any() and (indices[:, 1] == 64).all()
    slopes = gradients(encode(None), x, w, b)
    assert_close(slopes, gradients(encode("reference"), x, w, b))
    assert slopes[1].any() and not slopes[1][~mask].any()


def test_errors_name_what_is_supported():
    x, w, b, _, _ = dictionary(SHAPES[0])
    for name, encode in {
        "threshold_encode": functools.partial(threshold_encode, threshold=b, k=8),
        "groupmax_encode": functools.partial(groupmax_encode, k=8),
    }.items():
        with pytest.raises(ValueError, match=rf"{name}: mask is \(511,\); supported: .* \(512,\)"):
            encode(x, w, b, mask=jnp.ones(511, bool))
    with pytest.raises(ValueError, match=r"mask is \(511,\); supported: .* \(512,\)"):
        topk_encode(x, w, b, 8, mask=jnp.ones(511, bool))
    with pytest.raises(TypeError, match="mask is int32; supported: bool"):
        topk_encode(x, w, b, 8, mask=jnp.ones(512, jnp.int32))
    with pytest.raises(ValueError, match="threshold does not fit"):
        threshold_encode(x, w, b, jnp.ones(3), 8)
    with pytest.raises(TypeError, match="threshold is int32; supported: float32"):
        threshold_encode(x, w, b, jnp.ones(512, jnp.int32), 8)
    with pytest.raises(ValueError, match="k=7 with n=512 latents; supported: a k that divides n"):
        groupmax_encode(x, w, b, 7)
