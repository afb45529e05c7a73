"""Strict configuration: YAML file -> frozen, validated object; every problem of a file reported in one message.

A configuration class is a :class:`Config` beside the code that uses it. Closed sets are ``Literal``, units stand in
the field's ``description``. Numbers written as text (``1e-4`` is text to YAML 1.1) are converted.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import re
import reprlib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from mimickit.util.assets import locate
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.names import missing_file, nearest
from mimickit.util.reading import (
    MAX_LAYERS,
    MAX_YAML_BYTES,
    MAX_YAML_DEPTH,
    MAX_YAML_DIGITS,
    MAX_YAML_NODES,
    at_most,
    read_bytes,
)

AssetPath = Annotated[Path, AfterValidator(locate)]  # here, or the shipped file


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
        UserError: it is no regular file, too large, not valid YAML, holds unsafe tags, or is not a mapping.
    """
    path = Path(path)
    try:
        data = parse_yaml(read_bytes(path, MAX_YAML_BYTES), path)
    except FileNotFoundError:
        raise AssetMissingError(f"configuration file not found: {missing_file(path)}") from None
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise UserError(f"{path} must hold a mapping of keys to values, found {type(data).__name__}")
    return dict(data)


def parse_yaml(text: str | bytes, where: object) -> Any:
    """The value that YAML text (UTF-8) stands for: text, numbers, truth values, lists and mappings whose keys are text.

    Raises:
        UserError: not valid YAML, unsafe tags, or more than the limits of :mod:`mimickit.util.reading`.
    """
    try:
        return copy.deepcopy(_parsed(text))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not readable as YAML: {' '.join(str(error).split())[:1000]}") from None
    except _TooLargeError as error:
        at_most(where, *error.args)
        raise


@functools.lru_cache(maxsize=64)
def _parsed(text: str | bytes) -> Any:
    """A program reads the same files again and again, and reading takes PyYAML a millisecond for every 100 bytes."""
    return yaml.load(text.decode("utf-8") if isinstance(text, bytes) else text, _BoundedLoader)


class _TooLargeError(Exception):
    """(count, limit, things) as for :func:`at_most`."""


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with bounds on depth and size, aliases and merge keys counted as what they stand for.

    Dates stay text, and text holds nothing that the name of a file cannot hold.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = self.nodes = 0
        self.sizes: dict[int, int] = {}  # nodes in a list or mapping that is read to its end, by identity

    def fetch_flow_collection_start(self, kind: type[yaml.Token]) -> None:
        if self.flow_level >= MAX_YAML_DEPTH:  # the scanner is far ahead of what is composed
            raise _TooLargeError(self.flow_level + 1, MAX_YAML_DEPTH, _LEVELS)
        super().fetch_flow_collection_start(kind)

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias = self.check_event(yaml.AliasEvent)
        before = self.nodes
        self.nodes += 1
        self.depth += 1
        if self.depth > MAX_YAML_DEPTH:
            raise _TooLargeError(self.depth, MAX_YAML_DEPTH, _LEVELS)
        event = self.peek_event()
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias:
            if id(node) not in self.sizes:
                raise yaml.composer.ComposerError(None, None, f"alias *{event.anchor} stands within what it names",
                                                  event.start_mark)
            self.nodes += self.sizes[id(node)]
        else:
            self.sizes[id(node)] = self.nodes - before
        if self.nodes > MAX_YAML_NODES:
            raise _TooLargeError(self.nodes, MAX_YAML_NODES, "values")
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        try:
            if len(node.value) > MAX_YAML_DIGITS:
                raise ValueError(f"a number of {len(node.value):,} characters; at most {MAX_YAML_DIGITS} are read")
            is_whole = node.tag.endswith(":int")
            return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)
        except (ValueError, IndexError) as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None

    def construct_text(self, node: yaml.ScalarNode) -> str:
        value = self.construct_scalar(node)
        if _NO_TEXT.search(value):
            raise yaml.constructor.ConstructorError(None, None, "text with a NUL or half of a character",
                                                    node.start_mark)
        return value

    def construct_truth(self, node: yaml.ScalarNode) -> bool:
        value = self.construct_scalar(node).lower()
        if value not in self.bool_values:
            raise yaml.constructor.ConstructorError(None, None, f"{_SHORT.repr(value)} is no truth value",
                                                    node.start_mark)
        return self.bool_values[value]

    def construct_text_mapping(self, node: yaml.MappingNode) -> Any:
        data: dict[str, Any] = {}
        yield data
        self.flatten_mapping(node)  # merge keys
        for key, _ in node.value:  # before a dictionary is made: numbers can all be given the same hash
            if key.tag != f"{_TAGS}str":
                shown = key.value[:80] if isinstance(key, yaml.ScalarNode) else "that is a list or a mapping"
                raise yaml.constructor.ConstructorError(None, None, f"the key {shown} is not text", key.start_mark)
        data.update(self.construct_mapping(node))


_LEVELS = "levels of lists and mappings"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_TAGS = "tag:yaml.org,2002:"
_BoundedLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != f"{_TAGS}timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_BoundedLoader.yaml_constructors = {
    f"{_TAGS}null": yaml.SafeLoader.construct_yaml_null,
    f"{_TAGS}bool": _BoundedLoader.construct_truth,
    f"{_TAGS}int": _BoundedLoader.construct_number,
    f"{_TAGS}float": _BoundedLoader.construct_number,
    f"{_TAGS}str": _BoundedLoader.construct_text,
    f"{_TAGS}seq": yaml.SafeLoader.construct_yaml_seq,
    f"{_TAGS}map": _BoundedLoader.construct_text_mapping,
    None: yaml.SafeLoader.construct_undefined,
}


def load_layered(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping that may stand on others: what it does not give comes from the files its key ``base`` names.

    They are looked up beside the file, then in the working directory and among the shipped ones. Mappings are merged;
    of several files later ones win.

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


def layers(path: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """The files that a file stands on, then itself, each with what it gives; of several, later ones win.

    Raises as :func:`load_layered`; also where there are more than ``MAX_LAYERS``.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    _add_layers(Path(path), (), [], found)
    return found


def _add_layers(path: Path, above: tuple[Path, ...], read: list[Path],
                found: list[tuple[Path, dict[str, Any]]]) -> None:
    """Put the files that ``path`` stands on, then itself, into ``found``; ``above`` are those that stand on it."""
    if any(os.path.realpath(path) == os.path.realpath(file) for file in above):
        raise UserError(f"{above[-1]}: base {path.name} stands on this file itself")
    read.append(path)
    at_most((*above, path)[0], len(read), MAX_LAYERS, "files that it stands on")
    given = load_yaml(path)
    base = given.get("base", [])
    names = [base] if isinstance(base, str) else base
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: key 'base' = {_SHORT.repr(base)} must be the name of a file, or a list of names")
    for name in names:
        beside, elsewhere = locate(path.parent / name), locate(name)
        file = elsewhere if os.path.exists(elsewhere) and not os.path.exists(beside) else beside
        _add_layers(file, (*above, path), read, found)
    found.append((path, given))


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
