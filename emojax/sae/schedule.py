"""What changes from step to step by plan: the learning rate and the warmth of penalties."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from emojax.sae.train_config import TrainConfig


def learning_rate(settings: TrainConfig, n_latents: int, steps: int) -> Callable[[Any], Any]:
    """Rises linearly, stays, falls linearly to 0 at the last step."""
    peak = settings.learning_rate or 2e-4 / math.sqrt(n_latents / 2**14)
    rise = warmth(settings, steps)
    decay = max(1, round(settings.decay_share * steps))
    return lambda step: peak * jnp.minimum(rise(step), jnp.clip((steps - step) / decay, 0.0, 1.0))


def warmth(settings: TrainConfig, steps: int) -> Callable[[Any], Any]:
    """Rises linearly to 1 over the warm-up, and stays."""
    warm = max(1, round(settings.warmup_share * steps))
    return lambda step: jnp.clip((step + 1) / warm, 0.0, 1.0)
