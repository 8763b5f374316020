"""What the benchmarks feed to an autoencoder: Gaussian noise, captured activations, a power law.

    python -m benchmarks.activations

captures Gemma-3-270m at the shipped dictionary's tap (layer 9, extra `demo`) while it reads the
documentation that every Python brings along (`pydoc_data.topics`), kept in the cache, and writes
`benchmarks/power_law.json`: how often each latent of the shipped dictionary fires on them. Where
there is no Gemma (a GPU without network), that file is all that the other benchmarks need.
"""

import functools
import hashlib
import json
import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from emojax_kernels.shapes import Shape
from jaxtyping import Array, Float
from scipy import optimize, special
from tqdm import tqdm

from emojax import errors, files
from emojax.lm import capture, sources, text
from emojax.sae import artefact, coder

TOKENS = 18_432
ROW = 128
SAE = "gemma3_270m"
POWER_LAW = Path(__file__).with_name("power_law.json")
KINDS = ("gaussian", "power law", "captured")

Problem = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def documentation() -> str:
    """Python's own reference manual, as `help()` prints it."""
    return "\n".join(pydoc_data.topics.topics.values())


def captured() -> Float[np.ndarray, "tokens d_model"]:
    """Activations as the shipped dictionary reads them (unit vectors), in the order of the text.

    Raises:
      UserError: Gemma-3-270m is not installed, or there is no room for the cache.
    """
    manual = documentation()
    name = f"{SAE}-{hashlib.sha256(manual.encode()).hexdigest()[:12]}-{TOKENS}.npy"
    path = files.cache_dir() / "benchmarks" / name
    if path.is_file():
        return np.load(path, allow_pickle=False)
    config = artefact.load(SAE).sae.config
    lm = sources.load(config.model)
    (tokens,) = text.tokenize(lm, [manual], bos=False)
    bos, width = text.bos_token(lm), ROW - 1
    rows = [(bos, *tokens[at : at + width]) for at in range(0, len(tokens) - width, width)]
    tap = capture.Tap(config.layer, config.site)
    read = np.zeros((len(rows), width, config.d_model), np.float32)
    rows = rows[: -(-TOKENS // width)]
    with tqdm(total=len(rows) * ROW, unit="tok", unit_scale=True, desc="capture") as bar:
        for part in capture.stream(lm, rows, [tap]):
            seen = part[tap]
            real = seen.positions > 0  # BOS has a norm of its own kind
            read[seen.rows[real], seen.positions[real] - 1] = seen.values[real]
            bar.update(len(real))
    values = read.reshape(-1, config.d_model)[:TOKENS]
    values = np.asarray(coder.scale(config, jnp.asarray(values))[0])
    with files.atomic(path) as partial, partial.open("wb") as file:
        np.save(file, values)
    return values


def centred() -> Float[np.ndarray, "tokens d_model"]:
    """`captured`, less the centre (`b_dec`) that the shipped dictionary takes from it."""
    return captured() - np.asarray(artefact.load(SAE).sae.b_dec)


def gaussian(shape: Shape, dtype: str) -> Problem:
    """x, w_enc, b_enc, w_dec, b_dec, with Gaussian x and Gaussian rows of unit scale."""
    rng = np.random.default_rng(0)

    def rows(count: int, scale: float) -> Array:
        drawn = rng.standard_normal((count, shape.d), np.float32) * np.float32(scale)
        return jnp.asarray(drawn, dtype)

    unit = shape.d**-0.5
    bias = jnp.zeros(shape.n), jnp.zeros(shape.d)
    return rows(shape.tokens, 1.0), rows(shape.n, unit), bias[0], rows(shape.n, unit), bias[1]


def trained(shape: Shape, dtype: str) -> Problem:
    """The shipped dictionary on captured activations, from which its centre is taken beforehand.

    Raises:
      UserError: as `captured`.
    """
    sae = artefact.load(SAE).sae
    x = jnp.asarray(centred()[: shape.tokens], dtype)
    nowhere = jnp.zeros(shape.d)
    return x, sae.w_enc.astype(dtype), sae.b_enc, sae.w_dec.astype(dtype), nowhere


def power_law(shape: Shape, dtype: str) -> Problem:
    """Synthetic: Gaussian x and rows, with biases by which latents fire as a trained dictionary's.

    The latent of rank r is to fire on the share of tokens that rank r has in `power_law.json`;
    beyond its ranks the law of its last decade goes on, and the odds are scaled to k latents a
    token. Pre-activations without bias are standard normal, so the bias is the quantile of that
    share and the k-th largest pre-activation lies near 0.
    """
    measured = json.loads(POWER_LAW.read_text())
    rank, rate = np.array(measured["ranks"], float), np.array(measured["rates"], float)
    tail = rank >= rank[-1] / 10
    slope = np.polyfit(np.log(rank[tail]), np.log(rate[tail]), 1)[0]
    wanted = np.arange(1, shape.n + 1)
    share = np.exp(np.interp(np.log(wanted), np.log(rank), np.log(rate)))
    beyond = wanted > rank[-1]
    share[beyond] = rate[-1] * (wanted[beyond] / rank[-1]) ** slope

    def scaled(by: float) -> np.ndarray:
        return special.expit(special.logit(share) + by)

    by: Any = optimize.brentq(lambda by: scaled(by).sum() - shape.k, -40, 40)
    quantiles = np.asarray(special.ndtri(scaled(by)))
    bias = np.random.default_rng(1).permutation(quantiles)
    x, w_enc, _, w_dec, b_dec = gaussian(shape, dtype)
    return x, w_enc, jnp.asarray(bias, jnp.float32), w_dec, b_dec


def problem(shape: Shape, kind: str, dtype: str) -> Problem:
    """x, w_enc, b_enc, w_dec, b_dec of one of `KINDS`.

    Raises:
      UserError: as `captured`.
    """
    return {"gaussian": gaussian, "power law": power_law, "captured": trained}[kind](shape, dtype)


def kinds(name: str) -> tuple[str, str]:
    """The kinds of activations at the shape of that name: real ones where they are of its width."""
    return "gaussian", "captured" if name == "gemma" else "power law"


@functools.partial(jax.jit, static_argnames="n")
def firing(values: Array, indices: Array, n: int) -> Array:
    """Share of the tokens on which each latent is active, largest first, `[n]`."""
    counts = jnp.zeros(n).at[indices].add(values > 0)
    return jnp.sort(counts / values.shape[0], descending=True)


def main(argv: Sequence[str]) -> None:
    """Captures, counts, writes."""
    del argv
    sae = artefact.load(SAE).sae
    codes = coder.encode(sae, jnp.asarray(captured()))
    rates = np.asarray(firing(codes.values, codes.indices, sae.config.n_latents))
    fired = np.count_nonzero(rates)
    ranks = np.unique(np.geomspace(1, fired, 128).round().astype(int))
    record: dict[str, Any] = {
        "made_by": "python -m benchmarks.activations",
        "dictionary": SAE,
        "text": "pydoc_data.topics",
        "text_sha256": hashlib.sha256(documentation().encode()).hexdigest(),
        "tokens": TOKENS,
        "never_fired": len(rates) - int(fired),
        "ranks": ranks.tolist(),
        "rates": [round(float(rates[rank - 1]), 8) for rank in ranks],
    }
    with files.atomic(POWER_LAW) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    print(f"the busiest latent fires on {rates[0]:.1%} of {TOKENS:,} tokens, the median one on")
    print(f"{np.median(rates):.3%}; {record['never_fired']} never do; written to {POWER_LAW}")


if __name__ == "__main__":
    errors.run(main)
