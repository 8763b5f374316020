import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emojax_kernels import topk_encode
from emojax_kernels.shapes import EDGES, Shape
from emojax_kernels.topk_encode import xla
from kernel_problems import assert_close, dictionary

pytestmark = pytest.mark.smoke


def loss(implementation, k):
    """Reads every value with its own weight, so that every cotangent differs."""

    def of(x, w, b):
        values, _ = topk_encode(x, w, b, k, implementation=implementation)
        weights = jnp.cos(jnp.arange(values.size, dtype=jnp.float32)).reshape(values.shape)
        return (values.astype(jnp.float32) ** 2 * weights).sum()

    return of


@pytest.mark.parametrize("name", EDGES)
def test_equals_the_reference(name):
    shape = EDGES[name]
    x, w, b, _, _ = dictionary(shape)
    want = topk_encode(x, w, b, shape.k, implementation="reference")
    got = topk_encode(x, w, b, shape.k)
    assert_close(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("name", EDGES)
def test_every_gradient_equals_the_references(name):
    shape = EDGES[name]
    inputs = dictionary(shape)[:3]
    want = jax.jit(jax.grad(loss("reference", shape.k), argnums=(0, 1, 2)))(*inputs)
    got = jax.jit(jax.grad(loss(None, shape.k), argnums=(0, 1, 2)))(*inputs)
    assert_close(got, want)
    assert all(float(jnp.abs(g).max()) > 0 for g in got)


def test_bfloat16_rounds_the_preactivations_once():
    shape = EDGES["plain"]
    inputs = dictionary(shape, dtype="bfloat16")[:3]
    values, indices = topk_encode(*inputs, shape.k)
    assert values.dtype == jnp.bfloat16 and indices.dtype == jnp.int32
    want = topk_encode(*inputs, shape.k, implementation="reference")
    assert_close(values, want[0], "bfloat16")
    got = jax.jit(jax.grad(loss(None, shape.k), argnums=(0, 1, 2)))(*inputs)
    assert_close(
        got, jax.jit(jax.grad(loss("reference", shape.k), argnums=(0, 1, 2)))(*inputs), "bfloat16"
    )


@pytest.mark.parametrize("n, group", [(640, 8), (641, 16), (1000, 32)])
@pytest.mark.parametrize("distinct", [1, 3, 50])
def test_two_stage_selection_keeps_ties_in_order(n, group, distinct):
    pre = np.random.default_rng(n).integers(0, distinct, (32, n)).astype(np.float32)
    got = xla.select_by_groups(jnp.asarray(pre), 20, group)
    want = jax.lax.top_k(jnp.asarray(pre), 20)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("n", [64, 4096])
def test_ties_never_name_a_latent_twice(n):
    x = jnp.ones((4, 8))
    _, indices = topk_encode(x, jnp.ones((n, 8)), jnp.zeros(n), 16)
    np.testing.assert_array_equal(indices, np.tile(np.arange(16), (4, 1)))


@pytest.mark.parametrize("n", [64, 4096])
def test_fewer_positive_preactivations_than_slots(n):
    x, w, _, _, _ = dictionary(Shape(16, 24, n, 8))
    b = jnp.full(n, -1e3).at[:3].set(1e3)
    values, indices = topk_encode(x, w, b, 8)
    assert (values[:, :3] > 0).all() and (values[:, 3:] == 0).all()
    assert all(len(set(row.tolist())) == 8 for row in indices)
    assert int(indices.min()) >= 0 and int(indices.max()) < n
    got = jax.jit(jax.grad(loss(None, 8), argnums=(0, 1, 2)))(x, w, b)
    assert_close(got, jax.jit(jax.grad(loss("reference", 8), argnums=(0, 1, 2)))(x, w, b))
    assert not got[1][3:].any()


def test_a_latent_hit_by_every_token_and_one_by_none():
    x, w, b, _, _ = dictionary(EDGES["plain"])
    b = b.at[5].set(100.0).at[9].set(-100.0)
    _, indices = topk_encode(x, w, b, 8)
    assert (indices[:, 0] == 5).all() and not (indices == 9).any()
    got = jax.jit(jax.grad(loss(None, 8), argnums=(1, 2)))(x, w, b)
    assert_close(got, jax.jit(jax.grad(loss("reference", 8), argnums=(1, 2)))(x, w, b))
    assert got[0][5].any() and not got[0][9].any() and got[1][9] == 0


def test_no_tokens():
    x, w, b, _, _ = dictionary(Shape(0, 16, 4096, 4))
    values, indices = topk_encode(x, w, b, 4)
    assert values.shape == indices.shape == (0, 4)
    d_x, d_w, d_b = jax.grad(loss(None, 4), argnums=(0, 1, 2))(x, w, b)
    assert d_x.shape == (0, 16) and not d_w.any() and not d_b.any()


@pytest.mark.parametrize("n", [64, 4096])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_stays_alone(n, bad):
    x, w, b, _, _ = dictionary(Shape(6, 16, n, 4))
    spoilt = x.at[2, 3].set(bad)
    got, want = topk_encode(spoilt, w, b, 4), topk_encode(x, w, b, 4)
    others = np.array([0, 1, 3, 4, 5])
    np.testing.assert_array_equal(got[0][others], want[0][others])
    np.testing.assert_array_equal(got[1][others], want[1][others])
    assert (np.isnan(got[0][2]) if np.isnan(bad) else np.isinf(got[0][2])).all()
    assert len(set(got[1][2].tolist())) == 4 and (got[1][2] < n).all()


def test_memory_is_bounded_by_blocks_of_tokens(monkeypatch):
    shape = EDGES["plain"]
    x, w, b, _, _ = dictionary(shape)
    want = topk_encode(x, w, b, shape.k)
    monkeypatch.setattr(xla, "ELEMENTS", 5 * shape.n)  # 16 tokens: three blocks and one over
    got = xla.topk_encode(x, w, b, shape.k)
    assert_close(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_works_under_vmap_and_jit():
    shape = EDGES["plain"]
    x, w, b, _, _ = dictionary(shape)
    pair = jnp.stack([x, x[::-1]])
    of = jax.jit(jax.vmap(jax.grad(loss(None, 8), argnums=1), in_axes=(0, None, None)))
    want = jnp.stack([jax.grad(loss("reference", 8), argnums=1)(rows, w, b) for rows in pair])
    assert_close(of(pair, w, b), want)


def test_errors_name_what_is_supported():
    x, w, b, _, _ = dictionary(EDGES["plain"])
    with pytest.raises(ValueError, match=r"w_enc does not fit; supported: .*w_enc \[n, d\]"):
        topk_encode(x, w[:, :-1], b, 8)
    with pytest.raises(ValueError, match=r"x does not fit"):
        topk_encode(x[0], w, b, 8)
    with pytest.raises(ValueError, match="k=513 with n=512 latents; supported: 1 <= k <= n"):
        topk_encode(x, w, b, 513)
    with pytest.raises(ValueError, match=r"implementation='cuda' is not known; .*'xla'"):
        topk_encode(x, w, b, 8, implementation="cuda")
    with pytest.raises(TypeError, match=r"x float16.*supported: all of them float32 or all"):
        topk_encode(x.astype("float16"), w.astype("float16"), b, 8)
    with pytest.raises(TypeError, match="x float32, w_enc bfloat16; supported"):
        topk_encode(x, w.astype("bfloat16"), b, 8)
    with pytest.raises(TypeError, match="b_enc is int32; supported: float32"):
        topk_encode(x, w, b.astype("int32"), 8)
