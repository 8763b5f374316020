"""A trained dictionary as a folder that says everything about itself.

`sae.safetensors` (matrices float16, biases and thresholds float32, and `b_dec_init`, from which the
untrained control is made again), `config.json` (what it is, where it came from, and the SHA-256 of
the other files), `training_log.jsonl`, `evaluation.json`, and `README.md`, the model card, made
from these.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parsed
from safetensors.numpy import load_file
from safetensors.numpy import save as serialised

from emojax.errors import UserError
from emojax.files import Place, atomic, is_address, place, require_room, sha256, writable_dir
from emojax.lm import decoder
from emojax.lm.model import LanguageModel
from emojax.sae import card, coder
from emojax.sae.coder import SaeConfig, SparseAutoencoder

FORMAT = 1
SHIPPED = Path(__file__).parent.parent / "data" / "sae"
DTYPES = {
    "w_enc": np.float16,
    "b_enc": np.float32,
    "w_dec": np.float16,
    "b_dec": np.float32,
    "threshold": np.float32,
}


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A loaded artefact.

    Attributes:
      sae: the trained dictionary.
      untrained: what it was before its first step: the control.
      record: `config.json`.
      evaluation: `evaluation.json`.
      fingerprint: SHA-256 of the weights' file.
    """

    sae: SparseAutoencoder
    untrained: SparseAutoencoder
    record: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    fingerprint: str


def rounded(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The dictionary with the precision that its file has: what is measured is what is shipped."""
    arrays: dict[str, Any] = {
        name: jnp.asarray(array, jnp.float32) for name, array in _stored(sae).items()
    }
    return dataclasses.replace(sae, **arrays)


def _stored(sae: SparseAutoencoder) -> dict[str, np.ndarray]:
    """A dictionary's arrays as the file has them; TopK has no threshold."""
    arrays = {name: getattr(sae, name) for name in DTYPES}
    return {n: np.asarray(a).astype(DTYPES[n]) for n, a in arrays.items() if a is not None}


def save(
    directory: Place,
    sae: SparseAutoencoder,
    untrained: SparseAutoencoder,
    provenance: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    training_log: Place,
) -> None:
    """Writes an artefact; `config.json` goes first and comes last: a folder with one is whole.

    Args:
      directory: the artefact.
      sae: the trained dictionary.
      untrained: the dictionary before its first step, made from `sae.config.seed`.
      provenance: model, data, training, versions, command (JSON).
      evaluation: what was measured (JSON).
      training_log: the run's JSONL log.

    Raises:
      UserError: the folder is not writable, or the disk has no room.
    """
    writable_dir(directory)
    arrays = _stored(sae)
    arrays["b_dec_init"] = np.asarray(untrained.b_dec, np.float32)
    log = training_log.read_bytes()
    require_room(directory, sum(a.nbytes for a in arrays.values()) + len(log))
    (directory / "config.json").unlink(missing_ok=True)
    with atomic(directory / "sae.safetensors") as partial:
        partial.write_bytes(serialised(arrays))
    with atomic(directory / "training_log.jsonl") as partial:
        partial.write_bytes(log)
    with atomic(directory / "evaluation.json") as partial:
        partial.write_text(json.dumps(evaluation, indent=2) + "\n")
    names = ("sae.safetensors", "training_log.jsonl", "evaluation.json")
    record = {
        "format": FORMAT,
        "sae": dataclasses.asdict(sae.config),
        **provenance,
        "files": {name: sha256(directory / name) for name in names},
    }
    write_card(directory, record, evaluation)
    with atomic(directory / "config.json") as partial:
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_card(directory: Place, record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    """Writes an artefact's `README.md`, which follows from its record and its evaluation alone."""
    with atomic(directory / "README.md") as partial:
        partial.write_text(card.render(record, evaluation))


def find(name: str | Place) -> Place:
    """The folder of an artefact: a folder or address as it is, or the name of a shipped one.

    Raises:
      UserError: it is neither.
    """
    given = place(name) if isinstance(name, str) else name
    for folder in (given,) if is_address(given) else (given, SHIPPED / given):
        if (folder / "config.json").is_file():
            return folder
    known = ", ".join(sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))) or "none"
    raise UserError(
        f"There is no dictionary at {name}: give a folder with a config.json, or the name of a "
        f"shipped one ({known})."
    )


def load(name: str | Place, lm: LanguageModel | None = None) -> Artefact:
    """Reads an artefact, given its folder or the name of a shipped one.

    Args:
      name: the folder or the name.
      lm: the model that it is to be used with; checked to be as wide and deep as it needs.

    Raises:
      UserError: something is missing, of another format, damaged, or does not fit the model.
    """
    directory = find(name)
    record = _json(directory / "config.json")
    if record.get("format") != FORMAT:
        raise UserError(
            f"The dictionary {directory} has format {record.get('format')!r} and this version "
            f"reads format {FORMAT}; install the version of emojax that wrote it."
        )
    try:
        # JSON has lists for tuples.
        fields: dict[str, Any] = dict(record["sae"])
        config = SaeConfig(**fields | {"prefixes": tuple(fields.get("prefixes", ()))})
        hashes = dict(record["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"The dictionary's {directory / 'config.json'} is not as emojax writes it ({error}); "
            "get the artefact again."
        ) from None
    if lm is not None:
        check_fits(config, lm)
    for file, expected in hashes.items():
        if not (directory / file).is_file() or sha256(directory / file) != expected:
            raise UserError(
                f"The dictionary's {directory / file} is missing or damaged (its SHA-256 is not "
                "the one in config.json); get the artefact again."
            )
    arrays = _arrays(directory / "sae.safetensors", config)
    centre = arrays.pop("b_dec_init")
    return Artefact(
        sae=SparseAutoencoder(**arrays, config=config),
        untrained=coder.control(config, centre),
        record=record,
        evaluation=_json(directory / "evaluation.json"),
        fingerprint=hashes["sae.safetensors"],
    )


def check_fits(config: SaeConfig, lm: LanguageModel) -> None:
    """Refuses a model that the dictionary does not fit.

    Raises:
      UserError: the widths differ, or the model has too few layers.
    """
    width = decoder.site_width(lm.config, config.site)
    if config.d_model != width:
        raise UserError(
            f"The dictionary reads activations of width {config.d_model} ({config.model}) but "
            f"{lm.name} has width {width}; use it with {config.model}, or train one "
            "with experiments.train_sae."
        )
    if config.layer >= lm.config.n_layers:
        raise UserError(
            f"The dictionary reads layer {config.layer} but {lm.name} has the layers 0 to "
            f"{lm.config.n_layers - 1}; use it with {config.model}."
        )


def _arrays(path: Place, config: SaeConfig) -> dict[str, Any]:
    """The file's arrays in float32, all their faults named at once."""
    try:
        arrays = parsed(path.read_bytes()) if is_address(path) else load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); get the artefact again.") from None
    n, d = config.n_latents, config.d_model
    shapes = {"w_enc": (n, d), "b_enc": (n,), "w_dec": (n, d), "b_dec": (d,), "b_dec_init": (d,)}
    if config.architecture != "topk":
        shapes["threshold"] = (n,)
    faults = [f"{name} is missing" for name in shapes if name not in arrays]
    faults += [f"{name} is unknown" for name in arrays if name not in shapes]
    for name in shapes.keys() & arrays.keys():
        if arrays[name].shape != shapes[name]:
            faults.append(f"{name} is {arrays[name].shape}, not {shapes[name]}")
        elif not np.isfinite(arrays[name]).all():
            faults.append(f"{name} has values that are not finite")
    if faults:
        raise UserError(
            f"{path} does not hold what its config.json says ({'; '.join(sorted(faults))}); get "
            "the artefact again."
        )
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}


def _json(path: Place) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); get the artefact again.") from None
