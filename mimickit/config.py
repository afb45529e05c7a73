"""Strict configuration: YAML file -> frozen, validated object; every problem of a file reported in one message.

A configuration class is a :class:`Config` beside the code that uses it. Closed sets are ``Literal``, units stand in
the field's ``description``. Numbers written as text (``1e-4`` is text to YAML 1.1) are converted.
"""

from __future__ import annotations

import contextlib
import reprlib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.names import nearest


class Config(BaseModel):
    """Base of all configuration classes: unknown keys are errors, instances cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _whole_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``2e5`` is text to YAML 1.1, which integers do not understand by themselves."""
        if isinstance(value, str) and cls.model_fields[info.field_name].annotation in (int, int | None):
            with contextlib.suppress(ValueError):
                return float(value)
        return value


C = TypeVar("C", bound=BaseModel)
_SHORT = reprlib.Repr()  # shows a few entries only: YAML's aliases can make a small file endless
_SHORT.maxstring, _SHORT.maxlevel = 80, 2


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader.

    Raises:
        AssetMissingError: the file does not exist.
        UserError: it is not valid YAML, holds unsafe tags, or is not a mapping.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AssetMissingError(f"configuration file not found: {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise UserError(f"{path} must hold a mapping of keys to values, found {type(data).__name__}")
    return dict(data)


def load_layered(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping that may stand on others: what it does not give comes from the files its key ``base`` names.

    Raises:
        AssetMissingError, UserError: as :func:`load_yaml`, for every file on the way; files that stand on each other.
    """
    return stacked(layers(path))


def stacked(files: Sequence[tuple[Path, Mapping[str, Any]]]) -> dict[str, Any]:
    """What :func:`layers` found, merged; without the key ``base``."""
    data: dict[str, Any] = {}
    for _, given in files:
        data = merge(data, given)
    data.pop("base", None)
    return data


def layers(path: str | Path, above: Sequence[Path] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """The files that a file stands on, then itself, each with what it gives; of several, later ones win.

    Raises as :func:`load_layered`.

    Args:
        above: files that stand on this one.
    """
    path = Path(path)
    if any(path.resolve() == file.resolve() for file in above):
        raise UserError(f"{above[-1]}: base {path.name} stands on this file itself")
    given = load_yaml(path)
    base = given.get("base", [])
    names = [base] if isinstance(base, str) else base
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: key 'base' = {base!r} must be the name of a file beside it, or a list of names")
    found = [layer for name in names for layer in layers(path.parent / name, (*above, path))]
    return [*found, (path, given)]


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top; nested mappings are merged, not replaced."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def differences(before: Mapping[str, Any], after: Mapping[str, Any], within: str = "") -> list[str]:
    """``agent.discount 0.95 (before: 0.99)`` for every key, in depth, that differs between two configurations."""
    found: list[str] = []
    for key in sorted({*before, *after}):
        old, new, name = before.get(key, "not there"), after.get(key, "not there"), f"{within}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name} {_SHORT.repr(new)} (before: {_SHORT.repr(old)})")
    return found


def build(cls: type[C], data: Mapping[str, Any], where: str) -> C:
    """Validate ``data`` against ``cls``.

    Args:
        where: where the data came from (a path), for the message.

    Raises:
        UserError: one paragraph naming every unknown key (with the nearest known one), every missing key and every
            wrong value.
    """
    try:
        return cls.model_validate(dict(data))
    except ValidationError as error:
        problems = "; ".join(_describe(cls, e) for e in error.errors())
        raise UserError(f"{where}: {problems}") from None


def _describe(cls: type[BaseModel], error: Any) -> str:
    location = list(error["loc"])
    key = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        owner = _model_at(cls, location[:-1])
        known = list(owner.model_fields) if owner else []
        return f"unknown key '{key}'{nearest(str(location[-1]), known)}"
    if error["type"] == "missing":
        return f"missing key '{key}'"
    message = error["msg"]
    if error["type"] == "value_error":  # our own words about several keys
        message = message.removeprefix("Value error, ")
    else:
        message = f"{message[0].lower()}{message[1:]}"
    return f"key '{key}' = {_SHORT.repr(error.get('input'))}: {message}" if location else message


def _model_at(cls: type[BaseModel] | None, location: list[Any]) -> type[BaseModel] | None:
    for part in location:
        if cls is None or part not in cls.model_fields:
            return None
        annotation = cls.model_fields[part].annotation
        choices = [annotation, *typing.get_args(annotation)]
        cls = next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return cls
