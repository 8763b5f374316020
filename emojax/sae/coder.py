"""The dictionary as a value: config, parameters, encode, decode, and what it is before training.

In units of the input scale, with the rows of `w_enc` and `w_dec` belonging to latents:

    z = σ(W_enc (x - b_dec) + b_enc),    x̂ = W_decᵀ z + b_dec

σ is TopK(ReLU(·)) (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093,
equation 2), or keeps what lies above a threshold per latent (Rajamanoharan et al. 2024,
arXiv:2407.14435, equation 3): all that training with one of `ARCHITECTURES` may end in. A
*transcoder* (Dunefsky et al. 2024, arXiv:2406.11944) explains another site than it reads, so it
does not subtract b_dec.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from emojax_kernels import sparse_decode, threshold_encode, topk_encode
from jaxtyping import Array, Float, Int, PRNGKeyArray

from emojax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SaeConfig:
    """What a dictionary is: its size, its sparsity, and the activations that it reads.

    Attributes:
      d_model: width of the activations.
      n_latents: number of latents.
      k: latents active on a token: always (topk), on average over a batch (batch_topk, matryoshka),
        or what training aims at (jumprelu). The others' L0 follows from their coefficient.
      model: name of the language model (`emojax.lm.sources`).
      layer: layer of the tap, counted from 0.
      site: site of the tap (`emojax.lm.capture.Tap`).
      architecture: a key of `ARCHITECTURES`.
      input_scale: a key of `INPUT_SCALES`.
      seed: of the decoder rows at initialisation.
      max_active: the most latents that one token's code may hold where k does not say it (None:
        4 k).
      prefixes: numbers of latents that a matryoshka dictionary is also good with alone (empty: the
        first 1/16, 1/8, 1/4 and 1/2); all of them always come last.
      target_site: the site, of the same layer, that a transcoder writes; None: the one it reads.
    """

    d_model: int
    n_latents: int
    k: int
    model: str
    layer: int
    site: str = "resid_post"
    architecture: str = "topk"
    input_scale: str = "unit_norm"
    seed: int = 0
    max_active: int | None = None
    prefixes: tuple[int, ...] = ()
    target_site: str | None = None

    def __post_init__(self):
        for name in ("d_model", "n_latents", "k"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"The SAE's {name} is {getattr(self, name)}; give a number of at least 1."
                )
        if self.k > self.n_latents:
            raise UserError(
                f"The SAE's k is {self.k} but it has {self.n_latents} latents; give a smaller k."
            )
        if self.layer < 0:
            raise UserError(f"The SAE's layer is {self.layer}; layers count from 0.")
        for name, known in (("architecture", ARCHITECTURES), ("input_scale", INPUT_SCALES)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"The SAE's {name} {getattr(self, name)!r} is unknown; "
                    f"choose one of {', '.join(known)}."
                )
        if self.max_active is not None and self.max_active < self.k:
            raise UserError(
                f"The SAE's max_active is {self.max_active}, less than its k of {self.k}; give "
                "more, or none."
            )
        sizes = (0, *self.prefixes, self.n_latents)
        if any(a >= b for a, b in itertools.pairwise(sizes)):
            raise UserError(
                f"The SAE's prefixes {self.prefixes} do not rise within its {self.n_latents} "
                "latents; give rising numbers below that."
            )
        if self.target_site is not None and self.input_scale == "unit_norm":
            raise UserError(
                "A transcoder's input and target have different norms; set sae.input_scale to "
                "mean_norm or none."
            )

    @property
    def slots(self) -> int:
        """Latents that one token's code has room for."""
        if self.architecture == "topk":
            return self.k
        return min(self.n_latents, self.max_active or 4 * self.k)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Codes:
    """The active latents of each token, strongest first.

    Attributes:
      values: activations ≥ 0, in units of the scaled input; 0 where fewer are active than fit.
      indices: the latents that they belong to.
    """

    values: Float[Array, "tokens slots"]
    indices: Int[Array, "tokens slots"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseAutoencoder:
    """A dictionary: row j of `w_enc` reads latent j, row j of `w_dec` (unit norm) writes it.

    `threshold` is what a pre-activation must exceed to count, for every architecture but TopK.
    """

    w_enc: Float[Array, "n_latents d_model"]
    b_enc: Float[Array, " n_latents"]
    w_dec: Float[Array, "n_latents d_model"]
    b_dec: Float[Array, " d_model"]
    config: SaeConfig = dataclasses.field(metadata={"static": True})
    threshold: Float[Array, " n_latents"] | None = None


def unit_norm(
    x: Float[Array, "tokens d_model"],
) -> tuple[Float[Array, "tokens d_model"], Float[Array, "tokens 1"]]:
    """Splits float32 activations into directions and norms.

    Residual norms differ by more than a factor of ten between tokens; without this a few tokens are
    all that a squared error sees.
    """
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(norm, jnp.finfo(x.dtype).tiny), norm


def no_scale(
    x: Float[Array, "tokens d_model"],
) -> tuple[Float[Array, "tokens d_model"], Float[Array, "tokens 1"]]:
    """Leaves the activations as they are."""
    return x, jnp.ones_like(x, shape=(x.shape[0], 1))


def topk(sae: SparseAutoencoder, x: Float[Array, "tokens d_model"]) -> Codes:
    """The k largest of the rectified pre-activations (Gao et al. 2024)."""
    return Codes(
        *topk_encode(centred(sae.config, sae.b_dec, x), sae.w_enc, sae.b_enc, sae.config.k)
    )


def above_threshold(sae: SparseAutoencoder, x: Float[Array, "tokens d_model"]) -> Codes:
    """What lies above each latent's threshold, the largest `slots` of it."""
    threshold = jnp.zeros_like(sae.b_enc) if sae.threshold is None else sae.threshold
    values, indices, _ = threshold_encode(
        centred(sae.config, sae.b_dec, x), sae.w_enc, sae.b_enc, threshold, sae.config.slots
    )
    return Codes(values, indices)


def centred(config: SaeConfig, b_dec: Float[Array, " d_model"], x: Array) -> Array:
    """What the encoder's rows are multiplied with."""
    return x if config.target_site is not None else x - b_dec


# How a finished dictionary encodes; `emojax.sae.objectives` says how each is trained.
ARCHITECTURES: dict[str, Callable[[SparseAutoencoder, Array], Codes]] = {
    "topk": topk,
    "batch_topk": above_threshold,
    "matryoshka": above_threshold,
    "jumprelu": above_threshold,
    "gated": above_threshold,
    "relu": above_threshold,
}
INPUT_SCALES: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "unit_norm": unit_norm,
    # One number for all tokens, which training folds into the arrays (`emojax.sae.finish`).
    "mean_norm": no_scale,
    "none": no_scale,
}


def init(
    config: SaeConfig,
    b_dec: Float[Array, " d_model"],
    key: PRNGKeyArray | None = None,
) -> SparseAutoencoder:
    """Where training starts: random unit decoder rows, the encoder tied to them.

    Args:
      config: sizes; `config.seed` draws the rows when no `key` is given.
      b_dec: centre of the scaled activations (`geometric_median` of a sample).
      key: draws the rows.
    """
    key = jax.random.key(config.seed) if key is None else key
    rows = jax.random.normal(key, (config.n_latents, config.d_model))
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return SparseAutoencoder(
        w_enc=rows,
        b_enc=jnp.zeros(config.n_latents),
        w_dec=rows,
        b_dec=jnp.asarray(b_dec, jnp.float32),
        config=config,
    )


def control(config: SaeConfig, b_dec: Float[Array, " d_model"]) -> SparseAutoencoder:
    """The untrained dictionary as every trained one is compared with: k latents per token."""
    return init(dataclasses.replace(config, architecture="topk", prefixes=()), b_dec)


@jax.jit
def geometric_median(x: Float[Array, "tokens d_model"]) -> Float[Array, " d_model"]:
    """The point with the smallest summed distance to the sample: a mean that outliers do not drag.

    Weiszfeld's iteration from the mean; 32 steps settle float32.
    """

    def closer(_, centre):
        weight = 1 / jnp.maximum(jnp.linalg.norm(x - centre, axis=1), 1e-6)
        return weight @ x / jnp.sum(weight)

    return jax.lax.fori_loop(0, 32, closer, jnp.mean(x, axis=0))


def scale(
    config: SaeConfig, x: Float[Array, "tokens d_model"]
) -> tuple[Float[Array, "tokens d_model"], Float[Array, "tokens 1"]]:
    """Activations of any float type → float32 input of the coder, and what undoes the scale."""
    return INPUT_SCALES[config.input_scale](x.astype(jnp.float32))


@jax.jit
def encode(sae: SparseAutoencoder, x: Float[Array, "tokens d_model"]) -> Codes:
    """Raw activations → the active latents of each token."""
    return ARCHITECTURES[sae.config.architecture](sae, scale(sae.config, x)[0])


@jax.jit
def decode(sae: SparseAutoencoder, codes: Codes) -> Float[Array, "tokens d_model"]:
    """Codes → activations in units of the scaled input (`reconstruct` undoes the scale)."""
    return sparse_decode(codes.values, codes.indices, sae.w_dec, sae.b_dec)


@jax.jit
def reconstruct(
    sae: SparseAutoencoder, x: Float[Array, "tokens d_model"]
) -> Float[Array, "tokens d_model"]:
    """Raw activations → what the dictionary makes of them, in raw units, of x's dtype."""
    return (decode(sae, encode(sae, x)) * scale(sae.config, x)[1]).astype(x.dtype)


def dense(codes: Codes, n_latents: int) -> Float[Array, "tokens n_latents"]:
    """Codes as a dense matrix, for the few tokens of which somebody asks for it."""
    rows = jnp.arange(codes.values.shape[0])[:, None]
    empty = jnp.zeros((codes.values.shape[0], n_latents), codes.values.dtype)
    return empty.at[rows, codes.indices].add(codes.values)
