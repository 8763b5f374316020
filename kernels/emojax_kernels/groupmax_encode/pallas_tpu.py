"""GroupMax encoder on a TPU: each tile of pre-activations raises the best of its groups."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from emojax_kernels.topk_encode.pallas_tpu import EMPTY, stream


def groupmax_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """See `emojax_kernels.groupmax_encode`."""
    merge = functools.partial(merge_groups, size=w_enc.shape[0] // k)
    values, indices, _ = stream(merge, x, w_enc, b_enc, None, k)
    return values, indices


def merge_groups(keys: Any, first: Any, best: Any, where: Any, k: int, *, size: int) -> None:
    """Raise the rows of `best` that are groups of the tile; equals that come later do not."""
    latents = keys.shape[0]

    def group(g: jax.Array, _: None) -> None:
        tile = keys[...]
        latent = first + lax.broadcasted_iota(jnp.int32, tile.shape, 0)
        inside = (latent >= g * size) & (latent < (g + 1) * size)
        highest = jnp.where(inside, tile, EMPTY).max(0, keepdims=True)
        at = jnp.where(inside & (tile == highest), latent, first + latents).min(0, keepdims=True)
        row = pl.ds(g, 1)
        better = highest > best[row]
        where[row] = jnp.where(better, at, where[row])
        best[row] = jnp.where(better, highest, best[row])

    last = jnp.minimum(lax.div(first + latents - 1, size), k - 1)
    lax.fori_loop(lax.div(first, size), last + 1, group, None)
