"""How long a whole training step of a TopK autoencoder takes: gradients, Adam, unit-norm decoder.

    python -m benchmarks.train_step [--shapes cpu,gemma] [--implementations xla] [--repeats 20]

Prints a table, writes `benchmarks/results/train_step-<platform>.json` and a figure of it beside.
All contenders keep float32 weights and moments, and Adam; products are float32 on a CPU and
bfloat16 elsewhere. "dense" is plain XLA JAX and optax, "<name> + optax" this package's operations
and optax, "<name> fused" its `fused_row_update`. Off the CPU, "fused fast" has 8-bit moments and
bfloat16 weights with stochastic rounding, with "xla" fp8 candidate scoring too. Then the peers
(`peers.py`). The roofline is the encoder's GEMM and one read and one write of weights and moments,
at the rates that such a GEMM and an update in place reach in the same run. Timing and flags as in
`benchmarks.kernels`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from emojax_kernels import RowAdam, decode_error, fused_row_update, init_rows, topk_encode

from benchmarks import activations, figure, kernels, peers, timing
from benchmarks.activations import Problem
from benchmarks.timing import Contender, jitted
from emojax import errors

RATE = 1e-3
EXACT, FAST = "fused", "fused fast"


def unit(rows: jax.Array) -> jax.Array:
    """Rows of norm 1."""
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def with_optax(loss: Callable, optimiser: optax.GradientTransformation, dtype: str) -> Callable:
    """A step `((params, state), x)` of any loss `(x, *params)`, computed in `dtype`."""

    def step(held: tuple, x: jax.Array) -> tuple:
        params, state = held

        def of(params: tuple) -> jax.Array:
            w_enc, b_enc, w_dec, b_dec = params
            return loss(x, w_enc.astype(dtype), b_enc, w_dec.astype(dtype), b_dec)

        gradient = jax.grad(of)(params)
        w_dec = params[2]
        along = (gradient[2] * w_dec).sum(1, keepdims=True)
        gradient = (*gradient[:2], gradient[2] - along * w_dec, gradient[3])
        updates, state = optimiser.update(gradient, state, params)
        w_enc, b_enc, w_dec, b_dec = jax.tree.map(jnp.add, params, updates)
        return (w_enc, b_enc, unit(w_dec), b_dec), state

    return step


def fused(
    k: int,
    settings: RowAdam,
    optimiser: optax.GradientTransformation,
    name: str,
    scoring: str | None = None,
) -> Callable:
    """A step `((rows, b_dec, state), x)` with the fused update."""

    def step(held: tuple, x: jax.Array) -> tuple:
        rows, b_dec, state = held
        w_enc = rows.w_enc if rows.shadow_enc is None else rows.shadow_enc
        w_dec = rows.w_dec if rows.shadow_dec is None else rows.shadow_dec
        values, indices = topk_encode(
            x, w_enc, rows.b_enc, k, implementation=name, scoring=scoring
        )[:2]
        _, error = decode_error(values, indices, w_dec, b_dec, x, implementation=name)
        error = error * (2 / error.size)
        rows, _ = fused_row_update(
            rows,
            x,
            error,
            values,
            indices,
            learning_rate=RATE,
            settings=settings,
            implementation=name,
        )
        gradient = error.sum(0, dtype=jnp.float32)
        updates, state = optimiser.update(gradient, state)
        return rows, b_dec + updates, state

    return step


def contenders(problem: Problem, k: int) -> dict[str, Contender | str]:
    """The steps by name."""
    x, w_enc, b_enc, w_dec, b_dec = problem
    dtype = str(x.dtype)
    optimiser = optax.adam(RATE)

    def parameters() -> tuple:
        return w_enc.astype("float32"), b_enc, unit(w_dec.astype("float32")), b_dec

    def start() -> tuple:
        params = parameters()
        return params, optimiser.init(params)

    def sparse(x, w_enc, b_enc, w_dec, b_dec, name):
        code = topk_encode(x, w_enc, b_enc, k, implementation=name)
        squared, _ = decode_error(*code, w_dec, b_dec, x, implementation=name)
        return squared.mean() / x.shape[1]

    def rows_of(settings: RowAdam, weights: str) -> tuple:
        w_enc, b_enc, w_dec, b_dec = parameters()
        rows = init_rows(w_enc.astype(weights), b_enc, w_dec.astype(weights), settings)
        return rows, b_dec, optimiser.init(b_dec)

    def of_rows(name: str, settings: RowAdam, weights: str, scoring: str | None) -> Contender:
        step = fused(k, settings, optimiser, name, scoring)
        return jitted(step, x, start=lambda: rows_of(settings, weights))

    dense = functools.partial(kernels.dense_loss, k=k)
    found: dict[str, Contender | str] = {
        "dense": jitted(with_optax(dense, optimiser, dtype), x, start=start)
    }
    shadow = None if dtype == "float32" else dtype
    for name in timing.implementations():
        loss = with_optax(functools.partial(sparse, name=name), optimiser, dtype)
        found[f"{name} + optax"] = jitted(loss, x, start=start)
        found[f"{name} {EXACT}"] = of_rows(name, RowAdam(shadow=shadow), "float32", None)
        if dtype == "bfloat16":
            scoring = "float8_e4m3fn" if name == "xla" else None
            found[f"{name} {FAST}"] = of_rows(name, RowAdam(moments="int8"), "bfloat16", scoring)
    return found | peers.contenders(problem, k, "step")


def roofline(problem: Problem, repeats: int) -> dict[str, Any]:
    """What the step's one GEMM and its weights and moments need at the rates measured here.

    Returns:
      `ms`, and the rates: `tflops` of x @ w_enc.T, `gb_per_s` of float32 updated in place. Or
      `failed` and `ours`, as of `timing.timed`.
    """
    x, w_enc, *_ = problem
    taken = timing.timed(
        {
            "gemm": jitted(lambda x, w: x @ w.T, x, w_enc),
            "copy": jitted(lambda w: -w, start=lambda: w_enc.astype("float32")),
        },
        repeats,
    )
    for name, found in taken.items():
        if "failed" in found:
            return found | {"failed": f"{name}: {found['failed']}"}
    gemm, copy = taken["gemm"]["least_ms"], taken["copy"]["least_ms"]
    # Weights and two moments of encoder and decoder are read and written once; bfloat16 copies of
    # the weights, where there are any, are written: 4 of the copy's 8 bytes per parameter.
    passes = 6 if x.dtype == jnp.float32 else 6.5
    return {
        "ms": round(gemm + passes * copy, 4),
        "tflops": round(2e-9 * x.shape[0] * w_enc.size / gemm, 3),
        "gb_per_s": round(8e-6 * w_enc.size / copy, 2),
    }


def said(floor: dict[str, Any]) -> str:
    """The roofline as the tables have it."""
    if "failed" in floor:
        return f"FAILED: {floor['failed']}"
    return f"{floor['ms']:.2f} ms ({floor['tflops']} TFLOP/s, {floor['gb_per_s']} GB/s)"


def bars(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars that the project set for one H100, and what became of them."""
    here, found = timing.on_h100(), []
    for shape, sparsify, fast in (("S", 3.7, 5.0), ("L", 3.0, 4.5)):
        result, exact = results.get(f"{shape}, power law", {}), f"triton {EXACT}"
        floor = result.get("roofline", {"absent": "not asked for"})
        if "ms" in floor:
            floor = {"median_ms": floor["ms"]}
        figures = result.get("steps", {}) | {"roofline": floor}
        for text, of, to, least in (
            (f"step at least {sparsify} x sparsify", exact, "sparsify", sparsify),
            ("step at least 8 x plain XLA", exact, "dense", 8.0),
            (f"fast step at least {fast} x sparsify", f"triton {FAST}", "sparsify", fast),
            ("step at least 0.85 of the roofline", exact, "roofline", 0.85),
        ):
            measured = timing.ratio(figures, of, to)
            found.append(timing.bar(f"H100, {shape}: {text}", measured, least, here))
        if shape == "L":
            memory = figures.get(exact, {}).get("memory_mib")
            room = 17 * 1024 / memory if memory else timing.ratio(figures, exact, exact)
            text = "H100, L: peak memory at most 17 GiB (17 over GiB used)"
            found.append(timing.bar(text, room, 1.0, here))
    return found


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    results: dict[str, dict[str, Any]] = {}
    repeats = timing.REPEATS.value
    for name, shape in timing.shapes().items():
        for kind in activations.kinds(name):
            problem = activations.problem(shape, kind, timing.work_dtype())
            result = kernels.describe(name, shape, kind, problem)
            steps = timing.timed(contenders(problem, shape.k), repeats)
            floor = roofline(problem, repeats)
            print("\n".join(timing.rows(steps, shape.tokens, "dense")))
            print(f"    {'roofline':32s}{said(floor)}", flush=True)
            results[f"{name}, {kind}"] = result | {"roofline": floor, "steps": steps}
    report = {"repeats": repeats, "bars": bars(results), "results": results}
    timing.write("train_step", report)
    platform = jax.default_backend()
    figure.draw(report | timing.machine(), timing.output(f"train_step-{platform}.svg"))
    timing.end(results)


if __name__ == "__main__":
    errors.run(main)
