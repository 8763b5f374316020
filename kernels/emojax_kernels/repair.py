"""Computing again the few rows for which a faster way did not do."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# One row in so many is computed again by itself; if it takes more, all are.
_FEW = 8


def repaired(wrong: jax.Array, results: Any, again: Callable[[jax.Array], Any]) -> Any:
    """`results`, with the rows that are `wrong` computed again.

    Args:
        wrong: `[rows]`, bool.
        results: a pytree of arrays `[rows, ...]`.
        again: from numbers of rows, int32 `[some]`, to what their results should be.
    """
    rows = wrong.size
    if not rows:
        return results
    few = max(1, rows // _FEW)

    def some() -> Any:
        # Places left over name the first row, which is not harmed by what it should be.
        (which,) = jnp.nonzero(wrong, size=few, fill_value=0)
        return jax.tree.map(lambda a, new: a.at[which].set(new), results, again(which))

    count = wrong.sum()
    branch = (count > 0).astype(jnp.int32) + (count > few)
    return lax.switch(branch, [lambda: results, some, lambda: again(jnp.arange(rows))])
