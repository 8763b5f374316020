"""Gated (Rajamanoharan et al. 2024, arXiv:2404.16014): whether and how much are decided apart.

With tied encoders (their equation 8), π = W_enc (x - b_dec) + b_enc gates and
exp(r_mag) · W_enc (x - b_dec) + b_mag is the size. The loss (equation 9) adds λ ‖ReLU(π)‖₁ and how
well ReLU(π) alone reconstructs through a frozen decoder, from which the gate learns.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from emojax.sae import shards
from emojax.sae.coder import SaeConfig
from emojax.sae.objectives.dense import dense_forward
from emojax.sae.objectives.objective import Forward, Objective, Params, Term
from emojax.sae.train_config import TrainConfig


def extra(config: SaeConfig) -> Params:
    """The size's gain, as a logarithm, and bias."""
    return {"r_mag": jnp.zeros(config.n_latents), "b_mag": jnp.zeros(config.n_latents)}


def forward(
    config: SaeConfig, settings: TrainConfig, params: Params, x: Array, warmth: Array
) -> Forward:
    """The gate's term, the whole one, and the penalty on the gate."""
    del config
    read = x @ params["w_enc"].T
    gate = read + params["b_enc"]
    size = jnp.exp(params["r_mag"]) * read + params["b_mag"]
    z = jnp.where(gate > 0, jnp.maximum(size, 0), 0)
    open_gate = jnp.maximum(gate, 0)
    length = shards.sum_latents(jnp.sum(open_gate, axis=1))
    penalty = warmth * settings.sparsity_coefficient * shards.mean_tokens(jnp.mean(length))
    frozen = jax.lax.stop_gradient((params["w_dec"], params["b_dec"]))
    return dense_forward(params, z, penalty, Term(open_gate @ frozen[0], frozen[1]))


def finished(params: Params, cutoff: Array) -> Params:
    """The same function as a JumpReLU: π > 0 is the size above b_mag - exp(r_mag) b_enc."""
    del cutoff
    gain = jnp.exp(params["r_mag"])
    return {
        "w_enc": params["w_enc"] * gain[:, None],
        "b_enc": params["b_mag"],
        "w_dec": params["w_dec"],
        "b_dec": params["b_dec"],
        "threshold": jnp.maximum(params["b_mag"] - gain * params["b_enc"], 0),
    }


OBJECTIVE = Objective(dense=forward, extra=extra, finished=finished)
