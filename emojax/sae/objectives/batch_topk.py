"""BatchTopK (Bussmann et al. 2024, arXiv:2412.06410): a batch of B tokens keeps its B·k largest.

A token with more to say has more latents. A single token has no batch, so what is kept when the
dictionary is used lies above a threshold: the running mean of the least activation kept in
training.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from emojax.sae import shards
from emojax.sae.coder import Codes, SaeConfig
from emojax.sae.objectives.objective import (
    Objective,
    Params,
    with_threshold,
)
from emojax.sae.objectives.topk import per_token


def of_batch(config: SaeConfig, params: Params, x: Array) -> Codes:
    """The B·k largest of the batch, of each token's `slots` largest."""
    code = per_token(config, params, x)
    tokens = x.shape[0] * jax.lax.axis_size("data")
    least = shards.nth_largest(code.values, tokens * config.k)
    return Codes(jnp.where(code.values >= least, code.values, 0), code.indices)


def least_kept(code: Codes) -> Array:
    """The least activation that any shard kept."""
    values = jax.lax.stop_gradient(code.values)
    own = jnp.min(jnp.where(values > 0, values, jnp.inf))
    return jax.lax.pmin(own, ("data", "latent"))


def codes(config: SaeConfig, params: Params, x: Array) -> tuple[tuple[Codes, ...], Array]:
    """One code."""
    code = of_batch(config, params, x)
    return (code,), least_kept(code)


OBJECTIVE = Objective(codes, finished=with_threshold)
