"""Editing a dictionary's latents while the language model runs: the step from `sae` back to `lm`.

`intervene.latents` knows nothing of dictionaries: it reads `w_enc @ h + b_enc`, whereas ours reads
`W_enc (x − b_dec) + b_enc` of the scaled input. `edit` hands it the rows that say the same.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from emojax.errors import UserError
from emojax.lm import intervene
from emojax.lm.intervene import Intervention
from emojax.sae.coder import SparseAutoencoder


def edit(
    sae: SparseAutoencoder,
    latents: Sequence[int] | Int[np.ndarray, "*m"],
    mode: str,
    value: Any,
    *,
    threshold: Any = None,
    **where: Any,
) -> Intervention:
    """An edit of some latents where the dictionary reads: h + decode(z') − decode(z).

    z is what `coder.encode` finds of them in h, z' is z + value (add), value (clamp) or value · z
    (scale), in units of the scaled input. The layer and the site are those of `sae.config`.

    The edit reads the given latents alone, not their competitors. Of a TopK dictionary z is
    therefore ReLU(pre-activation), which for a latent outside the k largest is not the 0 that
    `encode` gives: clamp then moves h by value − pre and scale by (value − 1) pre of the latent's
    decoder row, pre being at most the k-th largest value; add moves it by value in any case. A
    `threshold` near the least value at which the latent is among the k largest makes it silent
    there. The other architectures' z is that of `encode`, unless more than `config.slots` latents
    of a token are above their thresholds.

    Args:
      sae: a finished dictionary.
      latents: m numbers of latents, each once.
      mode: one of `intervene.LATENT_MODES`.
      value: one number, `[m]` or `[batch, m]`.
      threshold: what a pre-activation must exceed, one number or `[m]`, instead of the
        dictionary's own (TopK: 0).
      **where: `rows`, `positions` and `phase` as in `intervene.latents`.

    Raises:
      UserError: a latent does not exist or stands twice, the dictionary is a transcoder or its
        matrices lie the other way round, or as `intervene.latents`.
    """
    config = sae.config
    if config.target_site is not None:
        raise UserError(
            f"The dictionary is a transcoder: it reads {config.site} and writes "
            f"{config.target_site}, and an edit has one site; use a dictionary that writes where "
            "it reads."
        )
    for name in ("w_enc", "w_dec"):
        if np.shape(getattr(sae, name)) != (config.n_latents, config.d_model):
            raise UserError(
                f"The dictionary's {name} has shape {np.shape(getattr(sae, name))}, not [n_latents,"
                f" d_model] = {(config.n_latents, config.d_model)}; SAELens' W_enc is [d_in, m]: "
                "read it with emojax.sae.formats.sae_lens, or give its transpose."
            )
    chosen = np.asarray(latents)
    if chosen.ndim != 1 or not chosen.size or not np.issubdtype(chosen.dtype, np.integer):
        raise UserError(f"The latents to edit are {latents!r}; give a list of their numbers.")
    if outside := [int(j) for j in chosen if not 0 <= j < config.n_latents]:
        raise UserError(
            f"Latent {outside[0]} was to be edited and the dictionary has those from 0 to "
            f"{config.n_latents - 1}; choose among them."
        )
    if len(set(chosen.tolist())) < len(chosen):
        raise UserError("A latent to edit stands twice in the list; name each once.")
    if threshold is None:
        threshold = 0.0 if sae.threshold is None else jnp.maximum(sae.threshold[chosen], 0.0)
    rows = sae.w_enc[chosen]
    return intervene.latents(
        mode,
        value,
        w_enc=rows,
        b_enc=sae.b_enc[chosen] - rows @ sae.b_dec,
        w_dec=sae.w_dec[chosen],
        layer=config.layer,
        site=config.site,
        threshold=threshold,
        unit_norm=config.input_scale == "unit_norm",
        **where,
    )
