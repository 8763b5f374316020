"""How quickly a training goes, and how much of the machine its steps use."""

import time

import jax
import jax.numpy as jnp

from emojax.sae.ahead import Stopwatch
from emojax.sae.coder import SaeConfig
from emojax.sae.objectives import OBJECTIVES
from emojax.sae.train_config import TrainConfig

# Dense bfloat16 FLOP/s of one device, from its data sheet, by JAX's name of its kind. A TPU v7x
# chip is two devices.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


class Meter:
    """What the clock says of the steps since the last line of the log.

    MFU (model FLOPs utilisation: Chowdhery et al. 2022, arXiv:2204.02311, appendix B) is that of
    the dictionary, `sae_mfu`: capture counts as time, not as work.
    """

    def __init__(self, config: SaeConfig, settings: TrainConfig, waiting: Stopwatch, step: int):
        self._use = flops_per_token(config) / peak_flops(settings)
        self._batch_tokens, self._waiting = settings.batch_tokens, waiting
        self._begin(step)

    def _begin(self, step: int) -> None:
        self._since, self._step = time.perf_counter(), step
        self._waited = self._waiting.seconds

    def read(self, step: int) -> dict[str, float | int]:
        """The rates up to this step; the next ones are from here on."""
        seconds = time.perf_counter() - self._since
        per_second = (step - self._step) * self._batch_tokens / seconds
        wait = self._waiting.seconds - self._waited
        self._begin(step)
        return {
            "tokens_per_second": round(per_second),
            "input_wait": float(f"{wait / seconds:.3g}"),
            "sae_mfu": float(f"{per_second * self._use:.3g}"),
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


def peak_flops(settings: TrainConfig) -> float:
    """FLOP/s of a mesh: of the data sheet, or of a product measured here where there is none."""
    kind = jax.devices()[0].device_kind
    devices = settings.data_shards * settings.latent_shards
    return devices * (PEAKS.get(kind) or _measured())


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
