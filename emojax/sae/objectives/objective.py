"""What an architecture must say of itself to be trained.

All of it works on one shard of latents and one shard of tokens, inside `shard_map`. `params` are
the shard's rows by name (`w_enc`, `b_enc`, `w_dec`, and what `extra` adds) and the whole `b_dec`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from emojax_kernels import sparse_decode
from jaxtyping import Array, Bool, Float

from emojax.sae.coder import Codes, SaeConfig
from emojax.sae.train_config import TrainConfig

Params = dict[str, Any]


class Term(NamedTuple):
    """A reconstruction: what this shard of latents writes, and the bias that is added once."""

    part: Float[Array, "tokens d_model"]
    b_dec: Float[Array, " d_model"]


class Forward(NamedTuple):
    """What an objective makes of a batch.

    Attributes:
      terms: the whole reconstruction last.
      penalty: for what is active; of all tokens and latents.
      active: this shard's active latents, summed over its tokens.
      fired: which of this shard's latents were active.
      least: the least activation that was kept, of all tokens and latents.
    """

    terms: tuple[Term, ...]
    penalty: Float[Array, ""]
    active: Float[Array, ""]
    fired: Bool[Array, " n_latents"]
    least: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Objective:
    """One architecture's training: `codes` or `dense`.

    Attributes:
      codes: where codes are sparse, `(config, params, centred x)` to one code per term, the whole
        one last, and the least activation kept: then rows are updated without a dense gradient.
      dense: elsewhere, `(config, settings, params, centred x, warmth)` to a `Forward`; warmth
        rises to 1 while the learning rate warms up.
      extra: `config` to the parameters that it trains besides the usual, each `[n_latents]`.
      finished: `(params, cutoff)` to the arrays of a `SparseAutoencoder`; cutoff is the running
        mean of the least activation kept.
      one_term: whether there is one code only. Several are slower to update fused than by optax
        (`benchmarks.sae_update`).
      unit_rows: whether decoder rows stay on the unit sphere while they are trained.
    """

    codes: Callable[[SaeConfig, Params, Array], tuple[tuple[Codes, ...], Array]] | None = None
    dense: Callable[[SaeConfig, TrainConfig, Params, Array, Array], Forward] | None = None
    extra: Callable[[SaeConfig], Params] = lambda config: {}
    finished: Callable[[Params, Array], Params] = lambda params, cutoff: params
    one_term: bool = True
    unit_rows: bool = True


def sparse_forward(params: Params, codes: tuple[Codes, ...], least: Array) -> Forward:
    """The forward pass of codes, the whole one last."""
    nowhere = jnp.zeros_like(params["b_dec"])
    whole = codes[-1]
    return Forward(
        terms=tuple(
            Term(sparse_decode(c.values, c.indices, params["w_dec"], nowhere), params["b_dec"])
            for c in codes
        ),
        penalty=jnp.zeros(()),
        active=jnp.sum(whole.values > 0).astype(jnp.float32),
        fired=jnp.zeros_like(params["b_enc"]).at[whole.indices].max(whole.values) > 0,
        least=least,
    )


def with_threshold(params: Params, cutoff: Array) -> Params:
    """One threshold for all latents, the cutoff."""
    return params | {"threshold": jnp.full_like(params["b_enc"], cutoff)}
