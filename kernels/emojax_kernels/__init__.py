"""Sparse-autoencoder encode and decode for JAX: exact TopK and gather decode, gradients complete.

All dictionary matrices are latent-major: `w_enc` and `w_dec` are `[n, d]`.

    values, indices = topk_encode(x, w_enc, b_enc, k)
    x_hat = sparse_decode(values, indices, w_dec, b_dec)
"""

from emojax_kernels.decode_error.api import decode_error
from emojax_kernels.groupmax_encode.api import groupmax_encode
from emojax_kernels.jumprelu.api import jumprelu, step
from emojax_kernels.sparse_decode.api import sparse_decode
from emojax_kernels.threshold_encode.api import threshold_encode
from emojax_kernels.topk_encode.api import topk_encode

__all__ = [
    "decode_error",
    "groupmax_encode",
    "jumprelu",
    "sparse_decode",
    "step",
    "threshold_encode",
    "topk_encode",
]
