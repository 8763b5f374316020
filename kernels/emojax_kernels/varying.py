"""Inside `jax.shard_map`: making arguments vary over the same mesh axes.

A custom gradient has to vary over devices as its argument does. Weights that are replicated over
the batch's axis do not vary, their gradients do. So arguments are cast to vary before the custom
rule sees them; the cast's own transpose sums their gradients over devices.
"""

import jax
from jax import lax


def alike(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays, each varying over every manual mesh axis over which one of them varies."""
    axes = [jax.typeof(a).manual_axis_type.varying for a in arrays]
    every = frozenset().union(*axes)
    return [
        lax.pcast(a, tuple(sorted(every - own)), to="varying") if every - own else a
        for a, own in zip(arrays, axes, strict=True)
    ]
