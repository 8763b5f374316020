"""ReLU with an L1 penalty weighted by decoder norms.

(Conerly et al. 2024, "Update on how we train SAEs", transformer-circuits.pub, April 2024.)

The penalty is λ · Σ_j z_j ‖w_dec_j‖, so that shrinking codes and growing rows gains nothing, and
rows are free. When training is over the norms move into the encoder (`emojax.sae.state.finish`).
"""

import jax.numpy as jnp
from jaxtyping import Array

from emojax.sae import shards
from emojax.sae.coder import SaeConfig
from emojax.sae.objectives.dense import dense_forward, preactivations
from emojax.sae.objectives.objective import Forward, Objective, Params
from emojax.sae.train_config import TrainConfig


def forward(
    config: SaeConfig, settings: TrainConfig, params: Params, x: Array, warmth: Array
) -> Forward:
    """One term, and the penalty on the size of the code."""
    del config
    z = jnp.maximum(preactivations(params, x), 0)
    size = shards.sum_latents(z @ jnp.linalg.norm(params["w_dec"], axis=1))
    penalty = warmth * settings.sparsity_coefficient * shards.mean_tokens(jnp.mean(size))
    return dense_forward(params, z, penalty)


def finished(params: Params, cutoff: Array) -> Params:
    """Whatever is positive counts."""
    del cutoff
    return params | {"threshold": jnp.zeros_like(params["b_enc"])}


OBJECTIVE = Objective(dense=forward, finished=finished, unit_rows=False)
