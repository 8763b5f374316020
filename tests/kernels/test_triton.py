"""The Triton kernels: what they compute, in Triton's interpreter, and that they compile."""

import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emojax_kernels import (
    RowAdam,
    decode_error,
    groupmax_encode,
    sparse_decode,
    threshold_encode,
    topk_encode,
    triton_launch,
)
from emojax_kernels.row_products import xla
from emojax_kernels.shapes import Shape
from kernel_problems import assert_close, code, dictionary
from test_fused_row_update import problem, update

pytest.importorskip("triton", reason="the Triton kernels need triton (extra test)")

ODD = Shape(6, 83, 203, 5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_with_lists_long_and_short(dtype, monkeypatch):
    from emojax_kernels.row_products import triton

    monkeypatch.setattr(triton, "CHUNK", 2)
    monkeypatch.setattr(triton, "_COLUMNS", 64)  # two column blocks, the second not full
    x, _, _, w, _ = dictionary(ODD, dtype=dtype)
    values, indices = code(ODD, dtype=dtype)
    # Latent 7 on every token, 9 on three of them: three chunks, two chunks.
    indices = jnp.where(indices == 7, 8, indices).at[:, 0].set(7).at[:3, 1].set(9)
    assert_close(triton.gather_sum(values, indices, w), xla.gather_sum(values, indices, w))
    assert_close(triton.gather_dot(x, indices, w), xla.gather_dot(x, indices, w))
    got = triton.scatter_sum(values, indices, x, ODD.n)
    assert_close(got, xla.scatter_sum(values, indices, x, ODD.n))
    np.testing.assert_array_equal(got, triton.scatter_sum(values, indices, x, ODD.n))


@pytest.mark.parametrize(
    "shape", [Shape(3, 83, 803, 5), Shape(2, 64, 640, 9), Shape(2, 16, 96, 7), Shape(1, 8, 64, 64)]
)
def test_encode_equals_the_reference(shape):
    x, w, b, _, _ = dictionary(shape)
    got = topk_encode(x, w, b, shape.k, implementation="triton")
    want = topk_encode(x, w, b, shape.k, implementation="reference")
    assert_close(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_encode_in_bfloat16():
    shape = Shape(3, 83, 803, 5)
    x, w, b, _, _ = dictionary(shape, dtype="bfloat16")
    got = topk_encode(x, w, b, shape.k, implementation="triton")
    want = topk_encode(x, w, b, shape.k, implementation="reference")
    assert got[0].dtype == jnp.bfloat16
    # The interpreter cuts a float32 to bfloat16 where hardware rounds to nearest.
    np.testing.assert_allclose(*(np.asarray(a[0], np.float32) for a in (got, want)), rtol=2**-7)


def test_encode_with_more_survivors_than_room_and_ties():
    """Half of the latents alike: the buffer of 2k overflows and the fallback decides, exactly."""
    x, _, _, _, _ = dictionary(Shape(3, 16, 640, 4))
    w = jnp.ones((640, 16)).at[::2].set(-1)
    got = topk_encode(x, w, jnp.zeros(640), 4, implementation="triton")
    want = topk_encode(x, w, jnp.zeros(640), 4, implementation="reference")
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_encode_with_rows_that_are_not_finite_and_a_mask_that_leaves_too_few():
    shape = Shape(4, 16, 640, 4)
    x, w, b, _, _ = dictionary(shape)
    spoilt = x.at[1, 3].set(jnp.nan).at[2, 3].set(jnp.inf)
    values, indices = topk_encode(spoilt, w, b, 4, implementation="triton")
    want = topk_encode(x, w, b, 4, implementation="reference")
    np.testing.assert_array_equal(indices[jnp.array([0, 3])], want[1][jnp.array([0, 3])])
    assert np.isnan(values[1]).all() and np.isinf(values[2]).all()
    mask = jnp.zeros(640, bool).at[jnp.array([5, 600])].set(True)
    values, indices = topk_encode(x, w, b + 50, 4, mask=mask, implementation="triton")
    assert (values[:, :2] > 0).all() and (values[:, 2:] == 0).all()
    assert set(np.unique(indices[:, :2]).tolist()) == {5, 600}
    assert int(indices.min()) >= 0 and int(indices.max()) < 640


def test_threshold_and_groupmax():
    shape = Shape(3, 40, 700, 5)
    x, w, b, _, _ = dictionary(shape)
    threshold = jnp.linspace(1.0, 3.5, 700)
    got, want = (
        threshold_encode(x, w, b, threshold, 5, implementation=i) for i in ("triton", "reference")
    )
    assert_close(got[0], want[0])
    np.testing.assert_array_equal(got[2], want[2])
    used = np.asarray(want[0] > 0)
    np.testing.assert_array_equal(np.asarray(got[1])[used], np.asarray(want[1])[used])
    x = x.at[1, 0].set(jnp.nan)
    got, want = (groupmax_encode(x, w, b, 5, implementation=i) for i in ("triton", "reference"))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_array_equal(got[1], want[1])


def test_every_gradient_of_an_autoencoder():
    shape = Shape(4, 24, 140, 3)
    inputs = dictionary(shape)

    def loss(implementation):
        def of(x, w_enc, b_enc, w_dec, b_dec):
            values, indices = topk_encode(x, w_enc, b_enc, 3, implementation=implementation)
            squared, error = decode_error(
                values, indices, w_dec, b_dec, x, implementation=implementation
            )
            out = sparse_decode(values, indices, w_dec, b_dec, implementation=implementation)
            return squared.mean() + (out * error).sum()

        return jax.jit(jax.value_and_grad(of, argnums=range(5)))

    assert_close(loss("triton")(*inputs), loss("reference")(*inputs))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_two_row_updates_equal_the_references(kind, monkeypatch):
    from emojax_kernels.fused_row_update import triton

    monkeypatch.setattr(triton, "CHUNK", 4)
    settings = RowAdam(moments=kind, shadow="bfloat16")
    rows, *rest, values, indices = problem(Shape(12, 150, 40, 3), settings)
    indices = jnp.where(indices == 7, 8, indices).at[:, 0].set(7)  # three chunks
    values = values.at[3, 2].set(0)
    states = []
    for implementation in ("triton", "reference"):
        state = rows
        for _ in range(2):
            state, d_pre = update(
                state, *rest, values, indices, settings=settings, implementation=implementation
            )
        states.append((state, d_pre))
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(states[0]), jax.tree.leaves(states[1]), strict=True
    ):
        name = jax.tree_util.keystr(path)
        # The interpreter cuts a float32 to bfloat16 where hardware rounds to nearest.
        rtol = 2**-7 if "shadow" in name else 1e-5
        got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
        scale = np.abs(want).max(initial=1e-9)
        np.testing.assert_allclose(got / scale, want / scale, rtol=rtol, atol=3e-6, err_msg=name)


def test_vmap_runs_once_per_entry():
    shape = Shape(2, 16, 90, 2)
    x, w, b, _, _ = dictionary(shape)
    pair = jnp.stack([x, 2 * x])
    got = jax.vmap(lambda x: topk_encode(x, w, b, 2, implementation="triton"))(pair)
    want = jax.vmap(lambda x: topk_encode(x, w, b, 2, implementation="reference"))(pair)
    np.testing.assert_array_equal(got[1], want[1])


def test_no_tokens():
    x, w, b, w_dec, b_dec = dictionary(Shape(0, 16, 640, 4))
    values, indices = topk_encode(x, w, b, 4, implementation="triton")
    assert values.shape == (0, 4)
    out = sparse_decode(values, indices, w_dec, b_dec, implementation="triton")
    assert out.shape == (0, 16)


def test_no_tokens_leave_a_row_update_to_adam():
    settings = RowAdam()
    rows, *batch = problem(Shape(2, 20, 9, 2), settings)
    empty = [a[:0] for a in batch]
    got, want = (
        update(rows, *empty, settings=settings, implementation=i) for i in ("triton", "reference")
    )
    assert_close(got, want)
    assert int(got[0].step) == 1 and not got[0].m_dec.any()


def test_a_token_of_nan_stays_alone_in_the_decoder():
    shape = Shape(3, 20, 30, 2)
    values, indices = code(shape)
    x, _, _, w, b = dictionary(shape)
    spoilt = values.at[1, 0].set(jnp.nan)
    squared, error = decode_error(spoilt, indices, w, b, x, implementation="triton")
    want = decode_error(values, indices, w, b, x, implementation="reference")
    assert np.isnan(squared[1]) and np.isnan(error[1]).all()
    assert_close((squared[::2], error[::2]), (want[0][::2], want[1][::2]))


def test_a_gpu_without_jax_triton_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(triton_launch, "INTERPRET", False)
    monkeypatch.setattr(triton_launch.jax, "default_backend", lambda: "gpu")
    monkeypatch.setitem(sys.modules, "jax_triton", None)
    x, w, b, _, _ = dictionary(ODD)
    with pytest.raises(
        ImportError, match=r"needs jax-triton .*pip install 'emojax-kernels\[cuda\]'"
    ):
        topk_encode(x, w, b, 5, implementation="triton")


def test_a_dtype_that_the_kernels_lack_is_an_error():
    x, w, b, _, _ = dictionary(ODD)
    with pytest.raises(
        TypeError, match=r"x float16.*supported: all of them float32 or all of them"
    ):
        topk_encode(x.astype("float16"), w.astype("float16"), b, 5, implementation="triton")


def test_a_platform_without_an_nvidia_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(triton_launch, "INTERPRET", False)
    x, w, b, _, _ = dictionary(ODD)
    with pytest.raises(ValueError, match="'triton' on cpu; supported: an NVIDIA GPU"):
        topk_encode(x, w, b, 5, implementation="triton")
    amd = types.SimpleNamespace(client=types.SimpleNamespace(platform_version="rocm 60300"))
    monkeypatch.setattr(triton_launch.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(triton_launch.jax, "devices", lambda: [amd])
    with pytest.raises(ValueError, match="'triton' on rocm; supported: an NVIDIA GPU"):
        triton_launch.launch(None, b, out=[jax.ShapeDtypeStruct((1,), b.dtype)], grid=(1,))


def test_without_triton_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "emojax_kernels.decode_error.triton", raising=False)
    x, _, _, w, b = dictionary(ODD)
    with pytest.raises(
        ImportError, match=r"needs Triton; install it with `pip install 'emojax-kernels\[cuda\]'"
    ):
        decode_error(*code(ODD), w, b, x, implementation="triton")


def test_every_kernel_compiles_for_ampere_and_hopper():
    program = pathlib.Path(__file__).with_name("compile_triton.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({line["kernel"] for line in built}) == 14
    assert all(line["cubin"] > 0 for line in built)
    assert {line["sm"] for line in built} == {80, 90}
