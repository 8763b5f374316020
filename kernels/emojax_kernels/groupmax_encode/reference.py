"""GroupMax encoder, as plain as it can be said."""

import jax
import jax.numpy as jnp

from emojax_kernels.topk_encode.reference import preactivations


def groupmax_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """Values `[tokens, k]` and indices `[tokens, k]` of the best latent of each of k groups."""
    pre = preactivations(x, w_enc, b_enc)
    grouped = pre.reshape(pre.shape[0], k, pre.shape[1] // k)
    best = jnp.argmax(grouped, axis=-1).astype(jnp.int32)
    values = jnp.take_along_axis(grouped, best[:, :, None], axis=-1)[:, :, 0]
    return jax.nn.relu(values), best + jnp.arange(k, dtype=jnp.int32) * grouped.shape[-1]
