"""The dictionary as a value: config, parameters, encode, decode, and what it is before training.

In units of the input scale, with the rows of `w_enc` and `w_dec` belonging to latents:

    z = TopK(ReLU(W_enc (x - b_dec) + b_enc)),    x̂ = W_decᵀ z + b_dec

(Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, equation 2).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from emojax_kernels import sparse_decode, topk_encode
from jaxtyping import Array, Float, Int, PRNGKeyArray

from emojax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SaeConfig:
    """What a dictionary is: its size, its sparsity, and the activations that it reads.

    Attributes:
      d_model: width of the activations.
      n_latents: number of latents.
      k: latents that may be active on one token.
      model: name of the language model (`emojax.lm.sources`).
      layer: layer of the tap, counted from 0.
      site: site of the tap (`emojax.lm.capture.Tap`).
      architecture: a key of `ARCHITECTURES`.
      input_scale: a key of `INPUT_SCALES`.
      seed: of the decoder rows at initialisation.
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Codes:
    """The active latents of each token, strongest first.

    Attributes:
      values: activations ≥ 0, in units of the scaled input; 0 where fewer than k are active.
      indices: the latents that they belong to.
    """

    values: Float[Array, "tokens k"]
    indices: Int[Array, "tokens k"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseAutoencoder:
    """A dictionary: row j of `w_enc` reads latent j, row j of `w_dec` (unit norm) writes it."""

    w_enc: Float[Array, "n_latents d_model"]
    b_enc: Float[Array, " n_latents"]
    w_dec: Float[Array, "n_latents d_model"]
    b_dec: Float[Array, " d_model"]
    config: SaeConfig = dataclasses.field(metadata={"static": True})


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


def topk(
    sae: SparseAutoencoder, x: Float[Array, "tokens d_model"], latent_axis: str | None
) -> Codes:
    """TopK activation (Gao et al. 2024): the k largest of the rectified pre-activations.

    With `latent_axis`, `sae` holds one shard of the latents: each shard finds its own k candidates,
    the k-th largest of all shards' candidates is the threshold, and the indices count within the
    shard. Only the values travel.
    """
    k = min(sae.config.k, sae.b_enc.shape[0])
    values, indices = topk_encode(x - sae.b_dec, sae.w_enc, sae.b_enc, k)
    return Codes(largest(values, sae.config.k, latent_axis), indices)


def largest(
    values: Float[Array, "tokens candidates"], k: int, latent_axis: str | None
) -> Float[Array, "tokens candidates"]:
    """Keeps what is among the k largest values of all shards of latents; the rest becomes 0."""
    if latent_axis is None or jax.lax.axis_size(latent_axis) == 1:
        return values
    everywhere = jax.lax.all_gather(jax.lax.stop_gradient(values), latent_axis, axis=1, tiled=True)
    threshold = jax.lax.top_k(everywhere, k)[0][:, -1:]
    return jnp.where(values >= threshold, values, 0)


ARCHITECTURES: dict[str, Callable[[SparseAutoencoder, Array, str | None], Codes]] = {"topk": topk}
INPUT_SCALES: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "unit_norm": unit_norm,
    "none": no_scale,
}


def init(
    config: SaeConfig,
    b_dec: Float[Array, " d_model"],
    key: PRNGKeyArray | None = None,
) -> SparseAutoencoder:
    """The untrained dictionary: random unit decoder rows, the encoder tied to them.

    It is where training starts and the control that every trained number is printed beside.

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
    return ARCHITECTURES[sae.config.architecture](sae, scale(sae.config, x)[0], None)


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
