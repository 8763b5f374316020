import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emojax_kernels import jumprelu, step


def test_forward_and_the_papers_gradients():
    pre = jnp.array([[0.2, 1.04, 1.06, -3.0, 0.96, 0.94]])
    threshold = jnp.ones(6)
    np.testing.assert_array_equal(
        jumprelu(pre, threshold, 0.1), [[0, pre[0, 1], pre[0, 2], 0, 0, 0]]
    )
    np.testing.assert_array_equal(step(pre, threshold, 0.1), [[0, 1, 1, 0, 0, 0]])
    d_pre, d_threshold = jax.grad(lambda *a: (3 * jumprelu(*a, 0.1)).sum(), (0, 1))(pre, threshold)
    np.testing.assert_array_equal(d_pre, [[0, 3, 3, 0, 0, 0]])
    # Within half a bandwidth of the threshold: -(1 / 0.1) * 3.
    np.testing.assert_allclose(d_threshold, [0, -30, 0, 0, -30, 0], rtol=1e-6)
    d_pre, d_threshold = jax.grad(lambda *a: (3 * step(*a, 0.1)).sum(), (0, 1))(pre, threshold)
    assert not d_pre.any()
    np.testing.assert_allclose(d_threshold, [0, -30, 0, 0, -30, 0], rtol=1e-6)


def test_on_average_the_pseudo_gradient_is_the_gradient_of_the_expected_loss():
    """What the straight-through estimator is for (section 4 of the paper), on normal draws."""
    pre = jnp.asarray(np.random.default_rng(0).standard_normal((400_000, 1)), jnp.float32)
    threshold = jnp.array([0.7])
    density = np.exp(-0.5 * 0.7**2) / np.sqrt(2 * np.pi)
    d_l0 = jax.grad(lambda t: step(pre, t, 0.1).mean())(threshold)
    np.testing.assert_allclose(d_l0, [-density], rtol=0.02)
    # E[(jumprelu - target)^2] with target z + 1: derivative at t of the part that is cut.
    target = pre + 1
    d_mse = jax.grad(lambda t: ((jumprelu(pre, t, 0.1) - target) ** 2).mean())(threshold)
    # d/dt of int_t (z-z-1)^2 p + int^t (z+1)^2 p = ((t+1)^2 - 1) p(t). The estimator reads the
    # error at either side of the threshold, -(z+1) below and -1 above, and so gives t (t + 2) p(t).
    np.testing.assert_allclose(d_mse, [((0.7 + 1) ** 2 - 1) * density], rtol=0.03)


def test_bfloat16_and_vmap():
    pre = jnp.asarray(np.random.default_rng(1).standard_normal((3, 5, 8)), jnp.bfloat16)
    out = jax.vmap(lambda p: jumprelu(p, jnp.full(8, 0.5), 0.2))(pre)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, jnp.where(pre > 0.5, pre, 0))


def test_what_is_not_finite_and_an_empty_batch():
    pre = jnp.array([[jnp.nan, jnp.inf, -jnp.inf, 2.0]])
    np.testing.assert_array_equal(jumprelu(pre, jnp.ones(4), 0.1), [[np.nan, np.inf, 0, 2]])
    empty = jnp.zeros((0, 4))
    assert jumprelu(empty, jnp.ones(4), 0.1).shape == (0, 4)
    gradients = jax.grad(lambda *a: jumprelu(*a, 0.1).sum(), (0, 1))(empty, jnp.ones(4))
    assert gradients[0].shape == (0, 4) and not gradients[1].any()


def test_errors_name_what_is_supported():
    with pytest.raises(ValueError, match=r"bandwidth=0\.0; supported: a positive number"):
        jumprelu(jnp.ones((2, 3)), jnp.ones(3), 0.0)
    with pytest.raises(ValueError, match="threshold does not fit"):
        step(jnp.ones((2, 3)), jnp.ones(4), 0.1)
    with pytest.raises(TypeError, match="pre int32; supported"):
        jumprelu(jnp.ones((2, 3), jnp.int32), jnp.ones(3), 0.1)
