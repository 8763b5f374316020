import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emojax_kernels import sparse_decode, topk_encode
from emojax_kernels.row_products import xla as products
from emojax_kernels.shapes import EDGES, Shape
from kernel_problems import assert_close, code, dictionary

pytestmark = pytest.mark.smoke


def loss(implementation):
    def of(values, indices, w, b):
        out = sparse_decode(values, indices, w, b, implementation=implementation)
        return (out.astype(jnp.float32) ** 2).sum()

    return of


CASES = [(name, "float32") for name in EDGES] + [("plain", "bfloat16"), ("odd_width", "bfloat16")]


@pytest.mark.parametrize("name, dtype", CASES)
def test_equals_the_reference_with_every_gradient(name, dtype):
    shape = EDGES[name]
    values, indices = code(shape, dtype=dtype)
    _, _, _, w, b = dictionary(shape, dtype=dtype)
    inputs = (values, indices, w, b)
    assert_close(sparse_decode(*inputs), sparse_decode(*inputs, implementation="reference"), dtype)
    got = jax.jit(jax.grad(loss(None), argnums=(0, 2, 3)))(*inputs)
    assert_close(got, jax.jit(jax.grad(loss("reference"), argnums=(0, 2, 3)))(*inputs), dtype)


@pytest.mark.parametrize("name", ["plain", "odd_latents"])
def test_dense_products_equal_sparse_ones(name, monkeypatch):
    """What runs where there is no CPU must say the same as what runs on one."""
    shape = EDGES[name]
    values, indices = code(shape)
    x, _, _, w, _ = dictionary(shape)
    monkeypatch.setattr(products, "_DENSE", 5 * shape.n)  # several blocks

    @jax.jit
    def dense(values, indices, x, w):
        return (
            products._gather_sum_dense(values, indices, w),
            products._gather_dot_dense(x, indices, w),
            products._scatter_sum_dense(values, indices, x, shape.n),
            products._latent_sums_dense(values, indices, shape.n),
        )

    @jax.jit
    def sparse(values, indices, x, w):
        return (
            products.gather_sum(values, indices, w),
            products.gather_dot(x, indices, w),
            products.scatter_sum(values, indices, x, shape.n),
            products.latent_sums(values, indices, shape.n),
        )

    assert_close(dense(values, indices, x, w), sparse(values, indices, x, w))


def test_on_a_gpu_the_bias_is_summed_by_a_product():
    """The order of a scatter-add would differ from run to run there."""
    values, indices = code(EDGES["plain"])
    sums = jax.jit(lambda v, i: products.latent_sums(v, i, EDGES["plain"].n))
    program = sums.trace(values, indices).lower(lowering_platforms=("cuda",)).as_text()
    assert "dot_general" in program
    assert "dot_general" not in sums.lower(values, indices).as_text()


def test_a_latent_named_twice_counts_twice():
    w, b = jnp.eye(4), jnp.zeros(4)
    out = sparse_decode(jnp.array([[2.0, 3.0]]), jnp.array([[1, 1]], jnp.int32), w, b)
    np.testing.assert_array_equal(out, [[0, 5, 0, 0]])
    got = jax.jit(jax.grad(loss(None), argnums=2))(
        jnp.array([[2.0, 3.0]]), jnp.array([[1, 1]], jnp.int32), w, b
    )
    assert got[1, 1] == 50 and jnp.count_nonzero(got) == 1


def test_one_latent_for_every_token():
    shape = Shape(64, 32, 512, 1)
    values, _ = code(shape)
    indices = jnp.full((64, 1), 7, jnp.int32)
    _, _, _, w, b = dictionary(shape)
    got = jax.jit(jax.grad(loss(None), argnums=2))(values, indices, w, b)
    assert_close(got, jax.jit(jax.grad(loss("reference"), argnums=2))(values, indices, w, b))
    assert got[7].any() and not jnp.delete(got, 7, axis=0).any()


def test_no_tokens():
    shape = Shape(0, 16, 64, 4)
    values, indices = code(shape)
    _, _, _, w, b = dictionary(shape)
    assert sparse_decode(values, indices, w, b).shape == (0, 16)
    got = jax.jit(jax.grad(loss(None), argnums=(0, 2, 3)))(values, indices, w, b)
    assert got[0].shape == (0, 4) and not got[1].any() and not got[2].any()


def test_autoencoder_gradients_equal_a_dense_autoencoders():
    """All five cotangents of reconstruction loss against a step with no sparse operation in it."""
    shape = Shape(24, 40, 600, 6)
    x, w_enc, b_enc, w_dec, b_dec = dictionary(shape)

    def dense(x, w_enc, b_enc, w_dec, b_dec):
        pre = x @ w_enc.T + b_enc
        least = jax.lax.top_k(pre, shape.k)[0][:, -1:]
        codes = jax.nn.relu(jnp.where(pre >= least, pre, 0))
        return ((codes @ w_dec + b_dec - x) ** 2).mean()

    def sparse(x, w_enc, b_enc, w_dec, b_dec):
        values, indices = topk_encode(x, w_enc, b_enc, shape.k)
        return ((sparse_decode(values, indices, w_dec, b_dec) - x) ** 2).mean()

    inputs = (x, w_enc, b_enc, w_dec, b_dec)
    got = jax.jit(jax.value_and_grad(sparse, argnums=range(5)))(*inputs)
    assert_close(got, jax.jit(jax.value_and_grad(dense, argnums=range(5)))(*inputs))


def test_errors_name_what_is_supported():
    shape = EDGES["plain"]
    values, indices = code(shape)
    _, _, _, w, b = dictionary(shape)
    with pytest.raises(ValueError, match=r"indices does not fit; .*indices \[tokens, k\]"):
        sparse_decode(values, indices[:, :-1], w, b)
    with pytest.raises(ValueError, match="b_dec does not fit"):
        sparse_decode(values, indices, w, b[:-1])
    with pytest.raises(ValueError, match="implementation='mosaic' is not known"):
        sparse_decode(values, indices, w, b, implementation="mosaic")
    with pytest.raises(TypeError, match="indices is float32; supported: int32"):
        sparse_decode(values, indices.astype("float32"), w, b)
    with pytest.raises(TypeError, match="values float32, w_dec bfloat16; supported"):
        sparse_decode(values, indices, w.astype("bfloat16"), b)
