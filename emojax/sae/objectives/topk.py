"""TopK (Gao et al. 2024, arXiv:2406.04093, §2.3): each token keeps its k largest latents."""

import jax.numpy as jnp
from emojax_kernels import topk_encode
from jaxtyping import Array

from emojax.sae import shards
from emojax.sae.coder import Codes, SaeConfig
from emojax.sae.objectives.objective import Objective, Params


def per_token(config: SaeConfig, params: Params, x: Array) -> Codes:
    """The largest `slots` latents of each token; each shard of latents holds its own."""
    k = min(config.slots, params["b_enc"].shape[0])
    values, indices = topk_encode(x, params["w_enc"], params["b_enc"], k)
    return Codes(shards.largest_of_token(values, config.slots), indices)


def codes(config: SaeConfig, params: Params, x: Array) -> tuple[tuple[Codes, ...], Array]:
    """One code; k is its sparsity."""
    return (per_token(config, params, x),), jnp.zeros(())


OBJECTIVE = Objective(codes)
