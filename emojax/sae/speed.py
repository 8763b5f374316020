"""How much of the machine a training step uses."""

import time

import jax
import jax.numpy as jnp

from emojax.sae.coder import SaeConfig
from emojax.sae.objectives import OBJECTIVES

# Dense bfloat16 FLOP/s of one device, from its data sheet, by JAX's name of its kind.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def flops_per_token(config: SaeConfig) -> int:
    """Floating-point operations that a step's products ask for.

    Sparse codes: the encoder's product, and four of k rows (decode, the gradient of the code, both
    matrices' gradients). Dense ones: five products of all rows.
    """
    row = 2 * config.d_model
    if OBJECTIVES[config.architecture].codes is None:
        return 5 * row * config.n_latents
    return row * (config.n_latents + 4 * config.k)


def peak_flops() -> float:
    """FLOP/s of all devices: of the data sheet, or of a product measured here where it has none."""
    kind = jax.devices()[0].device_kind
    return jax.device_count() * (PEAKS.get(kind) or _measured())


def _measured(size: int = 1024, calls: int = 3) -> float:
    product = jax.jit(lambda a: a @ a)
    a = jnp.ones((size, size))
    jax.block_until_ready(product(a))
    best = float("inf")
    for _ in range(calls):
        started = time.perf_counter()
        jax.block_until_ready(product(a))
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
