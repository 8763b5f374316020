"""How long each operation of emojax-kernels takes beside plain XLA JAX.

    python -m benchmarks.kernels [--shapes cpu,gemma] [--dtype float32] [--repeats 20]

Prints a table and writes `benchmarks/results/kernels-<platform>.json`. "dense" is the same sum said
with `x @ w_enc.T`, `lax.top_k`, a masked dense code and `jax.grad`. Contenders take turns, so that
whatever else the machine does falls on all alike; the time is that of a blocked call, the median of
`--repeats` (and the least beside it). The activations are Gaussian.
"""

import functools
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from emojax_kernels import decode_error, sparse_decode, topk_encode
from emojax_kernels.shapes import SPEED, Shape
from jax import lax

from emojax import errors, files
from emojax.errors import UserError

SHAPES = flags.DEFINE_list("shapes", ["cpu", "gemma"], "Names in emojax_kernels.shapes.SPEED.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the activations.")
REPEATS = flags.DEFINE_integer("repeats", 20, "Timed calls per contender.", lower_bound=1)
IMPLEMENTATIONS = flags.DEFINE_list("implementations", ["xla"], "Beside dense: xla, triton.")
OUTPUT = flags.DEFINE_string("output", "benchmarks/results", "Folder of the JSON.")


def problem(shape: Shape, dtype: str) -> tuple[jax.Array, ...]:
    """x, w_enc, b_enc, w_dec, b_dec, with Gaussian x and Gaussian rows of unit scale."""
    rng = np.random.default_rng(0)

    def rows(count: int, scale: float) -> jax.Array:
        drawn = rng.standard_normal((count, shape.d), np.float32) * np.float32(scale)
        return jnp.asarray(drawn, dtype)

    unit = shape.d**-0.5
    bias = jnp.zeros(shape.n), jnp.zeros(shape.d)
    return rows(shape.tokens, 1.0), rows(shape.n, unit), bias[0], rows(shape.n, unit), bias[1]


def dense_codes(x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, k: int) -> jax.Array:
    """TopK codes `[tokens, n]` with a mask instead of indices."""
    pre = (x @ w_enc.T + b_enc).astype(x.dtype)
    # The barrier helps the baseline: without it XLA on the CPU sorts whole rows.
    least = lax.optimization_barrier(lax.top_k(pre, k)[0])[:, -1:]
    return jax.nn.relu(jnp.where(pre >= least, pre, 0))


def dense_loss(
    x: jax.Array,
    w_enc: jax.Array,
    b_enc: jax.Array,
    w_dec: jax.Array,
    b_dec: jax.Array,
    k: int,
) -> jax.Array:
    """Mean squared error of a TopK autoencoder, all dense."""
    error = dense_codes(x, w_enc, b_enc, k) @ w_dec + b_dec - x
    return (error.astype(jnp.float32) ** 2).mean()


def contenders(shape: Shape, implementations: Sequence[str]) -> dict[str, dict[str, Callable]]:
    """Operation to contender to a function of `problem`."""
    k = shape.k

    def dense_encode(x, w_enc, b_enc, w_dec, b_dec):
        return lax.top_k(x @ w_enc.T + b_enc, k)

    def dense_decode(x, w_enc, b_enc, w_dec, b_dec):
        return dense_codes(x, w_enc, b_enc, k) @ w_dec + b_dec

    def dense(x, w_enc, b_enc, w_dec, b_dec):
        return dense_loss(x, w_enc, b_enc, w_dec, b_dec, k)

    def gradients(loss: Callable) -> Callable:
        return jax.value_and_grad(loss, argnums=range(5))

    found: dict[str, dict[str, Callable]] = {
        "encode": {"dense": dense_encode},
        "encode and decode": {"dense": dense_decode},
        "loss and all gradients": {"dense": gradients(dense)},
    }
    for name in implementations:
        encode = functools.partial(topk_encode, k=k, implementation=name)

        def decode(x, w_enc, b_enc, w_dec, b_dec, name=name, encode=encode):
            values, indices = encode(x, w_enc, b_enc)
            return sparse_decode(values, indices, w_dec, b_dec, implementation=name)

        def loss(x, w_enc, b_enc, w_dec, b_dec, name=name, encode=encode):
            values, indices = encode(x, w_enc, b_enc)
            squared, _ = decode_error(values, indices, w_dec, b_dec, x, implementation=name)
            return squared.mean() / shape.d

        found["encode"][name] = lambda x, w, b, *_, encode=encode: encode(x, w, b)
        found["encode and decode"][name] = decode
        found["loss and all gradients"][name] = gradients(loss)
    return found


def timed(functions: Mapping[str, Callable], arguments: tuple, repeats: int) -> dict[str, dict]:
    """Median and least milliseconds of each function, taking turns, compiled before."""
    for function in functions.values():
        jax.block_until_ready(function(*arguments))
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            taken[name].append(1e3 * (time.perf_counter() - started))
    return {
        name: {"median_ms": round(float(np.median(t)), 3), "least_ms": round(min(t), 3)}
        for name, t in taken.items()
    }


def named_shapes(names: Sequence[str]) -> dict[str, Shape]:
    """The shapes asked for.

    Raises:
        UserError: for a name that is not in `SPEED`.
    """
    unknown = [name for name in names if name not in SPEED]
    if unknown:
        raise UserError(f"--shapes: {', '.join(unknown)} unknown; use some of {', '.join(SPEED)}.")
    return {name: SPEED[name] for name in names}


def machine() -> dict[str, str | int | None]:
    """What the figures were measured on."""
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def write(name: str, report: dict) -> None:
    """The JSON of one benchmark, whole or not at all."""
    path = Path(OUTPUT.value) / f"{name}-{jax.default_backend()}.json"
    with files.atomic(path) as partial:
        partial.write_text(json.dumps(machine() | report, indent=1) + "\n")
    print(f"written to {path}")


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    results = {}
    for name, shape in named_shapes(SHAPES.value).items():
        print(f"{name}: {shape}, {DTYPE.value}, load average {os.getloadavg()[0]:.1f}")
        arguments = problem(shape, DTYPE.value)
        results[name] = {"shape": vars(shape), "load_average": os.getloadavg()[0]}
        for operation, functions in contenders(shape, IMPLEMENTATIONS.value).items():
            compiled = {who: jax.jit(f) for who, f in functions.items()}
            figures = timed(compiled, arguments, REPEATS.value)
            results[name][operation] = figures
            for who, figure in figures.items():
                faster = figures["dense"]["median_ms"] / figure["median_ms"]
                print(f"  {operation:24s}{who:8s}{figure['median_ms']:10.1f} ms{faster:8.2f} x")
    write("kernels", {"dtype": DTYPE.value, "repeats": REPEATS.value, "results": results})


if __name__ == "__main__":
    errors.run(main)
