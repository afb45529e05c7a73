"""Reads the XML of an MJCF file, included files spliced in, impossible inertias repaired; a URDF file as MJCF. What its
elements mean is for others to say."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.files import write_text
from mimickit.util.logging import warn_once
from mimickit.util.names import missing_file
from mimickit.util.reading import (
    MAX_BODIES,
    MAX_MODEL_BYTES,
    MAX_MODEL_DEPTH,
    MAX_MODEL_ELEMENTS,
    MAX_MODEL_FILES,
    at_most,
    read_bytes,
)
from mimickit.util.urdf_file import mjcf_of_urdf
from mimickit.util.xml_numbers import MOST, as_text, read_numbers

_USD = ("USD twins of characters are made for Isaac Lab, which reads gains and torque limits from elsewhere; use the "
        "MJCF file beside it")
FOREIGN = {".usd": _USD, ".usda": _USD, ".usdc": _USD, ".usdz": _USD}  # suffix -> why it is not read


def read_mjcf(path: str | Path) -> ET.Element:
    """The ``<mujoco>`` element of a file, every ``<include>`` replaced by the content of its file. For a URDF file:
    :func:`mimickit.util.urdf_file.mjcf_of_urdf`.

    Inertias that no body can have are repaired as :func:`repair_inertias` says, with a warning.

    Raises:
        AssetMissingError: the file, or one that it includes, does not exist.
        UserError: not XML, not MJCF, document type definitions, an include from outside the file's folder, larger than
            the limits of :mod:`mimickit.util.reading`, or an inertia that is none.
    """
    path = Path(path)
    if (why := FOREIGN.get(path.suffix.lower())) is not None:
        raise UserError(f"{path}: only MJCF (.xml) and URDF files are supported. {why}")
    root = _parse(path)
    if path.suffix.lower() == ".urdf":
        root = mjcf_of_urdf(root, path)
    if root.tag != "mujoco":
        raise UserError(f"{path} is not an MJCF file: its first element is <{root.tag[:80]}>, not <mujoco>")
    folder = Path(path).resolve().parent
    _include(root, path, folder, {folder / path.name, path.resolve()}, 1)
    _check_size(root, path)
    repair_inertias(root, path)
    return root


def convert_urdf(urdf: Path, mjcf: Path) -> str:
    """Write the MJCF of a URDF file; what to do next.

    Raises:
        UserError: ``mjcf`` exists, or as :func:`read_mjcf`.
    """
    if mjcf.exists():
        raise UserError(f"{mjcf} exists already; name another file")
    root = read_mjcf(urdf)
    ET.indent(root)
    write_text(mjcf, ET.tostring(root, encoding="unicode") + "\n")
    return f"{mjcf}: add stiffness= (N m/rad) and damping= (N m s/rad) to its joints"


def _parse(path: Path) -> ET.Element:
    try:
        text = read_bytes(path, MAX_MODEL_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise AssetMissingError(f"model file not found: {missing_file(path)} (data/assets/README.md says where models "
                                "come from)") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not readable as text: {error}") from None
    for word in ("<!DOCTYPE", "<!ENTITY"):
        if word in text:
            raise UserError(f"{path} contains {word}; document type definitions and entities are not allowed")
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:  # ValueError: an encoding that Python does not know
        raise UserError(f"{path} is not valid XML: {error}") from None
    _check_size(root, path)
    return root


def _check_size(root: ET.Element, path: Path) -> None:
    """Make sure that whoever goes through the elements comes to an end, and does not have to go too deep."""
    level, depth, count = [root], 0, 0
    while level:
        depth, count = depth + 1, count + len(level)
        at_most(path, depth, MAX_MODEL_DEPTH, "elements within each other")
        level = [child for element in level for child in element]
    at_most(path, count, MAX_MODEL_ELEMENTS, "elements")
    at_most(path, sum(1 for _ in root.iter("body")), MAX_BODIES, "bodies")


def _include(element: ET.Element, path: Path, folder: Path, seen: set[Path], depth: int) -> None:
    """Replace every <include> below ``element`` by the content of its file, in place. Files stay inside ``folder``."""
    at_most(path, depth, MAX_MODEL_DEPTH, "elements within each other")
    children: list[ET.Element] = []
    for child in element:
        if child.tag != "include":
            _include(child, path, folder, seen, depth + 1)
            children.append(child)
            continue
        name = child.get("file", "")
        try:
            target = (folder / name).resolve()
        except (OSError, ValueError, RuntimeError):  # a name that no file can have, or links in a circle
            target = Path("/")
        if not 0 < len(name) < 1000 or not target.is_relative_to(folder):
            raise UserError(f"{path}: include of '{name[:200]}'; included files must lie in {folder} or below it")
        if target in seen:
            raise UserError(f"{path}: '{name}' is included twice")
        seen.add(target)
        at_most(path, len(seen), MAX_MODEL_FILES, "files with all that is included")
        included = _parse(target)
        _include(included, target, folder, seen, depth)
        children += list(included)
    element[:] = children


def repair_inertias(root: ET.Element, path: Path) -> None:
    """Make the moments of every ``<inertial>`` such that a body can have them, in place, with one warning each.

    No moment of a body can exceed the sum of the two others. Where one does, in ``diaginertia`` or in the principal
    axes of ``fullinertia``, it becomes that sum: it is the least change that reduces, as a digit too many asks for
    (MuJoCo's ``balanceinertia`` would spread it over all three).

    Raises:
        UserError: moments that are not three (six) finite numbers, or negative; naming file and body.
    """
    for body in root.iter("body"):
        where = f"the inertial of body '{body.get('name', '')}'"
        for inertial in body.findall("inertial"):
            for key, count in (("diaginertia", 3), ("fullinertia", 6)):
                if (text := inertial.get(key)) is None:
                    continue
                given = read_numbers(text, count, f"{path}: {where}", key, MOST)
                used = _possible(given)
                if used is None:
                    raise UserError(f"{path}: {where} has {key}=\"{text[:200]}\"; its moments must not be negative")
                if used is not given:
                    inertial.set(key, as_text(used))
                    warn_once(f"{path}: {where} has {key}=\"{text[:200]}\": a moment exceeds the sum of the two "
                              f"others; used is {' '.join(f'{value:g}' for value in used)}")


def _possible(given: np.ndarray) -> np.ndarray | None:
    """Moments [3], or xx, yy, zz, xy, xz, yz [6], that a body can have: ``given`` itself where they can be, None where
    one is negative."""
    if len(given) == 3:
        small, middle, large = np.sort(given)
        if small < 0:
            return None
        return given if large <= small + middle else np.where(given == large, small + middle, given)
    xx, yy, zz, xy, xz, yz = given
    (small, middle, large), axes = np.linalg.eigh([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    rounding = 1e-9 * abs(large)
    if small < -rounding:
        return None
    if large <= small + middle + rounding:
        return given
    tensor = axes @ np.diag([small, middle, small + middle - rounding]) @ axes.T
    return tensor[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
