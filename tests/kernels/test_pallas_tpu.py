"""The TPU kernels in interpret mode, where uninitialised memory is NaN and races are found."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emojax_kernels import (
    RowAdam,
    fused_row_update,
    groupmax_encode,
    pallas_launch,
    sparse_decode,
    threshold_encode,
    topk_encode,
)
from emojax_kernels.row_products import pallas_tpu as products
from emojax_kernels.row_products import visits, xla
from emojax_kernels.shapes import EDGES, Shape
from emojax_kernels.topk_encode import pallas_tpu as encoder
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from kernel_problems import assert_close, autoencoder_gradients, code, dictionary
from test_fused_row_update import problem, step, update

BOTH = ("pallas_tpu", "reference")
WITHOUT_A_KERNEL = ("test_no_tokens", "test_errors_name_what_is_supported")


@pytest.fixture(autouse=True)
def detectors(request, monkeypatch):
    """Small tiles, so that small problems have several; no race in any kernel of any test.

    JAX makes a detector per kernel and keeps the last: here all are kept.
    """
    monkeypatch.setattr(pallas_launch, "MODE", "interpret")
    monkeypatch.setattr(encoder, "_TILE", {2: 128, 4: 128})
    monkeypatch.setattr(encoder, "_READ", 128 * 128 * 4)
    monkeypatch.setattr(visits, "_CHUNK", 8)
    kept, make = [], interpret_pallas_call.RaceDetectionState

    def keep(**options):
        kept.append(make(**options))
        return kept[-1]

    monkeypatch.setattr(interpret_pallas_call, "RaceDetectionState", keep)
    pltpu.reset_tpu_interpret_mode_state()
    yield kept
    assert not any(detector.races_found for detector in kept)
    assert kept or request.node.originalname in WITHOUT_A_KERNEL


def test_a_race_is_found_whatever_runs_after_it(detectors):
    """A copy that is read before it has arrived, then a kernel without a race."""

    def kernel(wait_first, source, out, arrived):
        copy = pltpu.make_async_copy(source, out, arrived)
        copy.start()
        if wait_first:
            copy.wait()
        out[...] = out[...] + 1
        if not wait_first:
            copy.wait()

    def run(wait_first):
        (out,) = pallas_launch.launch(
            functools.partial(kernel, wait_first),
            jnp.ones((8, 128)),
            out=[jax.ShapeDtypeStruct((8, 128), jnp.float32)],
            semantics=("arbitrary",),
            num_scalar_prefetch=0,
            grid=(1,),
            in_specs=[pl.BlockSpec((8, 128), lambda i: (0, 0))],
            out_specs=[pl.BlockSpec((8, 128), lambda i: (0, 0))],
            scratch_shapes=(pltpu.SemaphoreType.DMA,),
        )
        jax.block_until_ready(out)

    run(False)
    run(True)
    assert [detector.races_found for detector in detectors] == [True, False]
    del detectors[0]


def encode(shape, *inputs, **options):
    """By the kernel, and by the reference."""
    of = (
        functools.partial(topk_encode, k=shape.k, implementation=name, **options) for name in BOTH
    )
    return [jax.jit(f)(*inputs) for f in of]


@pytest.mark.parametrize(
    "shape, dtype",
    [
        (EDGES["odd_width"], "bfloat16"),
        (EDGES["odd_latents"], "float32"),
        (EDGES["all_latents"], "float32"),
        (Shape(130, 300, 203, 7), "bfloat16"),  # several tiles of tokens, of latents, of columns
        (Shape(1, 8, 130, 1), "float32"),
    ],
)
def test_encode_equals_the_reference(shape, dtype):
    got, want = encode(shape, *dictionary(shape, dtype=dtype)[:3])
    assert_close(got[0], want[0], dtype)
    if dtype == "float32":
        np.testing.assert_array_equal(got[1], want[1])
    else:  # sums in another order may round to another neighbour, and so change places
        assert (np.asarray(got[1]) != np.asarray(want[1])).mean() < 0.01


def test_ties_and_fewer_positive_preactivations_than_slots():
    """Integers, whose sums are exact: many ties, within tiles and across, and most below zero."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 2, (9, 8)), jnp.float32)
    w = jnp.asarray(rng.integers(-2, 2, (300, 8)), jnp.float32)
    got, want = encode(Shape(9, 8, 300, 20), x, w, jnp.full(300, -1.0))
    assert (np.asarray(want[0]) == 0).any() and (np.asarray(want[0]) > 0).any()
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_rows_that_are_not_finite_stay_alone_and_a_mask_may_leave_too_few():
    shape = Shape(6, 16, 200, 4)
    x, w, b, _, _ = dictionary(shape)
    mask = jnp.arange(200) % 67 == 5  # three latents
    spoilt = x.at[1, 3].set(jnp.nan).at[2, 3].set(jnp.inf).at[4, 3].set(-jnp.nan)
    values, indices = encode(shape, spoilt, w, b)[0]
    want = encode(shape, x, w, b)[1]
    for of in (0, 1):
        np.testing.assert_array_equal(
            (values, indices)[of][jnp.array([0, 3, 5])].round(4),
            want[of][jnp.array([0, 3, 5])].round(4),
        )
    assert np.isnan(values[jnp.array([1, 4])]).all() and np.isinf(values[2]).all()
    assert all(len(set(row.tolist())) == 4 for row in indices)
    got, want = encode(shape, x, w, b + 50, mask=mask)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    assert (got[0][:, :3] > 0).all() and (got[0][:, 3] == 0).all()
    assert set(np.unique(got[1][:, :3]).tolist()) == {5, 72, 139}


def test_threshold_and_groupmax():
    shape = Shape(7, 33, 300, 5)
    x, w, b, _, _ = dictionary(shape)
    x = x.at[1, 0].set(jnp.nan)
    threshold = jnp.linspace(1.5, 3.5, 300)
    got, want = (
        jax.jit(functools.partial(threshold_encode, k=5, implementation=name))(x, w, b, threshold)
        for name in BOTH
    )
    assert int(want[2].min()) < 5 < int(want[2].max())
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_array_equal(got[2], want[2])
    used = np.asarray(want[0] > 0)
    np.testing.assert_array_equal(np.asarray(got[1])[used], np.asarray(want[1])[used])
    mask = jnp.arange(300) % 3 == 1
    got, want = (
        jax.jit(functools.partial(threshold_encode, k=5, implementation=name, mask=mask))(
            x, w, b, threshold
        )
        for name in BOTH
    )
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_array_equal(got[2], want[2])
    for only in (None, mask.at[60:120].set(False)):  # of the second group none
        got, want = (
            jax.jit(functools.partial(groupmax_encode, k=5, implementation=name, mask=only))(
                x, w, b
            )
            for name in BOTH
        )
        np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
        np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_with_a_latent_of_every_token(dtype):
    """Latent 7 fills several chunks; blocks 2 and 5 of latents have no entry at all."""
    shape = Shape(35, 83, 203, 3)
    x, _, _, w, _ = dictionary(shape, dtype=dtype)
    values, indices = code(shape, dtype=dtype)
    indices = jnp.where((indices // 32) % 3 == 2, 8, indices).at[:, 0].set(7)

    @jax.jit
    def of(values, indices, x, w):
        return (
            products.gather_sum(values, indices, w),
            products.gather_dot(x, indices, w),
            products.scatter_sum(values, indices, x, shape.n),
        )

    got = of(values, indices, x, w)
    want = (
        xla.gather_sum(values, indices, w),
        xla.gather_dot(x, indices, w),
        xla.scatter_sum(values, indices, x, shape.n),
    )
    assert_close(got, want)  # products of bfloat16 are exact in float32
    np.testing.assert_array_equal(got[2], of(values, indices, x, w)[2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_keep_what_is_not_finite_to_those_that_use_it(dtype):
    shape = Shape(9, 20, 40, 3)
    _, _, _, w, _ = dictionary(shape, dtype=dtype)
    values, indices = code(shape, dtype=dtype)
    w = w.at[indices[2, 1], 4].set(jnp.nan).at[indices[5, 0]].set(jnp.inf)
    values = values.at[7, 0].set(jnp.inf)
    got = jax.jit(products.gather_sum)(values, indices, w)
    want = xla.gather_sum(values, indices, w)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert np.isnan(want).any() and np.isinf(want).any() and np.isfinite(want).any()


def test_every_gradient_of_an_autoencoder():
    shape = Shape(6, 24, 140, 3)
    inputs = dictionary(shape)
    got, want = (
        jax.jit(autoencoder_gradients(name, shape.k))(*inputs)
        for name in ("pallas_tpu", "reference")
    )
    assert_close(got, want)


def test_no_tokens():
    x, w, b, w_dec, b_dec = dictionary(Shape(0, 16, 64, 4))

    def loss(x, w, b, w_dec, b_dec):
        values, indices = topk_encode(x, w, b, 4, implementation="pallas_tpu")
        out = sparse_decode(values, indices, w_dec, b_dec, implementation="pallas_tpu")
        assert values.shape == (0, 4) and out.shape == (0, 16)
        return out.sum()

    assert not any(g.any() for g in jax.grad(loss, argnums=range(5))(x, w, b, w_dec, b_dec))


def test_vmap_runs_once_per_entry_forward_and_backward():
    """A batch of activations, and of dictionaries, whose weights differ."""
    shape = Shape(2, 16, 90, 2)
    pair = [jnp.stack(a) for a in zip(*(dictionary(shape, seed=i) for i in (0, 1)), strict=True)]
    got, want = (jax.jit(jax.vmap(autoencoder_gradients(name, shape.k)))(*pair) for name in BOTH)
    assert_close(got, want)
    x, w, b, *_ = pair
    got, want = (
        jax.vmap(functools.partial(topk_encode, k=2, implementation=name))(x, w, b) for name in BOTH
    )
    np.testing.assert_array_equal(got[1], want[1])


def test_errors_name_what_is_supported(monkeypatch):
    x, w, b, _, _ = dictionary(Shape(2, 16, 64, 4))
    values, indices = code(Shape(2, 16, 64, 4))
    monkeypatch.setattr(visits, "_WORDS", 7)  # six for two blocks of latents
    with pytest.raises(ValueError, match=r"tokens \* k is 8 with n=64; supported: at most 0"):
        products.scatter_sum(values, indices, x, 64)
    wide = Shape(2, 4097, 40, 2)
    with pytest.raises(ValueError, match="with d=4097; supported: d up to 4096"):
        step(*problem(wide, RowAdam()), settings=RowAdam(), implementation="pallas_tpu")
    monkeypatch.setattr(pallas_launch, "MODE", "Interpret")
    with pytest.raises(
        ValueError, match=r"EMOJAX_PALLAS_TPU='Interpret' .*; supported: 'interpret'"
    ):
        topk_encode(x, w, b, 4, implementation="pallas_tpu")
    monkeypatch.setattr(pallas_launch, "MODE", "")
    with pytest.raises(ValueError, match="'pallas_tpu' on cpu; supported: a TPU, or EMOJAX_PALLAS"):
        topk_encode(x, w, b, 4, implementation="pallas_tpu")


@pytest.mark.parametrize(
    "n, dtype, settings",
    [
        (96, "float32", RowAdam(shadow="bfloat16")),
        (70, "float32", RowAdam(moments="int8", unit_norm_decoder=False)),
        (70, "bfloat16", RowAdam(moments="bfloat16", shadow="bfloat16")),
    ],
)
def test_two_row_updates_equal_the_references(n, dtype, settings):
    rows, *rest, values, indices = problem(Shape(12, 150, n, 3), settings, dtype)
    # Latent 7 on every token: several chunks. The second of three blocks has no entry.
    indices = jnp.where((indices // 32) == 1, 8, indices).at[:, 0].set(7)
    values = values.at[3, 2].set(0)
    states = []
    for implementation in BOTH:
        state = rows
        for _ in range(2):
            state, d_pre = update(
                state, *rest, values, indices, settings=settings, implementation=implementation
            )
        states.append((state, d_pre))
    got, want = states
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        name = jax.tree_util.keystr(path)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        scale = np.abs(b).max(initial=1e-9)
        # Rounding may fall the other way where two sums differ in their last bit.
        assert (np.abs(a - b) > 2e-5 * scale).mean() < 1e-3, name
        assert np.abs(a - b).max() <= 0.02 * scale, name


def test_a_row_update_without_tokens_lets_moments_decay():
    settings = RowAdam()
    rows, *rest = problem(Shape(4, 16, 40, 2), settings)
    rows = step(rows, *rest, settings=settings)
    empty = [a[:0] for a in rest]
    got, want = (update(rows, *empty, settings=settings, implementation=name) for name in BOTH)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)


def test_a_row_update_in_place_is_bitwise_repeatable():
    settings = RowAdam(moments="int8", shadow="bfloat16")
    rows, *rest = problem(Shape(12, 150, 32, 3), settings)

    def of(rows, *rest):
        return fused_row_update(
            rows, *rest, learning_rate=1e-3, settings=settings, implementation="pallas_tpu"
        )

    once = jax.jit(of)(rows, *rest)
    twice = jax.jit(of, donate_argnums=0)(jax.tree.map(jnp.copy, rows), *rest)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True):
        np.testing.assert_array_equal(a, b)
