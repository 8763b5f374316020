"""The loss of one shard of tokens on one shard of latents: inside `shard_map`.

In units of the scaled input, with v the variance of a sample of what is reconstructed:

    L = Σ_terms mean ‖y - ŷ‖² / v  +  penalty  +  α · ‖e - ê‖² / ‖e‖²,    e = stop_gradient(y - ŷ)

y is the input x itself, or a transcoder's target. The terms and the penalty are the architecture's
(`emojax.sae.objectives`). ê is what the k_aux most active *dead* latents make of the error (AuxK:
Gao et al. 2024, arXiv:2406.04093, §2.3 and appendix A.2); for a TopK dictionary it is the only way
by which a dead latent gets a gradient.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from emojax_kernels import sparse_decode, topk_encode
from jaxtyping import Array, Bool, Float

from emojax.sae import coder, shards
from emojax.sae.coder import Codes, SaeConfig
from emojax.sae.objectives import OBJECTIVES
from emojax.sae.objectives.objective import Forward, Params, Term, sparse_forward
from emojax.sae.train_config import TrainConfig


class Batch(NamedTuple):
    """A step's data, and what of the state the loss reads.

    Attributes:
      x: this shard's scaled activations.
      target: what they should become: x, or a transcoder's other site.
      variance: of the target.
      dead: which of this shard's latents have not fired for long.
      warmth: share of the penalty that is in force.
    """

    x: Float[Array, "tokens d_model"]
    target: Float[Array, "tokens d_model"]
    variance: Float[Array, ""]
    dead: Bool[Array, " n_latents"]
    warmth: Float[Array, ""]


def loss(
    config: SaeConfig, settings: TrainConfig, params: Params, batch: Batch
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The mean over this shard's tokens, and what the log and the state need of it.

    Args:
      config: what the dictionary is.
      settings: how it is trained.
      params: this shard's rows, and the whole `b_dec`.
      batch: the data.
    """
    x = coder.centred(config, shards.into_latents(params["b_dec"]), batch.x)
    objective = OBJECTIVES[config.architecture]
    if objective.dense is not None:
        forward = objective.dense(config, settings, params, x, batch.warmth)
    else:
        assert objective.codes is not None
        forward = sparse_forward(params, *objective.codes(config, params, x))
    squared, error = reconstruction(forward.terms, batch)
    n_dead = jax.lax.psum(jnp.sum(batch.dead), "latent")
    auxiliary = jnp.zeros(())
    if settings.aux_coefficient:

        def revive() -> Array:
            codes = aux_codes(config, settings, params, batch)
            nowhere = jnp.zeros_like(params["b_dec"])
            part = sparse_decode(codes.values, codes.indices, params["w_dec"], nowhere)
            return aux_loss(part, jax.lax.stop_gradient(error))

        # A branch, because most steps of a healthy run have no dead latent to pay for.
        auxiliary = jax.lax.cond(n_dead > 0, revive, lambda: jnp.zeros(()))
    total = sum(squared) + forward.penalty + settings.aux_coefficient * auxiliary
    return total, measured(forward, squared, auxiliary, n_dead, batch)


def reconstruction(
    terms: Sequence[Term], batch: Batch
) -> tuple[list[Array], Float[Array, "tokens d_model"]]:
    """Each term's share of the variance that it leaves, and the whole reconstruction's error."""
    errors = [batch.target - term.b_dec - shards.sum_latents(term.part) for term in terms]
    return [jnp.mean(jnp.sum(e**2, axis=1)) / batch.variance for e in errors], errors[-1]


def aux_codes(config: SaeConfig, settings: TrainConfig, params: Params, batch: Batch) -> Codes:
    """The k_aux most active dead latents of each token. b_dec is not theirs to move."""
    k = min(settings.k_aux, params["b_enc"].shape[0])
    x = coder.centred(config, jax.lax.stop_gradient(params["b_dec"]), batch.x)
    values, indices = topk_encode(x, params["w_enc"], params["b_enc"], k, mask=batch.dead)
    return Codes(shards.largest_of_token(values, settings.k_aux), indices)


def aux_loss(
    part: Float[Array, "tokens d_model"], error: Float[Array, "tokens d_model"]
) -> Float[Array, ""]:
    """Share of the error that the dead latents leave."""
    left = jnp.mean(jnp.sum((error - shards.sum_latents(part)) ** 2, axis=1))
    return left / jax.lax.pmean(jnp.mean(jnp.sum(error**2, axis=1)), "data")


def measured(
    forward: Forward, squared: Sequence[Array], auxiliary: Array, n_dead: Array, batch: Batch
) -> dict[str, Array]:
    """What is logged (scalars), and `fired` and `least` for the state."""
    return {
        "reconstruction": squared[-1],
        "penalty": forward.penalty,
        "aux": auxiliary,
        "l0": jax.lax.psum(forward.active, "latent") / batch.x.shape[0],
        "dead": n_dead,
        "fired": forward.fired,
        "least": forward.least,
    }
