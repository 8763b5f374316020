"""Steering vectors: one direction per emotion at one site, from latents or from residuals."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Float

from emojax import files
from emojax.errors import UserError
from emojax.lm import decoder
from emojax.lm.intervene import Intervention, direction
from emojax.lm.model import LanguageModel

# A vector of strength s adds s·‖h‖ times its direction to the residual h of a token.
UNIT = "residual-norm fraction"
_VERSION = "1"  # of the file


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a direction came from.

    Attributes:
      method: "sae" (decoder rows of latents), "diffmean" (residuals) or "random".
      latents: which decoder rows, for "sae".
      weights: their weights in the sum, one per latent.
      fingerprint: of the dictionary ("sae") or of the model ("diffmean"); the seed for "random".
    """

    method: Literal["sae", "diffmean", "random"]
    latents: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    fingerprint: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction in the residual stream that stands for one emotion.

    Attributes:
      emotion: the emotion's English name.
      direction: [d_model], Euclidean norm 1.
      layer: the layer at whose `site` it is added (`emojax.lm.capture.Tap`).
      site: the site's name.
      source: where it came from.
      unit: what its strength is measured in.

    Raises:
      UserError: the direction is zero, or has a NaN or an infinity.
    """

    emotion: str
    direction: Float[np.ndarray, " d_model"]
    layer: int
    site: str
    source: Source
    unit: str = UNIT

    def __post_init__(self):
        norm = float(np.linalg.norm(self.direction))
        if not np.isfinite(norm) or norm == 0:
            problem = "zero" if norm == 0 else "not finite"
            raise UserError(
                f"The steering vector for {self.emotion} is {problem}; "
                "check the latents and activations that it was made from."
            )
        # A direction of norm 1 stays as it is, bit for bit: a saved one keeps its fingerprint.
        scale = 1 if abs(norm - 1) < 1e-6 else norm
        unit = (np.asarray(self.direction, np.float64) / scale).astype(np.float32)
        unit.flags.writeable = False
        object.__setattr__(self, "direction", unit)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the direction and of where it is added."""
        place = f"{self.layer} {self.site} {self.unit} ".encode()
        return hashlib.sha256(place + self.direction.astype("<f4").tobytes()).hexdigest()


def from_latents(
    w_dec: Float[np.ndarray, "n_latents d_model"],
    latents: Mapping[str, Mapping[int, float]],
    layer: int,
    site: str,
    fingerprint: str,
) -> list[SteeringVector]:
    """Each emotion's latents as one direction: what sets this emotion apart from the others.

    The decoder rows of an emotion's latents are summed with their weights (in the quickstart the
    latent's mean activation on the emotion's concept words, so that the sum is what the dictionary
    says those words add to the residual stream). Each sum is scaled to norm 1, the mean over all
    emotions is taken away, and what is left is scaled to norm 1 again.

    Args:
      w_dec: the dictionary's decoder rows.
      latents: emotion → latent → weight.
      layer: where the dictionary reads.
      site: where the dictionary reads.
      fingerprint: the dictionary's.

    Raises:
      UserError: an emotion has no latents, a latent is not in the dictionary, or a direction is
        zero or not finite (as when there is one emotion only).
    """
    sums = {}
    for emotion, weights in latents.items():
        if not weights:
            raise UserError(
                f"The emotion {emotion} has no latents to steer with; relax the selection's "
                "thresholds, add words to its concept-set or leave it out."
            )
        rows = np.fromiter(weights, np.int64)
        if rows.min() < 0 or rows.max() >= len(w_dec):
            raise UserError(
                f"The emotion {emotion} names latent {rows.max()} and the dictionary has "
                f"{len(w_dec)}; select its latents again with this dictionary."
            )
        sums[emotion] = np.fromiter(weights.values(), np.float64) @ w_dec[rows]
    sources = {
        emotion: Source("sae", tuple(map(int, w)), tuple(map(float, w.values())), fingerprint)
        for emotion, w in latents.items()
    }
    return _apart(sums, sources, layer, site)


def diff_mean(
    concepts: Mapping[str, Float[np.ndarray, "_ d_model"]],
    controls: Mapping[str, Float[np.ndarray, "_ d_model"]],
    layer: int,
    site: str,
    fingerprint: str,
) -> list[SteeringVector]:
    """The baseline without a dictionary: mean residual of concept words minus control words.

    Residuals are scaled to norm 1 per word first, lest a few massive ones be all that the means
    see. As in `from_latents`, what all emotions share is then taken away (group centring, Wang et
    al. 2025, arXiv:2510.11328).

    Args:
      concepts: emotion → [words, d_model] residuals of its concept words.
      controls: emotion → [words, d_model] residuals of the control words matched with them.
      layer: where the residuals were captured.
      site: where the residuals were captured.
      fingerprint: the model's.

    Raises:
      UserError: the emotions differ between the two, or a direction is zero or not finite.
    """
    if concepts.keys() != controls.keys():
        odd = min(concepts.keys() ^ controls.keys())
        raise UserError(
            f"The emotion {odd} has not both concept and control words; give residuals of both."
        )
    means = {e: _mean_direction(concepts[e]) - _mean_direction(controls[e]) for e in concepts}
    source = Source("diffmean", fingerprint=fingerprint)
    return _apart(means, dict.fromkeys(concepts, source), layer, site)


def random_directions(
    emotions: Sequence[str], d_model: int, layer: int, site: str, seed: int
) -> list[SteeringVector]:
    """The control: for each emotion a direction drawn uniformly from the sphere, norm 1 as all."""
    directions = np.random.default_rng(seed).standard_normal((len(emotions), d_model))
    source = Source("random", fingerprint=str(seed))
    return [
        SteeringVector(emotion, direction, layer, site, source)
        for emotion, direction in zip(emotions, directions, strict=True)
    ]


def stack(
    vectors: Sequence[SteeringVector | None], strength: float, start: Any = 0
) -> Intervention:
    """One batch in which every row is steered by its own vector, and None is left as it is.

    Args:
      vectors: one per row; those that are not None add at the same layer and site.
      strength: how much is added, as a fraction of each token's own residual norm.
      start: the first token edited, counted from a row's first token: one number, or one per row.
        With the length of the prompt minus 1 the prompt is read as it is, but for its last token.

    Raises:
      UserError: no row has a vector, or two do not fit each other.
    """
    given = [vector for vector in vectors if vector is not None]
    if not given:
        raise UserError("No row has a steering vector; give at least one, or generate without.")
    first = given[0]
    for vector in given:
        one, other = ((v.layer, v.site, v.unit, len(v.direction)) for v in (first, vector))
        if one != other:
            raise UserError(
                f"The steering vectors of {first.emotion} and {vector.emotion} differ in layer, "
                f"site, unit or width ({one}, {other}); steer with them one after the other."
            )
    nothing = np.zeros_like(first.direction)
    return direction(
        "add",
        np.stack([nothing if vector is None else vector.direction for vector in vectors]),
        layer=first.layer,
        site=first.site,
        strength=np.float32(strength),
        unit="fraction",
        rows=np.array([vector is not None for vector in vectors], np.float32),
        positions=(start, np.iinfo(np.int32).max),
    )


def promoted_tokens(
    lm: LanguageModel, vectors: Sequence[SteeringVector], k: int
) -> list[list[str]]:
    """The k tokens that each direction promotes most, strongest first (the logit lens).

    The direction goes through the final norm and the unembedding, as in the output score of Arad et
    al. 2025 (arXiv:2505.20063): if they are names of the emotion, the vector may do no more than
    make the model say them.

    Raises:
      UserError: the vectors are of another width than the model.
    """
    if not vectors:
        return []
    directions = np.stack([vector.direction for vector in vectors])
    if directions.shape[1] != lm.config.d_model:
        raise UserError(
            f"The steering vectors are {directions.shape[1]} wide and {lm.name} is "
            f"{lm.config.d_model}; make them with this model."
        )
    # At the norm of √d_model the norm's epsilon is as small beside it as for a residual.
    scaled = jnp.asarray(directions * np.sqrt(lm.config.d_model))
    logits = decoder.unembed(lm.config, lm.params, decoder.final_norm(lm.config, lm.params, scaled))
    _, best = jax.lax.top_k(logits, k)
    return [[lm.tokenizer.decode([int(token)]) for token in row] for row in np.asarray(best)]


def save(vectors: Sequence[SteeringVector], path: Path) -> None:
    """Writes one safetensors file: the directions, and in its metadata all the rest.

    Raises:
      UserError: the file cannot be written.
    """
    directions = np.stack([vector.direction for vector in vectors])
    about = [
        {k: v for k, v in dataclasses.asdict(vector).items() if k != "direction"}
        for vector in vectors
    ]
    metadata = {"version": _VERSION, "vectors": json.dumps(about, ensure_ascii=False)}
    with files.atomic(path) as partial:
        partial.write_bytes(safetensors.numpy.save({"directions": directions}, metadata))


def load(path: Path) -> list[SteeringVector]:
    """Reads what `save` wrote.

    Raises:
      UserError: the file is missing, damaged or of another version.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about, directions = file.metadata() or {}, file.get_tensor("directions")
        if about["version"] != _VERSION:
            raise ValueError(f"version {about['version']}")
        return [
            SteeringVector(direction=direction, source=_source(fields.pop("source")), **fields)
            for fields, direction in zip(json.loads(about["vectors"]), directions, strict=True)
        ]
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(
            f"The steering vectors in {path} cannot be read ({error}); make them again."
        ) from None


def _source(fields: dict[str, Any]) -> Source:
    return Source(
        method=fields["method"],
        latents=tuple(fields["latents"]),
        weights=tuple(fields["weights"]),
        fingerprint=fields["fingerprint"],
    )


def _mean_direction(residuals: Float[np.ndarray, "words d_model"]) -> Float[np.ndarray, " d_model"]:
    residuals = residuals.astype(np.float64)
    norms = np.linalg.norm(residuals, axis=1, keepdims=True)
    return (residuals / np.where(norms == 0, 1, norms)).mean(axis=0)


def _apart(
    sums: Mapping[str, Float[np.ndarray, " d_model"]],
    sources: Mapping[str, Source],
    layer: int,
    site: str,
) -> list[SteeringVector]:
    """What sets each sum apart from the others: unit norm, minus the mean of all, unit norm."""
    units = {e: SteeringVector(e, sums[e], layer, site, sources[e]).direction for e in sums}
    mean = np.mean(list(units.values()), axis=0)
    return [SteeringVector(e, units[e] - mean, layer, site, sources[e]) for e in sums]
