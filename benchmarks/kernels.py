"""How long each operation takes beside plain XLA JAX and the peers from PyPI.

    python -m benchmarks.kernels [--shapes cpu,gemma] [--implementations xla] [--repeats 20]

Prints a table and writes `benchmarks/results/kernels-<platform>.json`. "dense" is the same sum said
in plain JAX: `x @ w_enc.T`, `lax.top_k`, a masked dense code, `jax.grad`. Peers that are not
installed (extra `bench`) have a row that says so. Activations are Gaussian, and real: captured ones
where the shape has their width, else synthetic ones with their power law (`activations.py`).
"""

import functools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from emojax_kernels import (
    RowAdam,
    RowState,
    decode_error,
    fused_row_update,
    init_rows,
    sparse_decode,
    topk_encode,
)
from emojax_kernels.shapes import Shape
from jax import lax

from benchmarks import activations, peers, timing
from benchmarks.activations import Problem
from benchmarks.timing import Contender, jitted
from emojax import errors

GRADIENTS = "loss and all gradients"
# What a peer calls each operation; the update of rows is nobody else's.
OF_PEERS = {"encode": "encode", "decode": "decode", GRADIENTS: "gradients"}


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


def contenders(problem: Problem, k: int) -> dict[str, dict[str, Contender | str]]:
    """Operation to contender."""
    x, w_enc, b_enc, w_dec, b_dec = problem
    values, indices = jax.jit(functools.partial(topk_encode, k=k))(x, w_enc, b_enc)
    settings = RowAdam()
    cotangent = jax.jit(lambda *a: decode_error(*a)[1] * (2 / x.size))(
        values, indices, w_dec, b_dec, x
    )

    def dense_encode(x, w_enc, b_enc):
        # The values are to be used, or XLA leaves them out.
        return lax.optimization_barrier(lax.top_k((x @ w_enc.T + b_enc).astype(x.dtype), k))

    def dense_decode(values, indices, w_dec, b_dec):
        tokens = jnp.arange(values.shape[0])[:, None]
        codes = jnp.zeros((values.shape[0], w_dec.shape[0]), values.dtype)
        return codes.at[tokens, indices].add(values) @ w_dec + b_dec

    def update(rows, x, cotangent, values, indices, name):
        return fused_row_update(
            rows,
            x,
            cotangent,
            values,
            indices,
            learning_rate=1e-3,
            settings=settings,
            implementation=name,
        )[0]

    def gradients(loss: Callable) -> Contender:
        return jitted(jax.value_and_grad(loss, argnums=range(5)), *problem)

    def start() -> RowState:
        wide_enc, wide_dec = (w.astype("float32") for w in (w_enc, w_dec))
        return init_rows(wide_enc, b_enc, wide_dec, settings)

    def updates(name: str) -> Contender:
        rest = (x, cotangent, values, indices)
        step = functools.partial(update, name=name)
        return jitted(step, *rest, start=start)

    found: dict[str, dict[str, Contender | str]] = {
        "encode": {"dense": jitted(dense_encode, x, w_enc, b_enc)},
        "decode": {"dense": jitted(dense_decode, values, indices, w_dec, b_dec)},
        GRADIENTS: {"dense": gradients(functools.partial(dense_loss, k=k))},
        "row update": {"dense": updates("reference")},
    }
    for name in timing.implementations():
        encode = functools.partial(topk_encode, k=k, implementation=name)
        decode = functools.partial(sparse_decode, implementation=name)

        def loss(x, w_enc, b_enc, w_dec, b_dec, name=name, encode=encode):
            values, indices = encode(x, w_enc, b_enc)
            squared, _ = decode_error(values, indices, w_dec, b_dec, x, implementation=name)
            return squared.mean() / x.shape[1]

        found["encode"][name] = jitted(encode, x, w_enc, b_enc)
        found["decode"][name] = jitted(decode, values, indices, w_dec, b_dec)
        found[GRADIENTS][name] = gradients(loss)
        found["row update"][name] = updates(name)
    for operation, call in OF_PEERS.items():
        found[operation] |= peers.contenders(problem, k, call)
    return found


def spread(problem: Problem, shape: Shape) -> dict[str, float]:
    """How unevenly latents fire: the busiest's rate, the median, the share that never does."""
    x, w_enc, b_enc, _, _ = problem
    values, indices = jax.jit(functools.partial(topk_encode, k=shape.k))(x, w_enc, b_enc)
    rates = activations.firing(values, indices, shape.n)
    return {
        "busiest": round(float(rates[0]), 5),
        "median": round(float(jnp.median(rates)), 7),
        "never": round(float((rates == 0).mean()), 5),
    }


def describe(name: str, shape: Shape, kind: str, problem: Problem) -> dict:
    """Prints what is about to be measured; the same for the JSON."""
    rates = spread(problem, shape)
    print(
        f"{name} (tokens {shape.tokens}, d {shape.d}, n {shape.n}, k {shape.k}), {kind} "
        f"activations, {problem[0].dtype}: the busiest latent fires on {rates['busiest']:.1%} of "
        f"the tokens, {rates['never']:.1%} of the latents never; load {os.getloadavg()[0]:.1f}"
    )
    return {"shape": vars(shape), "activations": rates, "load_average": os.getloadavg()[0]}


def main(argv: Sequence[str]) -> None:
    """Measures, prints, writes."""
    del argv
    results, bars, behind = {}, [], []
    for name, shape in timing.shapes().items():
        for kind in activations.kinds(name):
            problem = activations.problem(shape, kind, timing.work_dtype())
            result = describe(name, shape, kind, problem)
            for operation, functions in contenders(problem, shape.k).items():
                print(f"  {operation}")
                figures = timing.timed(functions, timing.REPEATS.value)
                print("\n".join(timing.rows(figures, shape.tokens, "dense")), flush=True)
                result[operation] = figures
                if operation in OF_PEERS:
                    behind.append(_beside_peers(figures))
            results[f"{name}, {kind}"] = result
            if name == "cpu":
                faster = timing.ratio(result[GRADIENTS], "xla", "dense")
                on_cpu = jax.default_backend() == "cpu"
                text = f"cpu, {kind}: {GRADIENTS} at least 2 x dense"
                bars.append(timing.bar(text, faster, 2.0, on_cpu))
    text = "every operation at least as fast as the best peer's (H100; the least ratio)"
    bars.append(timing.bar(text, timing.least(behind), 1.0, timing.on_h100()))
    timing.write("kernels", {"repeats": timing.REPEATS.value, "bars": bars, "results": results})
    timing.end(results)


def _beside_peers(figures: dict) -> float | str:
    """The best of our implementations as a multiple of the best peer's speed."""
    ours = timing.implementations()
    ran = [name for name in ours if "median_ms" in figures[name]]
    best = min(ran, key=lambda name: figures[name]["median_ms"]) if ran else ours[0]
    return timing.least(timing.ratio(figures, best, peer) for peer in peers.MODULES)


if __name__ == "__main__":
    errors.run(main)
