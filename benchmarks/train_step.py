"""How long a whole training step of a TopK autoencoder takes: gradients, Adam, unit-norm decoder.

    python -m benchmarks.train_step [--shapes cpu,gemma] [--implementations xla] [--repeats 20]

Prints a table and writes `benchmarks/results/train_step-<platform>.json`. Contenders, all with
float32 weights and moments: "dense" (plain XLA JAX and optax), "<name> + optax" (this package's
operations and optax), "<name> fused" (`fused_row_update`). Beside them the roofline: the encoder's
GEMM and one read and write of weights and moments, at the rates that a GEMM of that size and a copy
reach in the same run. Timing as in `benchmarks.kernels`, whose flags this shares.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from emojax_kernels import RowAdam, decode_error, fused_row_update, init_rows, topk_encode
from emojax_kernels.shapes import Shape

from benchmarks import kernels
from emojax import errors

RATE = 1e-3


def unit(rows: jax.Array) -> jax.Array:
    """Rows of norm 1."""
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def with_optax(loss: Callable, optimiser: optax.GradientTransformation) -> Callable:
    """A step `(params, state, x) -> (params, state)` of any loss `(x, *params)`."""

    def step(params: tuple, state: optax.OptState, x: jax.Array) -> tuple:
        gradient = jax.grad(lambda params: loss(x, *params))(params)
        w_dec = params[2]
        along = (gradient[2] * w_dec).sum(1, keepdims=True)
        gradient = (*gradient[:2], gradient[2] - along * w_dec, gradient[3])
        updates, state = optimiser.update(gradient, state, params)
        w_enc, b_enc, w_dec, b_dec = jax.tree.map(jnp.add, params, updates)
        return (w_enc, b_enc, unit(w_dec), b_dec), state

    return step


def fused(shape: Shape, settings: RowAdam, optimiser: optax.GradientTransformation, name: str):
    """A step `((rows, b_dec), state, x)` with the fused update."""

    def step(params: tuple, state: optax.OptState, x: jax.Array) -> tuple:
        rows, b_dec = params
        values, indices = topk_encode(x, rows.w_enc, rows.b_enc, shape.k, implementation=name)
        _, error = decode_error(values, indices, rows.w_dec, b_dec, x, implementation=name)
        error = error * (2 / error.size)
        rows = fused_row_update(
            rows,
            x,
            error,
            values,
            indices,
            learning_rate=RATE,
            settings=settings,
            implementation=name,
        )
        updates, state = optimiser.update(error.sum(0), state)
        return (rows, b_dec + updates), state

    return step


def contenders(shape: Shape, implementations: Sequence[str]) -> tuple[dict, jax.Array]:
    """Name to `(step, params, state)`, and the batch."""
    x, w_enc, b_enc, w_dec, b_dec = kernels.problem(shape, "float32")
    params = (w_enc, b_enc, unit(w_dec), b_dec)
    optimiser = optax.adam(RATE)

    def sparse(x, w_enc, b_enc, w_dec, b_dec, name):
        code = topk_encode(x, w_enc, b_enc, shape.k, implementation=name)
        return decode_error(*code, w_dec, b_dec, x, implementation=name)[0].mean() / shape.d

    def dense(x, w_enc, b_enc, w_dec, b_dec):
        return kernels.dense_loss(x, w_enc, b_enc, w_dec, b_dec, shape.k)

    start = (params, optimiser.init(params))
    found: dict[str, tuple[Callable, Any, Any]] = {"dense": (with_optax(dense, optimiser), *start)}
    for name in implementations:
        loss = functools.partial(sparse, name=name)
        found[f"{name} + optax"] = (with_optax(loss, optimiser), *start)
        settings = RowAdam()
        rows = init_rows(w_enc, b_enc, params[2], settings)
        step = fused(shape, settings, optimiser, name)
        found[f"{name} fused"] = (step, (rows, b_dec), optimiser.init(b_dec))
    return found, x


def roofline(shape: Shape, x: jax.Array, w: jax.Array, repeats: int) -> float:
    """Milliseconds that the step's one GEMM and its weights and moments need at measured rates."""
    product, copy = jax.jit(lambda x, w: x @ w.T), jax.jit(lambda x, w: w * 2)
    taken = kernels.timed({"gemm": product, "copy": copy}, (x, w), repeats)
    # Six matrices (weights, two moments; encoder, decoder) are each read and written once.
    return taken["gemm"]["least_ms"] + 6 * taken["copy"]["least_ms"]


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    results = {}
    repeats = kernels.REPEATS.value
    for name, shape in kernels.named_shapes(kernels.SHAPES.value).items():
        steps, x = contenders(shape, kernels.IMPLEMENTATIONS.value)
        print(f"{name}: {shape}, float32")
        calls, peaks = {}, {}
        for who, (step, params, state) in steps.items():
            leaves, structure = jax.tree.flatten((params, state))

            def run(leaves, x, step=step, structure=structure):
                return step(*jax.tree.unflatten(structure, leaves), x)

            compiled = jax.jit(run).lower(leaves, x).compile()
            memory: Any = compiled.memory_analysis()
            peaks[who] = memory.temp_size_in_bytes + memory.argument_size_in_bytes
            calls[who] = functools.partial(compiled, leaves)
        figures = kernels.timed(calls, (x,), repeats)
        floor = roofline(shape, x, steps["dense"][1][0], repeats)
        for who, figure in figures.items():
            figure["tokens_per_second"] = round(1e3 * shape.tokens / figure["median_ms"])
            figure["memory_mib"] = round(peaks[who] / 2**20)
            faster = figures["dense"]["median_ms"] / figure["median_ms"]
            print(
                f"  {who:14s}{figure['median_ms']:10.1f} ms{faster:8.2f} x"
                f"{figure['tokens_per_second']:12,d} tokens/s{figure['memory_mib']:8,d} MiB"
            )
        print(f"  roofline      {floor:10.1f} ms")
        results[name] = {"shape": vars(shape), "roofline_ms": round(floor, 3), **figures}
    kernels.write("train_step", {"repeats": repeats, "results": results})


if __name__ == "__main__":
    errors.run(main)
