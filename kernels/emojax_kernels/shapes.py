"""Named sizes of a TopK step, shared by the tests, the benchmarks and tuning."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of one TopK autoencoder step.

    Attributes:
        tokens: rows of the batch.
        d: width of the activations.
        n: latents.
        k: active latents per token.
    """

    tokens: int
    d: int
    n: int
    k: int


# The sizes at which speed is claimed.
SPEED = {
    "S": Shape(8192, 2048, 32768, 32),
    "L": Shape(8192, 4096, 131072, 64),
    "G": Shape(8192, 2304, 65536, 64),
    "cpu": Shape(512, 256, 32768, 32),
    "gemma": Shape(2048, 640, 4096, 64),
}

# Small sizes that have bent kernels elsewhere; each must be exact.
EDGES = {
    "plain": Shape(16, 64, 512, 8),
    "odd_width": Shape(16, 83, 512, 8),
    "odd_k": Shape(16, 64, 512, 7),
    "odd_latents": Shape(16, 64, 1003, 5),
    "many_latents": Shape(9, 40, 4097, 3),
    "all_latents": Shape(8, 24, 32, 32),
    "one_latent": Shape(8, 24, 32, 1),
    "one_token": Shape(1, 64, 512, 8),
}
