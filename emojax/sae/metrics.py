"""How good a dictionary is, on text that it was never trained on.

Gemma's residual stream has a few tokens whose norm is many times the others'. In raw units they are
nearly all of the variance, so the fraction of variance unexplained (FVU) is given in raw units and
for unit vectors, with and without these *massive* tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer
from tqdm import tqdm

from emojax.lm.capture import Tap
from emojax.lm.loss import Splice, divergence, next_token_loss
from emojax.lm.model import LanguageModel
from emojax.sae import coder
from emojax.sae.coder import SparseAutoencoder
from emojax.sae.corpus import Rows
from emojax.sae.store import Sample, Split

MASSIVE = 4.0  # times the median norm
SLICE_TOKENS = 2048
DENSITY_EDGES = tuple(np.arange(-6.0, 0.5, 0.5).tolist())


@functools.partial(jax.jit, static_argnums=0)
def _measure(
    n_languages: int,
    sae: SparseAutoencoder,
    x: Float[Array, "tokens d_model"],
    y: Float[Array, "tokens d_model"],
    languages: Integer[Array, " tokens"],
) -> tuple[Array, ...]:
    """Each token's squared error and active latents; how often each latent fired, by language."""
    codes = coder.encode(sae, x)
    _, factor = coder.scale(sae.config, x)
    error = jnp.sum((y - coder.decode(sae, codes) * factor) ** 2, axis=1)
    on = codes.values > 0
    fired = jnp.zeros((n_languages, sae.config.n_latents), jnp.int32)
    fired = fired.at[languages[:, None], codes.indices].add(on.astype(jnp.int32))
    return error, jnp.sum(on, axis=1), fired


def reconstruction(sae: SparseAutoencoder, split: Split) -> dict[str, Any]:
    """L0, FVU, dead latents and the histogram of densities over a held-out split.

    Returns:
      `tokens`, `massive_tokens` (norm > 4 × the median), `l0`; `full_share` (tokens whose code has
      no room left: near 0, codes above a threshold are whole); `fvu` by space (`raw`, `unit_norm`)
      and tokens (`all`, `without_massive`); `dead` and `dead_share` (latents that never fired on
      these tokens); `density`: latents by the decimal logarithm of the share of tokens on which
      they fire, the dead left out. Of each language's tokens alone (None: there are none):
      `fvu_by_language` (unit norm, without massive tokens), `l0_by_language`,
      `dead_share_by_language` and `density_by_language` (the same edges).
    """
    sample = split.read(0, split.tokens)
    values, norms = sample.target_values, sample.target_norms
    if values is not None and norms is not None:  # what a transcoder writes is what it explains
        sample = dataclasses.replace(sample, values=values, norms=norms)
    error, active = np.zeros(split.tokens), np.zeros(split.tokens)
    fired = np.zeros((len(split.languages), sae.config.n_latents), np.int64)
    for start in range(0, split.tokens, SLICE_TOKENS):
        part = slice(start, start + SLICE_TOKENS)
        raw = split.raw(start, min(start + SLICE_TOKENS, split.tokens))
        x, y = raw.x, raw.x if raw.target is None else raw.target
        data = map(jnp.asarray, (x, y, sample.languages[part]))
        measured = _measure(len(split.languages), sae, *data)
        error[part], active[part], count = jax.device_get(measured)
        fired += count
    everything = np.ones(split.tokens, bool)
    ordinary = sample.norms <= MASSIVE * np.median(sample.norms)
    kinds = {"all": everything, "without_massive": ordinary}
    of_language = {name: sample.languages == i for i, name in enumerate(split.languages)}
    counts = {name: int(np.sum(chosen)) for name, chosen in of_language.items()}
    own = {name: fired[i] if counts[name] else None for i, name in enumerate(split.languages)}
    overall = np.sum(fired, axis=0)
    return {
        "tokens": split.tokens,
        "massive_tokens": int(np.sum(~ordinary)),
        "l0": float(np.mean(active)),
        "full_share": float(np.mean(active >= sae.config.slots)),
        "fvu": {
            space: {kind: _fvu(sample, error, chosen, space) for kind, chosen in kinds.items()}
            for space in ("raw", "unit_norm")
        },
        "fvu_by_language": {
            name: _fvu(sample, error, ordinary & chosen, "unit_norm")
            for name, chosen in of_language.items()
        },
        "l0_by_language": {
            name: float(np.mean(active[chosen])) if counts[name] else None
            for name, chosen in of_language.items()
        },
        "dead": int(np.sum(overall == 0)),
        "dead_share": float(np.mean(overall == 0)),
        "density": {
            "log10_edges": list(DENSITY_EDGES),
            "latents": _density(overall, split.tokens),
        },
        "dead_share_by_language": {
            name: None if found is None else float(np.mean(found == 0))
            for name, found in own.items()
        },
        "density_by_language": {
            name: None if found is None else _density(found, counts[name])
            for name, found in own.items()
        },
    }


def _density(fired: Integer[np.ndarray, " n_latents"], tokens: int) -> list[int]:
    """Latents by the decimal logarithm of the share of tokens on which they fire."""
    share = fired[fired > 0] / tokens
    return np.histogram(np.log10(share), DENSITY_EDGES)[0].tolist()


def _fvu(sample: Sample, error: np.ndarray, chosen: np.ndarray, space: str) -> float | None:
    """Σ ‖x - x̂‖² / Σ ‖x - mean‖² over the chosen tokens (None: there are none)."""
    if not chosen.any():
        return None
    x = sample.values[chosen].astype(np.float64)
    norms = sample.norms[chosen].astype(np.float64)
    left = error[chosen]
    if space == "raw":
        x = x * norms[:, None]
    else:
        left = left / norms**2
    return float(np.sum(left) / np.sum((x - np.mean(x, axis=0)) ** 2))


def mean_activation(split: Split) -> np.ndarray:
    """Mean raw activation [d_model] of a split: what mean ablation puts in a token's place."""
    sample = split.read(0, split.tokens)
    return np.mean(sample.values.astype(np.float32) * sample.norms[:, None], axis=0)


def loss_recovered(
    lm: LanguageModel,
    tap: Tap,
    dictionaries: Mapping[str, SparseAutoencoder],
    rows: Rows,
    mean: Float[np.ndarray, " d_model"],
    *,
    rows_per_language: int = 32,
    batch_rows: int = 8,
) -> dict[str, Any]:
    """Next-token cross entropy and KL (nats) with the site left alone, ablated, or reconstructed.

    The site is replaced on every token but the first (the BOS, which no dictionary saw). Recovered
    is (zero-ablated - spliced) / (zero-ablated - clean); the same with the mean-ablated loss. The
    KL is that of the clean model's distributions from the spliced one's.

    Args:
      lm: the language model.
      tap: the site.
      dictionaries: by name.
      rows: held-out rows; long ones are used.
      mean: what mean ablation puts in.
      rows_per_language: how many rows of each language.
      batch_rows: rows per forward pass.
    """
    splices = {
        "clean": None,
        "zero_ablated": Splice(tap, _replaced, jnp.zeros(len(mean))),
        "mean_ablated": Splice(tap, _replaced, jnp.asarray(mean)),
    }
    splices |= {name: Splice(tap, _reconstructed, sae) for name, sae in dictionaries.items()}
    result: dict[str, Any] = {}
    with tqdm(total=len(rows.names) * len(splices), desc="loss recovered", unit="run") as bar:
        for place, language in enumerate(rows.names):
            chosen = _longest(rows, place, rows_per_language)
            of, kl = {}, {}
            for name, splice in splices.items():
                of[name] = _mean(lm, next_token_loss, splice, chosen, batch_rows)
                if splice is not None:
                    kl[name] = _mean(lm, divergence, splice, chosen, batch_rows)
                bar.update()
            clean, zero, average = of["clean"], of["zero_ablated"], of["mean_ablated"]
            result[language] = {
                "predictions": chosen.shape[0] * (chosen.shape[1] - 1),
                "cross_entropy": of,
                "kl": kl,
                "recovered": {n: (zero - of[n]) / (zero - clean) for n in dictionaries},
                "recovered_from_mean": {
                    n: (average - of[n]) / (average - clean) for n in dictionaries
                },
            }
    return result


def _replaced(vector: Array, h: Float[Array, "batch time d_model"]) -> Array:
    return h.at[:, 1:].set(vector.astype(h.dtype))


def _reconstructed(sae: SparseAutoencoder, h: Float[Array, "batch time d_model"]) -> Array:
    made = coder.reconstruct(sae, h.reshape(-1, h.shape[-1])).reshape(h.shape)
    return h.at[:, 1:].set(made[:, 1:])


def _mean(
    lm: LanguageModel,
    of: Callable[..., Array],
    splice: Splice | None,
    tokens: np.ndarray,
    batch_rows: int,
) -> float:
    """Mean over all predictions of rows without padding."""
    found = []
    for start in range(0, len(tokens), batch_rows):
        batch = tokens[start : start + batch_rows]
        mask = np.ones_like(batch, bool)
        found.append(np.asarray(of(lm.config, lm.params, batch, mask, splice=splice)))
    return float(np.mean(np.concatenate(found)))


def _longest(rows: Rows, place: int, count: int) -> Int[np.ndarray, "rows time"]:
    """The first `count` rows of a language that are as long as its longest."""
    own = [row for row, of in zip(rows.tokens, rows.languages, strict=True) if of == place]
    length = max(len(row) for row in own)
    return np.array([row for row in own if len(row) == length][:count], np.int32)
