"""Reads the XML of an MJCF file, included files spliced in. What its elements mean is for others to say."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from mimickit.util.failures import AssetMissingError, UserError


def read_mjcf(path: str | Path) -> ET.Element:
    """The ``<mujoco>`` element of a file, every ``<include>`` replaced by the content of its file.

    Raises:
        AssetMissingError: the file, or one that it includes, does not exist.
        UserError: not XML, not MJCF, document type definitions, or an include from outside the file's folder.
    """
    path = Path(path)
    root = _parse(path)
    if root.tag != "mujoco":
        raise UserError(f"{path} is not an MJCF file: its first element is <{root.tag}>, not <mujoco>")
    _include(root, path, path.resolve().parent, {path.resolve()})
    return root


def _parse(path: Path) -> ET.Element:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise AssetMissingError(f"model file not found: {path} (data/assets/README.md says where models come from)"
                                ) from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path} is not readable as text: {error}") from None
    for word in ("<!DOCTYPE", "<!ENTITY"):
        if word in text:
            raise UserError(f"{path} contains {word}; document type definitions and entities are not allowed")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise UserError(f"{path} is not valid XML: {error}") from None


def _include(element: ET.Element, path: Path, folder: Path, seen: set[Path]) -> None:
    """Replace every <include> below ``element`` by the content of its file, in place. Files stay inside ``folder``."""
    children: list[ET.Element] = []
    for child in element:
        if child.tag != "include":
            _include(child, path, folder, seen)
            children.append(child)
            continue
        name = child.get("file", "")
        target = (folder / name).resolve()
        if not name or not target.is_relative_to(folder):
            raise UserError(f"{path}: include of '{name}'; included files must lie in {folder} or below it")
        if target in seen:
            raise UserError(f"{path}: '{name}' is included twice")
        seen.add(target)
        included = _parse(target)
        _include(included, target, folder, seen)
        children += list(included)
    element[:] = children
