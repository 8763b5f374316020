"""Matryoshka BatchTopK (Bussmann et al. 2025, arXiv:2503.17547): nested dictionaries in one.

The first latents must reconstruct without the later ones, so that general features are not absorbed
by special ones. The loss is the sum of the squared errors of all prefixes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from emojax.sae.coder import Codes, SaeConfig
from emojax.sae.objectives.batch_topk import least_kept, of_batch
from emojax.sae.objectives.objective import (
    Objective,
    Params,
    with_threshold,
)


def prefixes(config: SaeConfig) -> tuple[int, ...]:
    """Sizes of the nested dictionaries, the whole one last."""
    n = config.n_latents
    own = config.prefixes or tuple(size for size in (n // 16, n // 8, n // 4, n // 2) if size)
    return (*own, n)


def codes(config: SaeConfig, params: Params, x: Array) -> tuple[tuple[Codes, ...], Array]:
    """The batch's code, cut to each prefix."""
    code = of_batch(config, params, x)
    first = jax.lax.axis_index("latent") * params["b_enc"].shape[0]
    latents = first + code.indices
    nested = tuple(
        Codes(jnp.where(latents < size, code.values, 0), code.indices) for size in prefixes(config)
    )
    return nested, least_kept(code)


OBJECTIVE = Objective(codes, finished=with_threshold, one_term=False)
