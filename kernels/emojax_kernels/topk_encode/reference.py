"""TopK encoder (Gao et al. 2024, arXiv 2406.04093, eq. 4), as plain as it can be said."""

import jax
import jax.numpy as jnp
from jax import lax


def preactivations(x: jax.Array, w_enc: jax.Array, b_enc: jax.Array) -> jax.Array:
    """`x @ w_enc.T + b_enc`, accumulated in float32, rounded to x's dtype: `[tokens, n]`."""
    product = lax.dot_general(x, w_enc, (((1,), (1,)), ((), ())), preferred_element_type="float32")
    return (product + b_enc.astype(jnp.float32)).astype(x.dtype)


def topk_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """Values `[tokens, k]` and indices `[tokens, k]` of the k largest pre-activations, ReLU'd."""
    values, indices = lax.top_k(preactivations(x, w_enc, b_enc), k)
    return jax.nn.relu(values), indices
