import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from emojax_kernels import (
    RowAdam,
    decode_error,
    fused_row_update,
    init_rows,
    topk_encode,
)
from emojax_kernels.fused_row_update import moments, rounding
from emojax_kernels.shapes import EDGES, Shape
from kernel_problems import assert_close, code, dictionary


def unit(rows):
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def problem(shape, settings, dtype="float32"):
    x, w_enc, b_enc, w_dec, _ = dictionary(shape)
    values, indices = code(shape, dtype=dtype)
    error = jnp.asarray(np.random.default_rng(9).standard_normal(x.shape), dtype)
    rows = init_rows(w_enc, b_enc, unit(w_dec), settings)
    return rows, x.astype(dtype), error, values, indices


def step(*inputs, **options):
    """The rows alone."""
    return update(*inputs, **options)[0]


@functools.partial(jax.jit, static_argnames=("settings", "implementation"))
def update(rows, x, error, values, indices, *, settings, implementation=None, rate=1e-3):
    return fused_row_update(
        rows,
        x,
        error,
        values,
        indices,
        learning_rate=rate,
        settings=settings,
        implementation=implementation,
    )


@pytest.mark.parametrize("unit_norm", [True, False])
def test_equals_optax_on_the_gradient_of_an_autoencoder(unit_norm):
    """Three whole training steps: gradients by jax.grad, projection and norms by hand, optax."""
    shape = EDGES["odd_width"]
    settings = RowAdam(b1=0.8, b2=0.95, unit_norm_decoder=unit_norm)
    x, w_enc, b_enc, w_dec, b_dec = dictionary(shape)
    params = {"enc": w_enc, "bias": b_enc, "dec": unit(w_dec)}
    rows = init_rows(params["enc"], params["bias"], params["dec"], settings)
    optimiser = optax.adam(1e-2, b1=0.8, b2=0.95)
    state = optimiser.init(params)

    @jax.jit
    def loss(p, x):
        values, indices = topk_encode(x, p["enc"], p["bias"], shape.k, implementation="reference")
        return decode_error(values, indices, p["dec"], b_dec, x, implementation="reference")[
            0
        ].mean()

    for batch in range(3):
        x = dictionary(shape, seed=batch)[0]
        values, indices = topk_encode(x, rows.w_enc, rows.b_enc, shape.k)
        _, error = decode_error(values, indices, rows.w_dec, b_dec, x)
        scaled = error * (2 / shape.tokens)
        rows = step(rows, x, scaled, values, indices, settings=settings, rate=1e-2)
        gradient = jax.grad(loss)(params, x)
        if unit_norm:
            along = (gradient["dec"] * params["dec"]).sum(1, keepdims=True)
            gradient["dec"] = gradient["dec"] - along * params["dec"]
        updates, state = optimiser.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        if unit_norm:
            params["dec"] = unit(params["dec"])
    got = {"enc": rows.w_enc, "bias": rows.b_enc, "dec": rows.w_dec}
    for name, want in params.items():
        np.testing.assert_allclose(got[name], want, atol=2e-5, err_msg=name)
    assert int(rows.step) == 3


@pytest.mark.parametrize("name", ["odd_width", "odd_latents", "one_token"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_equals_the_reference(name, kind):
    settings = RowAdam(moments=kind, shadow="bfloat16")
    inputs = problem(EDGES[name], settings)
    got, want = (update(*inputs, settings=settings, implementation=i) for i in (None, "reference"))
    # Rounding may fall the other way where the two sums differ in their last bit.
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        scale = np.abs(b).max(initial=1e-6)
        assert (np.abs(a - b) > 2e-5 * scale).mean() < 1e-3
        assert np.abs(a - b).max() <= 0.02 * scale


def test_bfloat16_activations_and_weights():
    settings = RowAdam(moments="bfloat16")
    rows, *rest = problem(EDGES["plain"], settings, dtype="bfloat16")
    rows = dataclasses.replace(
        rows, w_enc=rows.w_enc.astype("bfloat16"), w_dec=rows.w_dec.astype("bfloat16")
    )
    got = step(rows, *rest, settings=settings)
    assert got.w_enc.dtype == got.w_dec.dtype == jnp.bfloat16
    want = step(rows, *rest, settings=settings, implementation="reference")
    assert_close(got.w_dec, want.w_dec, "bfloat16")
    np.testing.assert_allclose(
        np.linalg.norm(np.asarray(got.w_dec, np.float32), axis=1), 1, atol=4e-3
    )


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_what_a_code_is_asked_for_is_the_gradient_of_its_preactivations(implementation):
    """By jax.grad: of the pre-activations, hence of b_enc and, through w_enc, of the input."""
    settings = RowAdam()
    rows, x, error, values, indices = problem(EDGES["odd_latents"], settings)
    # A latent named twice by one token, and slots that are not in use.
    indices = indices.at[3, 1].set(indices[3, 0])
    values = values.at[5, 2:].set(0)
    _, d_pre = update(
        rows, x, error, values, indices, settings=settings, implementation=implementation
    )

    def pull(pre):
        code = jnp.where(values > 0, values + pre, 0)
        return (jnp.einsum("tk,tkd->td", code, rows.w_dec[indices]) * error).sum()

    assert d_pre.dtype == jnp.float32 and not d_pre[5, 2:].any()
    assert_close(d_pre, jax.grad(pull)(jnp.zeros(values.shape)))


def test_a_latent_of_every_token_one_of_none_and_no_tokens():
    settings = RowAdam()
    rows, x, error, values, _ = problem(Shape(64, 16, 128, 1), settings)
    got = step(rows, x, error, values, jnp.full((64, 1), 7, jnp.int32), settings=settings)
    want = (values * error).sum(0)
    want = want - (want @ rows.w_dec[7]) * rows.w_dec[7]
    np.testing.assert_allclose(got.m_dec[7], 0.1 * want, atol=1e-5)
    untouched = np.delete(np.arange(128), 7)
    np.testing.assert_array_equal(got.w_enc[untouched], rows.w_enc[untouched])
    assert not got.m_dec[untouched].any()
    empty = [a[:0] for a in (x, error, values, jnp.zeros((64, 1), jnp.int32))]
    new, d_pre = update(rows, *empty, settings=settings)
    np.testing.assert_array_equal(new.w_enc, rows.w_enc)
    assert d_pre.shape == (0, 1)


def test_a_row_of_zeros_stays_finite():
    settings = RowAdam()
    rows, *rest = problem(EDGES["plain"], settings)
    rows = dataclasses.replace(rows, w_dec=rows.w_dec.at[3].set(0))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(step(rows, *rest, settings=settings)))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_two_runs_are_bitwise_equal_and_the_state_can_be_donated(kind):
    settings = RowAdam(moments=kind, shadow="bfloat16")
    rows, *rest = problem(EDGES["plain"], settings)
    once = step(rows, *rest, settings=settings)
    leaves, structure = jax.tree.flatten(rows)

    def again(leaves, *rest):
        rows = jax.tree.unflatten(structure, leaves)
        return fused_row_update(rows, *rest, learning_rate=1e-3, settings=settings)[0]

    donating = jax.jit(again, donate_argnums=0)
    memory = donating.lower(leaves, *rest).compile().memory_analysis()
    shadows = rows.shadow_enc.nbytes + rows.shadow_dec.nbytes  # not read, so not passed
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in leaves) - shadows
    twice = donating([jnp.copy(leaf) for leaf in leaves], *rest)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tied_matrices_can_be_donated_and_stay_the_callers(dtype):
    settings = RowAdam(shadow="bfloat16")
    _, *rest = problem(EDGES["plain"], settings)
    _, w, b, _, _ = dictionary(EDGES["plain"])
    w = w.astype(dtype)
    rows = init_rows(w, b, w, settings)
    want = step(rows, *rest, settings=settings)
    donating = jax.jit(
        functools.partial(fused_row_update, learning_rate=1e-3, settings=settings),
        donate_argnums=0,
        keep_unused=True,  # shadows are not read
    )
    got, _ = donating(rows, *rest)
    np.testing.assert_array_equal(got.w_dec, want.w_dec)
    assert not w.is_deleted() and not b.is_deleted()


def test_stochastic_rounding_is_right_on_average_and_exact_where_it_can_be():
    value = jnp.full((1, 40_000), 1.0 + 2**-9)  # a quarter of the way to the next bfloat16
    bits = rounding.draw(rounding.salt(0, jnp.int32(3), 1), value.shape)
    rounded = rounding.to_bfloat16(value, bits)
    assert set(np.unique(np.asarray(rounded, np.float32)).tolist()) == {1.0, 1.0 + 2**-7}
    np.testing.assert_allclose(np.asarray(rounded, np.float64).mean(), 1 + 2**-9, atol=1e-4)
    exact = jnp.array([[0.0, -0.0, 1.5, -3.0, jnp.inf, -jnp.inf, jnp.nan]])
    kept = np.asarray(rounding.to_bfloat16(exact, bits[:, :7]), np.float32)
    np.testing.assert_array_equal(kept, exact)


@pytest.mark.parametrize("signed", [True, False])
def test_eight_bit_moments_are_right_on_average(signed):
    rng = np.random.default_rng(0)
    truth = np.exp(3 * rng.standard_normal((2, 300))) * (
        rng.choice([-1, 1], (2, 300)) if signed else 1
    )
    truth = jnp.asarray(truth, jnp.float32)
    like = moments.zeros((2, 300), "int8", signed=signed)
    assert like.scales.shape == (2, 3)

    def once(step):
        bits = rounding.draw(rounding.salt(0, step, 0), truth.shape)
        return moments.load(moments.store(truth, like, bits))

    draws = np.asarray(jax.jit(jax.vmap(once))(jnp.arange(2000)))
    scale = np.abs(np.asarray(truth)).max(1, keepdims=True)
    np.testing.assert_allclose(draws.mean(0) / scale, truth / scale, atol=1.5e-3)
    # The largest entry of a block is its scale, and exact.
    top = np.abs(np.asarray(truth)[:, :128]).argmax(1)
    np.testing.assert_allclose(draws[0, [0, 1], top], np.asarray(truth)[[0, 1], top], rtol=1e-6)
    if not signed:
        assert (draws > 0).all()


def test_a_moment_that_changes_less_than_its_spacing_still_moves():
    like = moments.zeros((1, 128), "int8", signed=False)

    def decay(step, moment):
        bits = rounding.draw(rounding.salt(0, step, 1), (1, 128))
        return moments.store(0.999 * moments.load(moment), moment, bits)

    start = moments.store(
        jnp.ones((1, 128)).at[0, 0].set(10.0), like, jnp.zeros((1, 128), "uint32")
    )
    end = moments.load(jax.jit(lambda s: jax.lax.fori_loop(0, 500, decay, s))(start))
    np.testing.assert_allclose(end[0, 1:].mean(), 0.999**500, rtol=0.1)


def test_rows_of_other_settings_are_an_error():
    exact, fast = RowAdam(), RowAdam(moments="int8", shadow="bfloat16")

    def refused(made_for, used_with, match, **changed):
        rows, *rest = problem(EDGES["plain"], made_for)
        rows = dataclasses.replace(rows, **changed)
        with pytest.raises(ValueError, match=match):
            fused_row_update(rows, *rest, learning_rate=1e-3, settings=used_with)

    refused(exact, fast, r"rows\.m_\w+.* is .*; supported with moments='int8'")
    refused(fast, exact, r"rows\.m_\w+.* is .*; supported with moments='float32'")
    refused(
        exact, RowAdam(shadow="bfloat16"), r"rows\.shadow_\w+ is missing; supported .*: bfloat16"
    )
    refused(RowAdam(shadow="bfloat16"), exact, r"rows\.shadow_\w+ is bfloat16.* shadow=None: none")
    refused(exact, exact, r"rows\.v_dec is float32\[2, 3\]", v_dec=jnp.zeros((2, 3)))
    refused(
        exact, exact, r"rows\.m_bias is bfloat16", m_bias=jnp.zeros(EDGES["plain"].n, "bfloat16")
    )


def test_errors_name_what_is_supported():
    settings = RowAdam()
    rows, x, error, values, indices = problem(EDGES["plain"], settings)

    def run(*args, settings=settings, **kwargs):
        return fused_row_update(*args, learning_rate=1e-3, settings=settings, **kwargs)

    with pytest.raises(ValueError, match="moments='fp8'; supported: 'float32', 'bfloat16', 'int8'"):
        run(rows, x, error, values, indices, settings=RowAdam(moments="fp8"))
    with pytest.raises(ValueError, match="error does not fit"):
        run(rows, x, error[:-1], values, indices)
    with pytest.raises(TypeError, match="error bfloat16"):
        run(rows, x, error.astype("bfloat16"), values, indices)
    with pytest.raises(ValueError, match="implementation='cuda' is not known"):
        run(rows, x, error, values, indices, implementation="cuda")
    _, w, b, _, _ = dictionary(EDGES["plain"])
    with pytest.raises(ValueError, match=r"init_rows: shadow='int8'; supported: None, 'bfloat16'"):
        init_rows(w, b, w, RowAdam(shadow="int8"))
    with pytest.raises(ValueError, match="init_rows: moments='fp8'; supported: 'float32'"):
        init_rows(w, b, w, RowAdam(moments="fp8"))
    with pytest.raises(ValueError, match="init_rows: w_dec does not fit"):
        init_rows(w, b, w.T, settings)
    with pytest.raises(TypeError, match="init_rows: w_enc float16"):
        init_rows(w.astype("float16"), b, w.astype("float16"), settings)
    with pytest.raises(TypeError, match="init_rows: b_enc is bfloat16; supported: float32"):
        init_rows(w, b.astype("bfloat16"), w, settings)
