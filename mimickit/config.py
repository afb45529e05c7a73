"""Strict configuration: YAML file -> frozen, validated object; every problem of a file reported in one message.

A configuration class is a :class:`Config` beside the code that uses it. Closed sets are ``Literal``, units stand in
the field's ``description``. Numbers written as text (``1e-4`` is text to YAML 1.1) are converted.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.names import nearest


class Config(BaseModel):
    """Base of all configuration classes: unknown keys are errors, instances cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=True)


C = TypeVar("C", bound=BaseModel)


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
    """Read a YAML mapping that may stand on another: what it does not give comes from the file its key ``base`` names.

    Raises:
        AssetMissingError, UserError: as :func:`load_yaml`, for every file on the way; files that stand on each other.
    """
    data: dict[str, Any] = {}
    for file in reversed(layers(path)):
        data = merge(data, load_yaml(file))
    data.pop("base", None)
    return data


def layers(path: str | Path) -> list[Path]:
    """The file, the file that its key ``base`` names (relative to its folder), and so on. Raises as load_layered."""
    found = [Path(path)]
    while (base := load_yaml(found[-1]).get("base")) is not None:
        if not isinstance(base, str):
            raise UserError(f"{found[-1]}: key 'base' = {base!r} must be the name of a file beside it")
        file = found[-1].parent / base
        if any(file.resolve() == known.resolve() for known in found):
            raise UserError(f"{found[-1]}: base {base} stands on this file itself")
        found.append(file)
    return found


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top; nested mappings are merged, not replaced."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


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
    given = repr(error.get("input"))
    given = given if len(given) <= 80 else given[:77] + "..."
    return f"key '{key}' = {given}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _model_at(cls: type[BaseModel] | None, location: list[Any]) -> type[BaseModel] | None:
    for part in location:
        if cls is None or part not in cls.model_fields:
            return None
        annotation = cls.model_fields[part].annotation
        choices = [annotation, *typing.get_args(annotation)]
        cls = next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return cls
