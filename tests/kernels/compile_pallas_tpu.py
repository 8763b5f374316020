"""Compile every TPU kernel with the real compiler for every generation of TPU, without a TPU.

A program of its own, for JAX reads the environment when it starts. Needs libtpu, through the extra
`tpu`:

    python tests/kernels/compile_pallas_tpu.py

prints a line of JSON per program: what was compiled for what, the compiler's own account of its
memory and the elements of its largest array. Programs are small for each generation (does it
compile?) and of the sizes at which speed is claimed for one of them (what does it need?).
"""

import functools
import json
import math
import os
import re
import time

os.environ |= {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "EMOJAX_PALLAS_TPU": "compile",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v6e-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

import jax
import jax.numpy as jnp
import numpy as np
from emojax_kernels import (
    RowAdam,
    decode_error,
    fused_row_update,
    groupmax_encode,
    init_rows,
    sparse_decode,
    threshold_encode,
    topk_encode,
)
from emojax_kernels.shapes import SPEED, Shape
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

P = jax.P
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
# Where the sizes are those at which speed is claimed; the generation without SparseCore.
WIDE = "v5e:2x2"
# Odd in every size.
SMALL = Shape(77, 83, 1003, 5)
BY = {"implementation": "pallas_tpu"}


def arrays(shape, dtype):
    """The inputs of an autoencoder, by name."""
    t, d, n, k = shape.tokens, shape.d, shape.n, shape.k
    of = jax.ShapeDtypeStruct
    return {
        "x": of((t, d), dtype),
        "w_enc": of((n, d), dtype),
        "b_enc": of((n,), "float32"),
        "w_dec": of((n, d), dtype),
        "b_dec": of((d,), "float32"),
        "values": of((t, k), dtype),
        "indices": of((t, k), "int32"),
        "threshold": of((n,), "float32"),
        "groups_enc": of((n // k * k, d), dtype),
        "groups_bias": of((n // k * k,), "float32"),
    }


def programs(k):
    """Functions and the names of their arguments."""

    def loss(x, w_enc, b_enc, w_dec, b_dec):
        values, indices = topk_encode(x, w_enc, b_enc, k, **BY)
        return decode_error(values, indices, w_dec, b_dec, x, **BY)[0].mean()

    return {
        "topk_encode": (
            functools.partial(topk_encode, k=k, **BY),
            ("x", "w_enc", "b_enc"),
        ),
        "threshold_encode": (
            functools.partial(threshold_encode, k=k, **BY),
            ("x", "w_enc", "b_enc", "threshold"),
        ),
        "groupmax_encode": (
            functools.partial(groupmax_encode, k=k, **BY),
            ("x", "groups_enc", "groups_bias"),
        ),
        "sparse_decode": (
            functools.partial(sparse_decode, **BY),
            ("values", "indices", "w_dec", "b_dec"),
        ),
        "decode_error": (
            functools.partial(decode_error, **BY),
            ("values", "indices", "w_dec", "b_dec", "x"),
        ),
        "autoencoder_gradients": (
            jax.grad(loss, argnums=range(5)),
            ("x", "w_enc", "b_enc", "w_dec", "b_dec"),
        ),
    }


def report(name, topology, shape, dtype, lower):
    begin = time.perf_counter()
    compiled = lower().compile()
    memory = compiled.memory_analysis()
    found = re.findall(r"(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]", compiled.as_text())
    line = {
        "program": name,
        "topology": topology,
        "dtype": dtype,
        "shape": [shape.tokens, shape.d, shape.n, shape.k],
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "largest": max(math.prod(map(int, sizes.split(","))) for sizes in found),
        "seconds": round(time.perf_counter() - begin, 1),
    }
    print(json.dumps(line), flush=True)


def operations(topology, device, shape, dtype, names=None):
    """Each operation on one device."""
    given = arrays(shape, dtype)
    for name, (f, arguments) in programs(shape.k).items():
        if names is None or name in names:
            lower = jax.jit(f).lower
            inputs = on(device, [given[a] for a in arguments])
            report(name, topology, shape, dtype, functools.partial(lower, *inputs))


def row_update(topology, device, shape, dtype, settings):
    given = arrays(shape, "float32")
    rows = jax.eval_shape(
        functools.partial(init_rows, settings=settings),
        given["w_enc"],
        given["b_enc"],
        given["w_dec"],
    )
    given = arrays(shape, dtype)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(rows, x, error, values, indices):
        return fused_row_update(
            rows, x, error, values, indices, learning_rate=1e-3, settings=settings, **BY
        )

    inputs = on(device, (rows, given["x"], given["x"], given["values"], given["indices"]))
    name = f"fused_row_update_{settings.moments}"
    report(name, topology, shape, dtype, functools.partial(update.lower, *inputs))


def sharded_step(topology, devices, shape, dtype):
    """Two devices over tokens, the rest over latents; replication checked; a step's gradients."""
    mesh = Mesh(
        np.array(devices).reshape(2, -1), ("data", "latent"), axis_types=(AxisType.Auto,) * 2
    )
    rows = P("latent")
    specs = {"x": P("data"), "w_enc": rows, "b_enc": rows, "w_dec": rows, "b_dec": P()}

    def loss(x, w_enc, b_enc, w_dec, b_dec):
        values, indices = topk_encode(x, w_enc, b_enc, shape.k, **BY)
        everyone = jax.lax.all_gather(values, "latent", axis=1, tiled=True)
        least = jax.lax.top_k(everyone, shape.k)[0][:, -1:]
        values = jnp.where(values >= least, values, 0)
        part = sparse_decode(values, indices, w_dec, jnp.zeros(shape.d, "float32"), **BY)
        error = jax.lax.psum(part.astype("float32"), "latent") + b_dec - x
        return jax.lax.pmean((error**2).mean(), "data")

    step = jax.shard_map(
        loss, mesh=mesh, in_specs=tuple(specs.values()), out_specs=P(), check_vma=True
    )
    given = arrays(shape, dtype)
    inputs = [
        jax.ShapeDtypeStruct(
            given[name].shape, given[name].dtype, sharding=NamedSharding(mesh, spec)
        )
        for name, spec in specs.items()
    ]
    lower = jax.jit(jax.grad(step, argnums=range(5))).lower
    report("sharded_gradients", topology, shape, dtype, functools.partial(lower, *inputs))


def on(device, tree):
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def main() -> None:
    for topology in TOPOLOGIES:
        devices = topologies.get_topology_desc(topology, "tpu").devices
        operations(topology, devices[0], SMALL, "bfloat16")
        operations(topology, devices[0], SMALL, "float32", ("autoencoder_gradients",))
        for moments in ("float32", "bfloat16", "int8"):
            settings = RowAdam(moments=moments, shadow="bfloat16")
            row_update(topology, devices[0], SMALL, "bfloat16", settings)
        sharded_step(topology, devices, Shape(64, 256, 1024, 8), "bfloat16")
        if topology == WIDE:
            for name in ("S", "L", "G"):
                operations(topology, devices[0], SPEED[name], "bfloat16", ("topk_encode",))
            for name in ("S", "L"):
                operations(
                    topology, devices[0], SPEED[name], "bfloat16", ("autoencoder_gradients",)
                )
            row_update(topology, devices[0], SPEED["L"], "bfloat16", RowAdam(shadow="bfloat16"))


if __name__ == "__main__":
    main()
