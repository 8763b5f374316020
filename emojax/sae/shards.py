"""What crosses the mesh inside `shard_map`, and what its gradient is.

Latents are split over `latent`, tokens over `data`. JAX cannot see what of a kernel's output varies
over the mesh, so every crossing says its own gradient. The convention: each shard of tokens has the
gradient of its own mean, and the step averages over `data`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def sum_latents(part: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Sums what the shards of latents have; each shard's part gets the sum's own gradient."""
    return jax.lax.psum(part, "latent")


sum_latents.defvjp(lambda part: (sum_latents(part), None), lambda _, gradient: (gradient,))


@jax.custom_vjp
def into_latents(b_dec: Float[Array, " d_model"]) -> Float[Array, " d_model"]:
    """The same vector for each shard of latents; its gradient is the sum of theirs."""
    return b_dec


into_latents.defvjp(
    lambda b_dec: (b_dec, None), lambda _, gradient: (jax.lax.psum(gradient, "latent"),)
)


@jax.custom_vjp
def mean_tokens(own: Float[Array, ""]) -> Float[Array, ""]:
    """The mean over all tokens of a mean over this shard's; its gradient is this shard's own."""
    return jax.lax.pmean(own, "data")


mean_tokens.defvjp(lambda own: (mean_tokens(own), None), lambda _, gradient: (gradient,))


def largest_of_token(
    values: Float[Array, "tokens candidates"], k: int
) -> Float[Array, "tokens candidates"]:
    """Keeps what is among a token's k largest over all shards of latents; the rest becomes 0.

    Only values travel.
    """
    if jax.lax.axis_size("latent") == 1:
        return values
    everywhere = jax.lax.all_gather(jax.lax.stop_gradient(values), "latent", axis=1, tiled=True)
    threshold = jax.lax.top_k(everywhere, k)[0][:, -1:]
    return jnp.where(values >= threshold, values, 0)


def nth_largest(values: Float[Array, "tokens candidates"], count: int) -> Float[Array, ""]:
    """The count-th largest of all shards' values, none of them negative. Only counts travel.

    A bisection on the bits of the floats, whose order is that of the floats: exact, and the same on
    every mesh.
    """
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values), jnp.int32)

    def halve(_, bounds: tuple[Int[Array, ""], Int[Array, ""]]):
        low, high = bounds
        middle = low + (high - low + 1) // 2
        there = jax.lax.psum(jnp.sum(bits >= middle, dtype=jnp.int32), ("data", "latent"))
        enough = there >= count
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    infinity = jnp.int32(0x7F800000)
    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), infinity))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
