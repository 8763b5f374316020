"""GroupMax encoder on XLA: the reference, in blocks of tokens."""

import jax

from emojax_kernels.blocks import map_blocks
from emojax_kernels.groupmax_encode import reference
from emojax_kernels.topk_encode.xla import ELEMENTS


def groupmax_encode(
    x: jax.Array, w_enc: jax.Array, b_enc: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """See `emojax_kernels.groupmax_encode`."""

    def encode(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        return reference.groupmax_encode(rows, w_enc, b_enc, k)

    return map_blocks(encode, max(1, ELEMENTS // w_enc.shape[0]), x)
