"""A run's configuration: one Python file in `configs/`, and typed overrides on the command line."""

import dataclasses
import itertools
import runpy
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emojax.errors import UserError
from emojax.sae.coder import SaeConfig
from emojax.sae.corpus import DataConfig
from emojax.sae.stream import ActivationsConfig
from emojax.sae.train_config import TrainConfig
from emojax.study.settings import Study


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run is made of.

    Attributes:
      study: what is read, written and compared.
      sae: the dictionary.
      data: the text that it is trained on.
      train: how it is trained.
      activations: how they come to the trainer.
    """

    study: Study
    sae: SaeConfig
    data: DataConfig
    train: TrainConfig
    activations: ActivationsConfig = dataclasses.field(default_factory=ActivationsConfig)


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The `CONFIG` of a file such as `configs/gemma3_270m.py`, with overrides such as `sae.k=32`.

    The file is the user's own program: it is run.

    Raises:
      UserError: the file is missing or fails, or an override names no field or has a wrong type.
    """
    if not path.is_file():
        raise UserError(
            f"The config {path} is missing; give a file such as configs/gemma3_270m.py."
        )
    try:
        config = runpy.run_path(str(path)).get("CONFIG")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The config {path} fails ({error!r}); mend it.") from error
    if not isinstance(config, Config):
        raise UserError(
            f"The config {path} defines no CONFIG of type emojax.config.Config; add it."
        )
    return override(config, overrides)


def sweep(config: Config, axes: Sequence[str]) -> dict[str, Config]:
    """A config for every combination of values such as `sae.layer=6,9` and `train.seed=0,1`.

    Returns:
      By name, such as `sae.layer=6,train.seed=0`; without axes, the config itself by "".

    Raises:
      UserError: as `override`, or an axis is given twice or has no values.
    """
    values = []
    for axis in axes:
        key, _, listed = axis.partition("=")
        parts = [part.strip() for part in listed.split(",") if part.strip()]
        if not parts or len(set(parts)) < len(parts) or any(key == k for k, _ in values):
            raise UserError(
                f"The sweep {axis!r} lists no values, or something twice; write --sweep "
                "sae.layer=6,9,12."
            )
        values.append((key.strip(), parts))
    found = {}
    for chosen in itertools.product(*(parts for _, parts in values)):
        overrides = [f"{key}={value}" for (key, _), value in zip(values, chosen, strict=True)]
        found[",".join(overrides)] = override(config, overrides)
    return found


def override(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with each `section.field=value`, read as the field's annotation says.

    Commas separate the values of a tuple; bars do where they are texts, as in
    `study.writing.prompts_en=Hello, I | Dear all,`. `none` is None where the field may be it. What
    belongs together is checked when all is set.

    Raises:
      UserError: an override names no field, its value is of another type, or the values do not fit
        each other.
    """
    changes: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"The override {text!r} has no value; write --set sae.k=32.")
        *sections, name = key.strip().split(".")
        node, branch = config, changes
        for section in sections:
            _field(node, section, text)
            node, branch = getattr(node, section), branch.setdefault(section, {})
            if not dataclasses.is_dataclass(node):
                raise UserError(f"The override {text!r} goes too deep: {section!r} has no fields.")
        hint = _field(node, name, text)
        inner = getattr(node, name)
        if dataclasses.is_dataclass(inner):
            fields = ", ".join(f"{name}.{field.name}" for field in dataclasses.fields(inner))
            raise UserError(f"The override {text!r} needs a field; choose one of {fields}.")
        try:
            branch[name] = parse(hint, value.strip())
        except ValueError:
            raise UserError(
                f"The override {text!r} is not of the type {_shown(hint)} that {name!r} has; mend "
                "the value."
            ) from None
    return _replace(config, changes)


def _field(node: Any, name: str, text: str) -> Any:
    """The annotation of a field of a dataclass."""
    hints = typing.get_type_hints(type(node), include_extras=True)
    if name not in hints:
        raise UserError(
            f"The override {text!r} names no field {name!r}; choose one of {', '.join(hints)}."
        )
    return hints[name]


def _shown(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    return hint.__name__ if type(hint) is type else str(hint).replace("typing.", "")


def _replace(node: Any, changes: dict[str, Any]) -> Any:
    new = {
        name: _replace(getattr(node, name), value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(node, **new)


def parse(kind: Any, text: str) -> Any:
    """Reads text as int, float, bool, str, one of some words, a tuple of them, or one or None.

    Raises:
      ValueError: it is not of that kind.
    """
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    separator = ","
    if origin is typing.Annotated:
        kind, separator = arguments
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return parse(kind, text)
    if origin is tuple:
        parts = (part.strip() for part in text.split(separator))
        return tuple(parse(arguments[0], part) for part in parts if part)
    if origin is typing.Literal:
        if text not in arguments:
            raise ValueError(text)
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text)
