"""The Triton kernels: what they compute, in Triton's interpreter, and that they compile."""

import functools
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
from kernel_problems import assert_close, autoencoder_gradients, code, dictionary
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
    # Sums of whole numbers are exact, in whatever order a processor takes them: ties are ties.
    x = jnp.round(8 * x)
    w = jnp.ones((640, 16)).at[::2].set(-1)
    got = topk_encode(x, w, jnp.zeros(640), 4, implementation="triton")
    want = topk_encode(x, w, jnp.zeros(640), 4, implementation="reference")
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("crowded", [1, 2])
def test_encode_when_few_tokens_or_many_have_more_survivors_than_room(crowded):
    """Of nine tokens one may be selected from again by itself; if there are two, all are."""
    shape = Shape(9, 16, 640, 4)
    x, w, b, _, _ = dictionary(shape)
    # Half of the latents read only the last column, which only some tokens have.
    w = w.at[:, -1].set(0).at[::2].set(jnp.zeros(16).at[-1].set(1))
    x = x.at[:, -1].set(-1).at[:crowded, -1].set(100)
    got = topk_encode(x, w, b * 0, 4, implementation="triton")
    want = topk_encode(x, w, b * 0, 4, implementation="reference")
    assert_close(got[0], want[0])
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
    mask = jnp.arange(700) % 3 == 1
    got, want = (
        threshold_encode(x, w, b, threshold, 5, mask=mask, implementation=i)
        for i in ("triton", "reference")
    )
    assert_close(got[0], want[0])
    np.testing.assert_array_equal(got[2], want[2])
    x = x.at[1, 0].set(jnp.nan)
    for only in (None, mask.at[140:280].set(False)):  # of the second group none
        got, want = (
            groupmax_encode(x, w, b, 5, mask=only, implementation=i)
            for i in ("triton", "reference")
        )
        np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
        np.testing.assert_array_equal(got[1], want[1])


def test_every_gradient_of_an_autoencoder():
    shape = Shape(4, 24, 140, 3)
    inputs = dictionary(shape)
    got, want = (
        jax.jit(autoencoder_gradients(name, shape.k))(*inputs) for name in ("triton", "reference")
    )
    assert_close(got, want)


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


def test_vmap_runs_once_per_entry_forward_and_backward():
    """A batch of activations, and of dictionaries, whose weights differ."""
    shape = Shape(2, 16, 90, 2)
    pair = [jnp.stack(a) for a in zip(*(dictionary(shape, seed=i) for i in (0, 1)), strict=True)]
    got, want = (
        jax.jit(jax.vmap(autoencoder_gradients(name, shape.k)))(*pair)
        for name in ("triton", "reference")
    )
    assert_close(got, want)
    x, w, b, *_ = pair
    codes = [
        jax.vmap(functools.partial(topk_encode, k=2, implementation=name))(x, w, b)
        for name in ("triton", "reference")
    ]
    np.testing.assert_array_equal(codes[0][1], codes[1][1])


def test_no_tokens():
    shape = Shape(0, 16, 640, 4)
    inputs = dictionary(shape)
    value, gradients = jax.jit(autoencoder_gradients("triton", shape.k))(*inputs)
    assert value == 0
    for gradient, array in zip(gradients, inputs, strict=True):
        assert gradient.shape == array.shape and not gradient.any()
    x, w, b, w_dec, b_dec = inputs
    by = {"implementation": "triton"}
    values, indices, count = threshold_encode(x, w, b, jnp.ones(640), 4, **by)
    assert values.shape == indices.shape == (0, 4) and count.shape == (0,)
    assert groupmax_encode(x, w, b, 4, **by)[0].shape == (0, 4)
    assert sparse_decode(values, indices, w_dec, b_dec, **by).shape == (0, 16)


def test_in_float32_no_array_is_as_large_as_all_preactivations(monkeypatch):
    from emojax_kernels.topk_encode import triton

    shape = Shape(5, 16, 320, 4)
    x, w, b, _, _ = dictionary(shape)
    monkeypatch.setattr(triton, "ELEMENTS", 2 * shape.n)  # blocks of two tokens, and one over

    def encode(implementation):
        by = {"implementation": implementation}
        return lambda x, w, b: (
            topk_encode(x, w, b, 4, **by),
            threshold_encode(x, w, b, jnp.ones(320), 4, **by),
            groupmax_encode(x, w, b, 4, **by),
        )

    got, want = encode("triton")(x, w, b), encode("reference")(x, w, b)
    assert_close([values for values, *_ in got], [values for values, *_ in want])
    np.testing.assert_array_equal(got[1][2], want[1][2])
    assert "f32[5,320]" not in str(jax.make_jaxpr(encode("triton"))(x, w, b))
    # In bfloat16 there is one, of half that size.
    narrow = (a.astype("bfloat16") for a in (x, w))
    program = str(jax.make_jaxpr(encode("triton"))(*narrow, b))
    assert "bf16[5,320]" in program and "f32[5,320]" not in program


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
    assert all(line["cubin"] > 0 for line in built)
    from emojax_kernels.decode_error import triton as decode_error
    from emojax_kernels.fused_row_update import triton as fused_row_update
    from emojax_kernels.groupmax_encode import triton as groupmax_encode
    from emojax_kernels.row_products import triton as row_products
    from emojax_kernels.topk_encode import triton as topk

    modules = (decode_error, fused_row_update, groupmax_encode, row_products, topk)
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    assert len(kernels) == 10
    for shape, sm in (("S", 80), ("S", 90), ("L", 90), ("G", 90)):
        lines = [line for line in built if (line["shape"], line["sm"]) == (shape, sm)]
        assert {line["kernel"] for line in lines} == kernels
        # float32, bfloat16 and 8-bit moments, the latter with weights of either kind.
        rows = {tuple(line["types"]) for line in lines if line["kernel"] == "row_kernel"}
        assert len(rows) == 4 * len({line["dtype"] for line in lines})
