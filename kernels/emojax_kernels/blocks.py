"""Run a row-wise function over blocks of rows, so that its temporaries stay small."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def map_blocks(f: Callable, block: int, *arrays: jax.Array):
    """`f(*arrays)` for a row-wise `f`, at most `block` rows at a time.

    Args:
        f: maps arrays `[rows, ...]` to a pytree of arrays `[rows, ...]`, row by row.
        block: the most rows that `f` sees at once.
        *arrays: `[rows, ...]`, all with the same number of rows.
    """
    rows = arrays[0].shape[0]
    whole = rows // max(block, 1) * block
    if rows <= block:
        return f(*arrays)
    head = lax.map(
        lambda part: f(*part), tuple(a[:whole].reshape(-1, block, *a.shape[1:]) for a in arrays)
    )
    head = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), head)
    if whole == rows:
        return head
    tail = f(*(a[whole:] for a in arrays))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, tail)
