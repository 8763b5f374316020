import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sae_toys import SAE, D, K, N, activations
from scipy.optimize import minimize

from emojax.errors import UserError
from emojax.sae import coder
from emojax.sae.coder import SaeConfig, SparseAutoencoder

pytestmark = pytest.mark.smoke


def dictionary(config: SaeConfig = SAE) -> SparseAutoencoder:
    """Not tied and with biases, so that nothing hides behind a zero."""
    keys = jax.random.split(jax.random.key(3), 4)
    sae = coder.init(config, 0.1 * jax.random.normal(keys[0], (D,)))
    return dataclasses.replace(
        sae,
        w_enc=jax.random.normal(keys[1], (N, D)),
        b_enc=0.2 * jax.random.normal(keys[2], (N,)),
    )


def by_hand(sae: SparseAutoencoder, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dense codes and reconstruction, from the equations, in float64."""
    w_enc, b_enc, w_dec, b_dec = (
        np.asarray(a, np.float64) for a in (sae.w_enc, sae.b_enc, sae.w_dec, sae.b_dec)
    )
    x = x.astype(np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True) if sae.config.input_scale != "none" else 1.0
    pre = (x / norm - b_dec) @ w_enc.T + b_enc
    lowest = np.sort(pre, axis=1)[:, -sae.config.k][:, None]
    code = np.where(pre >= lowest, np.maximum(pre, 0), 0)
    return code, (code @ w_dec + b_dec) * norm


@pytest.mark.parametrize("input_scale", ["unit_norm", "none"])
def test_encode_and_reconstruct_follow_the_equations(input_scale):
    sae = dictionary(dataclasses.replace(SAE, input_scale=input_scale))
    x = activations(40)
    code, made = by_hand(sae, x)
    codes = coder.encode(sae, jnp.asarray(x))
    np.testing.assert_allclose(coder.dense(codes, N), code, rtol=1e-4, atol=1e-4 * code.max())
    np.testing.assert_allclose(
        coder.reconstruct(sae, x), made, rtol=1e-4, atol=1e-4 * abs(made).max()
    )
    assert np.all(np.diff(codes.values, axis=1) <= 0)
    assert codes.values.shape == (40, K)


def test_decode_is_linear_in_codes_plus_the_bias():
    sae = dictionary()
    codes = coder.encode(sae, jnp.asarray(activations(7)))
    dense = np.asarray(coder.dense(codes, N))
    np.testing.assert_allclose(
        coder.decode(sae, codes), dense @ np.asarray(sae.w_dec) + sae.b_dec, rtol=1e-5, atol=1e-6
    )


def test_unit_norm_reads_directions_and_gives_norms_back():
    sae, x = dictionary(), jnp.asarray(activations(9))
    small, large = coder.encode(sae, x), coder.encode(sae, 1000 * x)
    np.testing.assert_allclose(small.values, large.values, rtol=1e-4, atol=1e-6)
    made = coder.reconstruct(sae, x)
    np.testing.assert_allclose(
        coder.reconstruct(sae, 1000 * x), 1000 * made, rtol=1e-3, atol=1e-2 * float(abs(made).max())
    )
    assert np.isfinite(coder.reconstruct(sae, jnp.zeros((1, D)))).all()
    assert coder.reconstruct(sae, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_untrained_dictionary_is_tied_with_unit_rows_and_follows_the_seed():
    sae = coder.init(SAE, jnp.ones(D))
    np.testing.assert_allclose(np.linalg.norm(sae.w_dec, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(sae.w_enc, sae.w_dec)
    np.testing.assert_array_equal(coder.init(SAE, jnp.ones(D)).w_dec, sae.w_dec)
    other = coder.init(dataclasses.replace(SAE, seed=1), jnp.ones(D))
    assert not np.allclose(other.w_dec, sae.w_dec)


def test_geometric_median_minimises_the_summed_distance():
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    x[:6] += 50  # outliers that drag the mean
    found = np.asarray(coder.geometric_median(jnp.asarray(x)))
    best = minimize(lambda c: np.linalg.norm(x - c, axis=1).sum(), found).x
    np.testing.assert_allclose(found, best, atol=1e-2)
    assert np.linalg.norm(found) < 1 < np.linalg.norm(x.mean(axis=0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": N + 1}, "k is 65"),
        ({"k": 0}, "k is 0"),
        ({"n_latents": -1}, "n_latents is -1"),
        ({"layer": -1}, "layer is -1"),
        ({"architecture": "softmax"}, "architecture 'softmax'"),
        ({"input_scale": "rms"}, "input_scale 'rms'"),
        ({"max_active": 1}, "max_active is 1"),
        ({"prefixes": (8, 8)}, "do not rise"),
        ({"target_site": "mlp_out"}, "sae.input_scale"),
    ],
)
def test_impossible_configs_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(SAE, **change)


def test_shapes_are_checked():
    sae = dictionary()
    with pytest.raises(Exception, match=r"[Tt]ype-check|shape"):
        dataclasses.replace(sae, b_enc=jnp.zeros(N + 1))
