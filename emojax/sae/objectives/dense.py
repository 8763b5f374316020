"""What the architectures share whose gradient needs every pre-activation of a batch."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from emojax.sae.objectives.objective import Forward, Params, Term


def preactivations(params: Params, x: Array) -> Float[Array, "tokens n_latents"]:
    """What this shard's encoder rows read."""
    return x @ params["w_enc"].T + params["b_enc"]


def dense_forward(
    params: Params, z: Float[Array, "tokens n_latents"], penalty: Array, *before: Term
) -> Forward:
    """The forward pass of dense codes."""
    return Forward(
        terms=(*before, Term(z @ params["w_dec"], params["b_dec"])),
        penalty=penalty,
        active=jnp.sum(z > 0).astype(jnp.float32),
        fired=jnp.any(z > 0, axis=0),
        least=jnp.zeros(()),
    )
