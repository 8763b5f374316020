"""A step on four CPU devices, two over tokens and two over latents, against the same on one.

A program of its own, for the number of devices is fixed when JAX starts.
"""

import importlib.util

import conftest  # noqa: F401  Triton's kernels are interpreted
import jax
import jax.numpy as jnp
import numpy as np
from emojax_kernels import (
    RowAdam,
    decode_error,
    fused_row_update,
    init_rows,
    sparse_decode,
    topk_encode,
)
from emojax_kernels.shapes import Shape
from jax.sharding import AxisType
from kernel_problems import dictionary

SHAPE = Shape(8, 24, 640, 4)
SMALL = Shape(4, 16, 96, 2)  # Triton's interpreter is slow
P = jax.P


def data_parallel(mesh, inputs, k, mask=None, scoring=None, implementation=None):
    """Gradients of replicated weights, summed over the shards of the batch."""
    by = {"implementation": implementation}

    def loss(x, w_enc, b_enc, w_dec, b_dec):
        values, indices = topk_encode(x, w_enc, b_enc, k, mask=mask, scoring=scoring, **by)
        return jax.lax.psum(decode_error(values, indices, w_dec, b_dec, x, **by)[0].sum(), "data")

    replicated = (P(), P(), P(), P())
    step = jax.shard_map(
        loss, mesh=mesh, in_specs=(P("data"), *replicated), out_specs=P(), check_vma=True
    )
    return jax.jit(jax.value_and_grad(step, argnums=range(5)))(*inputs)


def latent_parallel(mesh, mask, x, w_enc, b_enc, w_dec, b_dec):
    """Reconstruction from a dictionary whose latents are spread over devices.

    Each device takes the k best of its own latents, learns from the others' values where the k-th
    best of all lies, drops what is below, and decodes; only values and `[tokens, d]` travel.
    """

    def decode(x, w_enc, b_enc, w_dec, mask):
        values, indices = topk_encode(x, w_enc, b_enc, SHAPE.k, mask=mask)
        everyone = jax.lax.all_gather(values, "latent", axis=1, tiled=True)
        least = jax.lax.top_k(everyone, SHAPE.k)[0][:, -1:]
        values = jnp.where(values >= least, values, 0)
        part = sparse_decode(values, indices, w_dec, jnp.zeros(SHAPE.d))
        return jax.lax.psum(part, "latent")

    sharded = jax.shard_map(
        decode,
        mesh=mesh,
        in_specs=(P("data"), P("latent"), P("latent"), P("latent"), P("latent")),
        out_specs=P("data"),
        check_vma=True,
    )
    return jax.jit(sharded)(x, w_enc, b_enc, w_dec, mask) + b_dec


def update_rows(x, rows):
    """A fused update of the rows at hand, as if there were no others."""
    values, indices = topk_encode(x, rows.w_enc, rows.b_enc, SHAPE.k)
    _, error = decode_error(values, indices, rows.w_dec, jnp.zeros(SHAPE.d), x)
    new, d_pre = fused_row_update(
        rows, x, error, values, indices, learning_rate=1e-3, settings=RowAdam()
    )
    return new, jnp.zeros_like(rows.b_enc).at[indices].add(d_pre)


def rows_by_shard(mesh, x, rows):
    """Each device updates its own latents' rows."""
    where = jax.tree.map(lambda leaf: P("latent") if leaf.ndim else P(), rows)
    sharded = jax.shard_map(
        update_rows,
        mesh=mesh,
        in_specs=(P(), where),
        out_specs=(where, P("latent")),
        check_vma=True,
    )
    return jax.jit(sharded)(x, rows)


def compare(found, wanted):
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(np.asarray(want)).max()
        np.testing.assert_allclose(np.asarray(got) / scale, np.asarray(want) / scale, atol=2e-5)


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    mesh = jax.make_mesh((2, 2), ("data", "latent"), axis_types=(AxisType.Auto, AxisType.Auto))
    inputs = dictionary(SHAPE)

    dead = jnp.arange(SHAPE.n) % 3 == 1

    def whole(mask):
        def loss(x, w_enc, b_enc, w_dec, b_dec):
            values, indices = topk_encode(x, w_enc, b_enc, SHAPE.k, mask=mask)
            return decode_error(values, indices, w_dec, b_dec, x)[0].sum()

        return jax.value_and_grad(loss, argnums=range(5))(*inputs)

    for scoring in (None, "float8_e4m3fn"):
        compare(data_parallel(mesh, inputs, SHAPE.k, scoring=scoring), whole(None))
    of_dead = data_parallel(mesh, inputs, SHAPE.k, dead)
    compare(of_dead, whole(dead))
    assert of_dead[1][1].any() and not of_dead[1][1][~dead].any()
    if importlib.util.find_spec("triton"):
        few = dictionary(SMALL)
        compare(
            data_parallel(mesh, few, SMALL.k, implementation="triton"),
            data_parallel(mesh, few, SMALL.k),
        )
    x, w_enc, b_enc, w_dec, b_dec = inputs
    for mask in (jnp.ones(SHAPE.n, bool), dead):
        values, indices = topk_encode(x, w_enc, b_enc, SHAPE.k, mask=mask)
        want = sparse_decode(values, indices, w_dec, b_dec)
        np.testing.assert_allclose(latent_parallel(mesh, mask, *inputs), want, atol=2e-5)
    rows = init_rows(w_enc, b_enc, w_dec, RowAdam())
    halves = [
        jax.tree.map(lambda leaf, part=part: leaf[part] if leaf.ndim else leaf, rows)
        for part in (slice(0, SHAPE.n // 2), slice(SHAPE.n // 2, SHAPE.n))
    ]
    each = [jax.jit(update_rows)(x, half) for half in halves]
    new, d_bias = rows_by_shard(mesh, x, rows)
    for name in ("m_enc", "v_dec", "m_bias", "w_dec"):
        want = jnp.concatenate([getattr(one, name) for one, _ in each])
        np.testing.assert_allclose(getattr(new, name), want, rtol=1e-5, atol=1e-6)
    compare(d_bias, jnp.concatenate([of_half for _, of_half in each]))
    assert int(new.step) == 1
    print("data parallel and latent parallel steps agree with one device")


if __name__ == "__main__":
    main()
