"""Interventions as files to keep and share: JSON for what they are, safetensors for their arrays.

A folder holds `interventions.json` (format, one record per intervention, and a SHA-256 of these
records and of the arrays) and `interventions.safetensors` (`"0.vector"` is a field of the first).
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as deserialised
from safetensors.numpy import save as serialised

from emojax.errors import UserError
from emojax.files import atomic, require_room, writable_dir
from emojax.lm.intervene import (
    LATENT_MODES,
    MODES,
    PHASES,
    UNITS,
    Direction,
    Intervention,
    Latents,
    Patch,
)
from emojax.lm.intervention_checks import (
    check_kind,
    check_named,
    check_numbers,
    check_pair,
)

FORMAT = 1
_JSON, _ARRAYS = "interventions.json", "interventions.safetensors"
_KINDS: dict[str, Any] = {"direction": Direction, "latents": Latents, "patch": Patch}
# Fields of an edit that are words or flags in the JSON, with their names there; others are arrays.
_WORDS: dict[str, dict[str, tuple[str, tuple[Any, ...]]]] = {
    "direction": {"mode": ("mode", MODES), "fraction": ("unit", UNITS)},
    "latents": {"mode": ("mode", LATENT_MODES), "unit_norm": ("unit_norm", (False, True))},
    "patch": {},
}
_PLACE = ("kind", "site", "layer", "phase")


def save(directory: str | Path, interventions: Sequence[Intervention]) -> str:
    """Writes interventions; what they are does not depend on a model or a batch.

    Args:
      directory: the folder, made if need be; what an earlier call wrote there is replaced.
      interventions: in the order in which they act.

    Returns:
      The content's SHA-256: equal for equal interventions, on any machine.

    Raises:
      UserError: something is no intervention, or at no site or layer, a number is NaN or infinite
        (bounds of a clamp may be that), the folder is not writable, or the disk is full.
    """
    check_kind(interventions)
    directory = Path(directory)
    records, arrays = [], {}
    for number, intervention in enumerate(interventions):
        what = f"Intervention {number + 1} of {len(interventions)}"
        check_named(intervention.site, intervention.layer, what)
        if isinstance(intervention.positions, tuple):
            check_pair(intervention.positions, what)
        record, own = _parts(intervention)
        for name, value in own.items():
            check_numbers(value, f"{what}: {name}", infinite=name in ("low", "high"))
        records.append(record)
        arrays |= {f"{number}.{name}": _array(value) for name, value in own.items()}
    data = serialised(arrays)
    content = _sha256(records, data)
    writable_dir(directory)
    require_room(directory, len(data))
    with atomic(directory / _ARRAYS) as partial:
        partial.write_bytes(data)
    # The JSON comes last, so that a folder with one that fits its arrays is whole.
    with atomic(directory / _JSON) as partial:
        record = {"format": FORMAT, "sha256": content, "interventions": records}
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return content


def load(directory: str | Path) -> tuple[Intervention, ...]:
    """Reads what `save` wrote.

    Raises:
      UserError: something is missing, damaged, of another format, or not as `save` writes it.
    """
    directory = Path(directory)
    path = directory / _JSON
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        data = (directory / _ARRAYS).read_bytes()
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}); give a folder of interventions."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); get it again.") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else None
        raise UserError(
            f"{path} has format {found!r} and this version reads format {FORMAT}; "
            "install the version of emojax that wrote it."
        )
    _only(record, ("format", "sha256", "interventions"), str(path))
    records = record["interventions"]
    if _sha256(records, data) != record["sha256"]:
        raise UserError(
            f"{directory} is damaged: its content does not have the SHA-256 that {_JSON} names; "
            "get both files again."
        )
    try:
        arrays = deserialised(data)
    except SafetensorError as error:
        raise UserError(f"{directory / _ARRAYS} is damaged ({error}); get it again.") from None
    found = tuple(_intervention(r, i, arrays, str(path)) for i, r in enumerate(records))
    if arrays:
        raise UserError(
            f"{directory / _ARRAYS} has the unknown array {min(arrays)}; "
            "install the version of emojax that wrote it."
        )
    return found


def _parts(intervention: Intervention) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes to JSON, and what to safetensors."""
    edit = intervention.edit
    kind = next(name for name, made in _KINDS.items() if isinstance(edit, made))
    phases = tuple(np.asarray(intervention.phases).tolist())
    record = {
        "kind": kind,
        "site": intervention.site,
        "layer": int(intervention.layer),
        "phase": next(name for name, pair in PHASES.items() if pair == phases),
    }
    arrays = {"rows": intervention.rows}
    if isinstance(intervention.positions, tuple):
        arrays |= zip(("start", "end"), intervention.positions, strict=True)
    else:
        arrays["positions"] = intervention.positions
    for field in dataclasses.fields(edit):
        value = getattr(edit, field.name)
        if field.name in _WORDS[kind]:
            name, words = _WORDS[kind][field.name]
            record[name] = words[int(value)]
        else:
            arrays[field.name] = value
    return record, arrays


def _intervention(record: Any, number: int, arrays: dict[str, Any], path: str) -> Intervention:
    """The inverse of `_parts`; takes what it needs out of `arrays`."""
    where = f"{path}, intervention {number + 1}"
    if not isinstance(record, dict) or record.get("kind") not in _KINDS:
        raise UserError(f"{where} is of no known kind; use one of {', '.join(_KINDS)}.")
    kind = record["kind"]
    _only(record, (*_PLACE, *(name for name, _ in _WORDS[kind].values())), where)

    def word(name: str, allowed: Sequence[Any]) -> int:
        if record[name] not in allowed:
            raise UserError(
                f"{where} has {name} {record[name]!r}; use one of {', '.join(map(str, allowed))}."
            )
        return list(allowed).index(record[name])

    def array(name: str) -> Any:
        if f"{number}.{name}" not in arrays:
            raise UserError(f"{where} lacks the array {number}.{name}; get its files again.")
        return arrays.pop(f"{number}.{name}")

    values = {}
    for field in dataclasses.fields(_KINDS[kind]):
        if (named := _WORDS[kind].get(field.name)) is None:
            values[field.name] = array(field.name)
        else:
            is_flag = field.name != "mode"
            values[field.name] = (np.bool_ if is_flag else np.int32)(word(*named))
    by_mask = f"{number}.positions" in arrays
    return Intervention(
        site=record["site"],
        layer=record["layer"],
        edit=_KINDS[kind](**values),
        rows=array("rows"),
        positions=array("positions") if by_mask else (array("start"), array("end")),
        phases=np.array(tuple(PHASES.values())[word("phase", tuple(PHASES))]),
    )


def _only(record: dict[str, Any], fields: Sequence[str], where: str) -> None:
    """Refuses a record that has other fields than these."""
    if unknown := sorted(record.keys() - set(fields)):
        raise UserError(
            f"{where} has the unknown field {unknown[0]!r}; "
            "install the version of emojax that wrote it."
        )
    if missing := [field for field in fields if field not in record]:
        raise UserError(f"{where} lacks the field {missing[0]!r}; get the file again.")


def _array(value: Any) -> np.ndarray:
    """Booleans and positions as they are, all other numbers as float32."""
    array = np.array(value, order="C")
    if array.dtype == bool:
        return array
    return array.astype(np.int32 if np.issubdtype(array.dtype, np.integer) else np.float32)


def _sha256(records: Any, data: bytes) -> str:
    text = json.dumps(records, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode() + b"\n" + data).hexdigest()
