"""TopK encoder on XLA: the GEMM, then an exact selection in two stages over group maxima."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from emojax_kernels.blocks import map_blocks
from emojax_kernels.topk_encode.reference import preactivations

# Pre-activations held at once, so that memory does not grow with the number of tokens.
ELEMENTS = 1 << 26
_GROUP = 32


def topk_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """See `emojax_kernels.topk_encode`."""

    def encode(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, indices = select(preactivations(rows, w_enc, b_enc), k)
        return jax.nn.relu(values), indices

    return map_blocks(encode, max(1, ELEMENTS // w_enc.shape[0]), x)


def select(pre: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Exactly `lax.top_k(pre, k)`, ties and all, whatever is faster.

    Measured on two CPU cores, two stages win from about 128 latents per active one.
    """
    if pre.shape[-1] >= 128 * k:
        return select_by_groups(pre, k, _GROUP)
    return _top_k(pre, k)


@functools.partial(jax.jit, static_argnames=("k", "group"))
def select_by_groups(pre: jax.Array, k: int, group: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` of each row through the maxima of groups of neighbouring entries.

    Rank entries by value, then by lower index. An entry outside the k best groups is outranked by
    the best entry of each of those groups (a tie between groups is a tie in favour of the lower
    index, because groups are contiguous), so the k best entries all lie in the k best groups.

    Args:
        pre: `[rows, n]`.
        k: entries wanted per row; at least k groups must exist.
        group: entries per group.
    """
    rows, n = pre.shape
    groups = -(-n // group)
    lowest = jnp.array(-jnp.inf, pre.dtype)
    pre = jnp.pad(pre, ((0, 0), (0, groups * group - n)), constant_values=lowest)
    grouped = pre.reshape(rows, groups, group)
    # In order of position, so that the second stage breaks ties as the first.
    best = jnp.sort(_top_k(grouped.max(-1), k)[1], axis=-1)
    candidates = jnp.take_along_axis(grouped, best[:, :, None], axis=1, mode="promise_in_bounds")
    values, place = _top_k(candidates.reshape(rows, k * group), k)
    chosen = jnp.take_along_axis(best, place // group, axis=1, mode="promise_in_bounds")
    return values, chosen * group + place % group


def _top_k(array: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    # Without the barrier XLA may fold a later slice of the result into top_k, which turns it into
    # a sort of the whole row. One barrier each: on both together, the
    # compiler of jaxlib 0.10.2 aborts in a program for several devices.
    values, indices = lax.top_k(array, k)
    return lax.optimization_barrier(values), lax.optimization_barrier(indices)
