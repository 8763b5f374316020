"""A run's configuration: one Python file in `configs/`, and typed overrides on the command line."""

import dataclasses
import runpy
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emojax.errors import UserError
from emojax.sae.coder import SaeConfig
from emojax.sae.corpus import DataConfig
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
    """

    study: Study
    sae: SaeConfig
    data: DataConfig
    train: TrainConfig


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


def override(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with each `section.field=value`, read as the field's annotation says.

    Tuples are comma-separated; `none` is None where the field may be it.

    Raises:
      UserError: an override names no field, or its value is of another type.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"The override {text!r} has no value; write --set sae.k=32.")
        config = _replace(config, key.strip().split("."), value.strip(), text)
    return config


def _replace(node: Any, path: list[str], value: str, text: str) -> Any:
    hints = typing.get_type_hints(type(node))
    name, *rest = path
    if name not in hints:
        raise UserError(
            f"The override {text!r} names no field {name!r}; choose one of {', '.join(hints)}."
        )
    inner = getattr(node, name)
    if dataclasses.is_dataclass(inner):
        if not rest:
            fields = ", ".join(f"{name}.{field.name}" for field in dataclasses.fields(inner))
            raise UserError(f"The override {text!r} needs a field; choose one of {fields}.")
        return dataclasses.replace(node, **{name: _replace(inner, rest, value, text)})
    if rest:
        raise UserError(f"The override {text!r} goes too deep: {name!r} has no fields.")
    try:
        return dataclasses.replace(node, **{name: parse(hints[name], value)})
    except ValueError:
        kind = getattr(hints[name], "__name__", str(hints[name]))
        raise UserError(
            f"The override {text!r} is not of the type {kind} that {name!r} has; mend the value."
        ) from None


def parse(kind: Any, text: str) -> Any:
    """Reads text as int, float, bool, str, a tuple of them, or one of them or None.

    Raises:
      ValueError: it is not of that kind.
    """
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return parse(kind, text)
    if typing.get_origin(kind) is tuple:
        return tuple(parse(arguments[0], part.strip()) for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text)
