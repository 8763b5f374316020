"""JumpReLU (Rajamanoharan et al. 2024, arXiv:2407.14435), with an L0 target.

A latent counts if it exceeds its own threshold, which learns through straight-through gradients.
The penalty is λ (L0 / k - 1)², λ being `sparsity_coefficient`: it says how many latents are wanted,
so that λ need not be searched for. The threshold is the magnitude of what is trained: positive, and
free to rise from its start in a short run (as a logarithm it takes lr⁻¹ steps to grow e-fold).
"""

import jax.numpy as jnp
from emojax_kernels import jumprelu, step
from jaxtyping import Array

from emojax.sae import shards
from emojax.sae.coder import SaeConfig
from emojax.sae.objectives.dense import dense_forward, preactivations
from emojax.sae.objectives.objective import Forward, Objective, Params
from emojax.sae.train_config import TrainConfig

START = 0.001  # the threshold before training (their §4)


def extra(config: SaeConfig) -> Params:
    """Thresholds."""
    return {"threshold": jnp.full(config.n_latents, START)}


def forward(
    config: SaeConfig, settings: TrainConfig, params: Params, x: Array, warmth: Array
) -> Forward:
    """One term, and the penalty on the number of active latents."""
    pre, threshold = preactivations(params, x), jnp.abs(params["threshold"])
    z = jumprelu(pre, threshold, settings.bandwidth)
    own = jnp.sum(step(pre, threshold, settings.bandwidth), axis=1)
    l0 = shards.mean_tokens(jnp.mean(shards.sum_latents(own)))
    penalty = warmth * settings.sparsity_coefficient * (l0 / config.k - 1) ** 2
    return dense_forward(params, z, penalty)


def finished(params: Params, cutoff: Array) -> Params:
    """Thresholds as they are used."""
    del cutoff
    return params | {"threshold": jnp.abs(params["threshold"])}


OBJECTIVE = Objective(dense=forward, extra=extra, finished=finished)
