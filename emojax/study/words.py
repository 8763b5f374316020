"""Words put before the model: residuals at each word's own last token, and their codes.

A word is read in several templates that end with it, so the last token of a row is the word's own.
Residuals are kept on disk in chunks: an interrupted run loses a minute at the most.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from emojax import files
from emojax.lm import capture, text
from emojax.lm.capture import Tap
from emojax.lm.model import LanguageModel
from emojax.sae import coder
from emojax.sae.coder import SparseAutoencoder

_CHUNK = 2048  # rows between two savings
_LAYOUT = 1  # of the files; another number reads the words anew


@dataclasses.dataclass(frozen=True, eq=False)
class Readings:
    """What the model makes of words, one layer per template.

    Attributes:
      words: the words.
      residuals: the residual stream at each word's last token, `[templates, words, d_model]`.
      n_tokens: how many tokens each word is, the median over the templates.
    """

    words: tuple[str, ...]
    residuals: Float[np.ndarray, "templates words d_model"]
    n_tokens: Int[np.ndarray, " words"]


def read(
    lm: LanguageModel,
    tap: Tap,
    words: Sequence[str],
    templates: Sequence[str],
    folder: Path,
    label: str,
) -> Readings:
    """Reads every word in every template; what `folder` holds already is not read again.

    Args:
      lm: the language model.
      tap: where to read.
      words: the words.
      templates: texts that end with `{}`, where the word goes.
      folder: where residuals are kept, named by all that they depend on.
      label: what the progress bar says.

    Raises:
      UserError: the tokenizer cannot represent a word, or the folder is full or not writable.
        Nothing is read before there is room for all of it.
    """
    rows = [text.word_rows(lm, words, template) for template in templates]
    flat = [row for template in rows for row in template]
    # Rows of a length together: fewer shapes to compile, less padding.
    order = sorted(range(len(flat)), key=lambda i: len(flat[i]))
    residuals = np.empty((len(flat), lm.config.d_model), np.float32)
    parts = [order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK)]
    files.writable_dir(folder)
    paths = [folder / _name(lm, tap, [flat[i] for i in part]) for part in parts]
    absent = sum(len(part) for part, path in zip(parts, paths, strict=True) if not path.exists())
    files.require_room(folder, absent * lm.config.d_model * residuals.itemsize)
    with tqdm(total=len(flat), desc=label, unit="row") as bar:
        for part, path in zip(parts, paths, strict=True):
            kept = _kept(path, (len(part), lm.config.d_model))
            if kept is not None:
                bar.update(len(part))
            else:
                kept = capture.last_token(lm, [flat[i] for i in part], tap, done=bar.update)
                _keep(path, kept)
            residuals[part] = kept
    shape = (len(templates), len(words), lm.config.d_model)
    return Readings(tuple(words), residuals.reshape(shape), _word_lengths(lm, rows, templates))


def part(readings: Readings, words: Sequence[str]) -> Readings:
    """The readings of some of the words, in their order."""
    row = {word: index for index, word in enumerate(readings.words)}
    chosen = [row[word] for word in words]
    return Readings(tuple(words), readings.residuals[:, chosen], readings.n_tokens[chosen])


def codes(
    sae: SparseAutoencoder, readings: Readings, batch: int = 2048
) -> Float[np.ndarray, "words latents"]:
    """Each word's code: the latents' activations, averaged over the templates."""
    total = np.zeros((len(readings.words), sae.config.n_latents), np.float32)
    for template in readings.residuals:
        for start in range(0, len(template), batch):
            x = jnp.asarray(template[start : start + batch])
            dense = coder.dense(coder.encode(sae, x), sae.config.n_latents)
            total[start : start + batch] += np.asarray(dense)
    return total / len(readings.residuals)


def directions(readings: Readings) -> Float[np.ndarray, "words d_model"]:
    """Each word's residual, scaled to norm 1 in each template, then averaged over them."""
    norms = np.linalg.norm(readings.residuals, axis=-1, keepdims=True)
    return (readings.residuals / norms).mean(axis=0)


def _name(lm: LanguageModel, tap: Tap, rows: Sequence[Sequence[int]]) -> str:
    """A file's name, which says all that its residuals depend on."""
    key = repr((_LAYOUT, lm.fingerprint, tap, [tuple(map(int, row)) for row in rows]))
    return f"residuals-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"


def _kept(path: Path, shape: tuple[int, int]) -> Float[np.ndarray, "rows d_model"] | None:
    """What a file holds; None where there is none or it is damaged, so that it is made anew."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(found, np.ndarray) and found.dtype == np.float32 and found.shape == shape
    return found if fits and np.isfinite(found).all() else None


def _keep(path: Path, residuals: Float[np.ndarray, "rows d_model"]) -> None:
    with files.atomic(path) as partial, partial.open("wb") as file:
        np.save(file, residuals, allow_pickle=False)


def _word_lengths(
    lm: LanguageModel, rows: Sequence[Sequence[Sequence[int]]], templates: Sequence[str]
) -> Int[np.ndarray, " words"]:
    lengths: Int[np.ndarray, "templates words"] = np.array([[len(row) for row in t] for t in rows])
    bare = [len(text.tokenize(lm, [t.removesuffix("{}").rstrip()])[0]) for t in templates]
    return np.median(lengths - np.array(bare)[:, None], axis=0).astype(np.int64)
