import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emojax_kernels import decode_error, sparse_decode
from emojax_kernels.shapes import EDGES, Shape
from kernel_problems import assert_close, code, dictionary


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["plain", "odd_width", "odd_k", "one_token"])
def test_equals_the_reference_with_every_gradient(name, dtype):
    shape = EDGES[name]
    values, indices = code(shape, dtype=dtype)
    x, _, _, w, b = dictionary(shape, dtype=dtype)

    def loss(implementation):
        def of(values, w, b, x):
            squared, error = decode_error(values, indices, w, b, x, implementation=implementation)
            weights = jnp.sin(jnp.arange(x.size)).reshape(x.shape)
            return squared.mean() + (error.astype(jnp.float32) * weights).sum()

        return of

    inputs = (values, w, b, x)
    got = jax.jit(jax.value_and_grad(loss(None), argnums=range(4)))(*inputs)
    want = jax.jit(jax.value_and_grad(loss("reference"), argnums=range(4)))(*inputs)
    assert_close(got, want, dtype)


def test_is_the_decoder_minus_x():
    shape = EDGES["plain"]
    values, indices = code(shape)
    x, _, _, w, b = dictionary(shape)
    squared, error = decode_error(values, indices, w, b, x)
    want = sparse_decode(values, indices, w, b) - x
    np.testing.assert_allclose(error, want, atol=1e-6)
    np.testing.assert_allclose(squared, (want**2).sum(1), rtol=1e-5)


def test_no_tokens_and_a_row_of_nan():
    values, indices = code(Shape(0, 16, 64, 4))
    x, _, _, w, b = dictionary(Shape(0, 16, 64, 4))
    squared, error = decode_error(values, indices, w, b, x)
    assert squared.shape == (0,) and error.shape == (0, 16)
    values, indices = code(Shape(3, 16, 64, 4))
    x = jnp.zeros((3, 16)).at[1, 0].set(jnp.nan)
    squared, _ = decode_error(values, indices, w, b, x)
    np.testing.assert_array_equal(np.isnan(squared), [False, True, False])


def test_errors_name_what_is_supported():
    values, indices = code(EDGES["plain"])
    x, _, _, w, b = dictionary(EDGES["plain"])
    with pytest.raises(ValueError, match="x does not fit"):
        decode_error(values, indices, w, b, x[:-1])
    with pytest.raises(TypeError, match="x bfloat16; supported: all of them float32"):
        decode_error(values, indices, w, b, x.astype("bfloat16"))
