"""Sparse-autoencoder encode and decode for JAX: exact TopK and gather decode, gradients complete.

All dictionary matrices are latent-major: `w_enc` and `w_dec` are `[n, d]`.

    values, indices = topk_encode(x, w_enc, b_enc, k)
    x_hat = sparse_decode(values, indices, w_dec, b_dec)
"""

from emojax_kernels.decode_error.api import decode_error
from emojax_kernels.fused_row_update.api import fused_row_update
from emojax_kernels.fused_row_update.state import RowAdam, RowState, init_rows
from emojax_kernels.groupmax_encode.api import groupmax_encode
from emojax_kernels.jumprelu.api import jumprelu, step
from emojax_kernels.sparse_decode.api import sparse_decode
from emojax_kernels.threshold_encode.api import threshold_encode
from emojax_kernels.topk_encode.api import topk_encode

__all__ = [
    "RowAdam",
    "RowState",
    "decode_error",
    "fused_row_update",
    "groupmax_encode",
    "init_rows",
    "jumprelu",
    "sparse_decode",
    "step",
    "threshold_encode",
    "topk_encode",
]
