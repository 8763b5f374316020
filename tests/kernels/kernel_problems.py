"""Random codes and dictionaries of a named shape."""

import jax
import jax.numpy as jnp
import numpy as np
from emojax_kernels import decode_error, sparse_decode, topk_encode
from emojax_kernels.shapes import Shape


def dictionary(shape: Shape, seed: int = 0, dtype="float32"):
    """x, w_enc, b_enc, w_dec, b_dec with unit-scale pre-activations."""
    rng = np.random.default_rng(seed)

    def normal(*size, scale=1.0):
        return jnp.asarray(rng.standard_normal(size) * scale, dtype)

    return (
        normal(shape.tokens, shape.d),
        normal(shape.n, shape.d, scale=shape.d**-0.5),
        normal(shape.n, scale=0.1),
        normal(shape.n, shape.d, scale=shape.d**-0.5),
        normal(shape.d),
    )


def code(shape: Shape, seed: int = 0, dtype="float32"):
    """values, indices: as an encoder makes them, distinct latents per token."""
    rng = np.random.default_rng(seed)
    values = -np.sort(-rng.random((shape.tokens, shape.k)), axis=1)
    rows = [rng.choice(shape.n, shape.k, replace=False) for _ in range(shape.tokens)]
    indices = np.asarray(rows, np.int32).reshape(shape.tokens, shape.k)
    return jnp.asarray(values, dtype), jnp.asarray(indices)


def assert_close(got, want, dtype="float32"):
    """Equal up to the order of float32 sums, or to bfloat16's last bits."""
    tolerance = 2e-5 if dtype == "float32" else 4e-2
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        b = np.asarray(b, np.float32)
        scale = max(np.abs(b).max(initial=0), 1e-6)
        np.testing.assert_allclose(np.asarray(a, np.float32) / scale, b / scale, atol=tolerance)


def autoencoder_gradients(implementation, k):
    """Gradients of x, both matrices and both biases, of a loss that reads every operation."""

    def loss(x, w_enc, b_enc, w_dec, b_dec):
        by = {"implementation": implementation}
        values, indices = topk_encode(x, w_enc, b_enc, k, **by)
        squared, error = decode_error(values, indices, w_dec, b_dec, x, **by)
        out = sparse_decode(values, indices, w_dec, b_dec, **by)
        return squared.sum() + (out * error).sum()

    return jax.value_and_grad(loss, argnums=range(5))
