"""Reads a URDF file as the MJCF that means the same: links, revolute and fixed joints, inertias, collision shapes.

Links come depth first from the one that is nobody's child, in the order of the file's joints. A joint's ``limit`` is
its range and torque limit, its ``dynamics`` are damping and joint friction. URDF has no stiffness, so position control
needs an MJCF file: ``mimickit convert-urdf ROBOT.urdf`` writes one to add it to. Of shapes only
``collision`` is taken; ``package://NAME/PATH`` is PATH beside the URDF file. http://wiki.ros.org/urdf/XML
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from mimickit.util.failures import UserError
from mimickit.util.reading import MAX_MODEL_DEPTH, at_most
from mimickit.util.xml_numbers import MOST, as_text, read_numbers

KINDS = ("revolute", "fixed")
MESHES = (".stl", ".obj")


def mjcf_of_urdf(robot: ET.Element, path: Path) -> ET.Element:
    """The ``<mujoco>`` element for a ``<robot>``; ``path`` is its file.

    Raises:
        UserError: not a tree of links, another kind of joint, or a number that is none; names link or joint.
    """
    if robot.tag != "robot":
        raise UserError(f"{path} is not a URDF file: its first element is <{robot.tag[:80]}>, not <robot>")
    return _Converter(robot, path).convert()


class _Converter:
    """One file."""

    def __init__(self, robot: ET.Element, path: Path) -> None:
        self.path = path
        self.name = robot.get("name", path.stem)
        self.links = self._by_name(robot, "link")
        self.joints = self._by_name(robot, "joint")
        self.assets: dict[str, ET.Element] = {}

    def convert(self) -> ET.Element:
        below: dict[str, list[ET.Element]] = {name: [] for name in self.links}
        parent_of: dict[str, str] = {}
        for name, joint in self.joints.items():
            parent, child = (self._link_of(joint, name, end) for end in ("parent", "child"))
            if child in parent_of:
                raise UserError(f"{self.path}: link '{child}' is the child of two joints; links must form a tree")
            parent_of[child] = parent
            below[parent].append(joint)
        roots = [name for name in self.links if name not in parent_of]
        if len(roots) != 1:
            raise UserError(f"{self.path}: {len(roots)} links are nobody's child ({', '.join(roots[:5]) or 'none'}); "
                            "links must form one tree")
        mujoco = ET.Element("mujoco", model=self.name)
        ET.SubElement(mujoco, "compiler", angle="radian", autolimits="true")
        asset = ET.SubElement(mujoco, "asset")
        self._add_link(ET.SubElement(mujoco, "worldbody"), roots[0], below, 1)
        asset.extend(self.assets.values())
        loose = set(self.links) - {body.get("name") for body in mujoco.iter("body")}
        if loose:
            raise UserError(f"{self.path}: links hang on each other in a circle: {', '.join(sorted(loose)[:5])}")
        return mujoco

    def _by_name(self, robot: ET.Element, tag: str) -> dict[str, ET.Element]:
        found: dict[str, ET.Element] = {}
        for element in robot.findall(tag):
            name = element.get("name", "")
            if not name or name in found:
                raise UserError(f"{self.path}: {f'two {tag}s are named {name!r}' if name else f'a {tag} has no name'}")
            found[name] = element
        return found

    def _link_of(self, joint: ET.Element, name: str, end: str) -> str:
        element = joint.find(end)
        link = "" if element is None else element.get("link", "")
        if link not in self.links:
            raise UserError(f"{self.path}: joint '{name}' has the {end} '{link[:200]}', which is no link")
        return link

    def _add_link(self, above: ET.Element, name: str, below: dict[str, list[ET.Element]], depth: int,
                  joint: ET.Element | None = None) -> None:
        at_most(self.path, depth, MAX_MODEL_DEPTH, "links within each other")
        where, link = f"link '{name}'", self.links[name]
        body = ET.SubElement(above, "body", name=name)
        if joint is not None:
            self._place(body, joint, f"joint '{joint.get('name')}'")
            self._add_joint(body, joint)
        if (inertial := link.find("inertial")) is not None:
            self._add_inertial(body, inertial, where)
        for collision in link.findall("collision"):
            self._add_geom(body, collision, where)
        for child in below[name]:
            self._add_link(body, child.find("child").get("link"), below, depth + 1, child)

    def _add_joint(self, body: ET.Element, joint: ET.Element) -> None:
        where, kind = f"joint '{joint.get('name')}'", joint.get("type", "")
        if kind not in KINDS:
            raise UserError(f"{self.path}: {where} is of type '{kind[:80]}'; allowed are {' and '.join(KINDS)} (a "
                            "continuous joint has no range, which sizes the action box: make it revolute)")
        if kind == "fixed":
            return
        limit, dynamics = (found if (found := joint.find(tag)) is not None else ET.Element(tag)
                           for tag in ("limit", "dynamics"))
        for key in ("lower", "upper", "effort"):
            if key not in limit.attrib:
                raise UserError(f"{self.path}: {where} has no {key} in its <limit>; needed are lower, upper (rad) and "
                                "effort (N m)")
        low, high, effort = (self._numbers(limit, key, 1, where)[0] for key in ("lower", "upper", "effort"))
        axis = joint.find("axis")
        direction = np.array([1.0, 0.0, 0.0]) if axis is None else self._numbers(axis, "xyz", 3, where)
        damping, friction = (self._numbers(dynamics, key, 1, where, "0")[0] for key in ("damping", "friction"))
        ET.SubElement(body, "joint", name=joint.get("name", ""), type="hinge", axis=as_text(direction),
                      range=as_text([low, high]), actuatorfrcrange=as_text([-effort, effort]),
                      damping=as_text([damping]), frictionloss=as_text([friction]))

    def _add_inertial(self, body: ET.Element, inertial: ET.Element, where: str) -> None:
        mass, inertia = (found if (found := inertial.find(tag)) is not None else ET.Element(tag)
                         for tag in ("mass", "inertia"))
        xx, xy, xz, yy, yz, zz = (self._numbers(inertia, key, 1, f"the inertia of {where}", "0")[0]
                                  for key in ("ixx", "ixy", "ixz", "iyy", "iyz", "izz"))
        origin, turn = self._origin(inertial, where)
        tensor = turn @ np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) @ turn.T  # into the link's axes
        ET.SubElement(body, "inertial", pos=as_text(origin), mass=as_text(self._numbers(mass, "value", 1, where, "0")),
                      fullinertia=as_text(tensor[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]))

    def _add_geom(self, body: ET.Element, collision: ET.Element, where: str) -> None:
        shape = next((shape for geometry in collision.findall("geometry") for shape in geometry), None)
        where = f"a collision of {where}"
        geom = ET.SubElement(body, "geom", density="0")  # mass stands in <inertial> alone
        self._place(geom, collision, where)
        kind = "" if shape is None else shape.tag
        if kind == "box":
            size = self._numbers(shape, "size", 3, where) / 2.0
        elif kind == "sphere":
            size = self._numbers(shape, "radius", 1, where)
        elif kind in ("cylinder", "capsule"):
            size = [self._numbers(shape, "radius", 1, where)[0], self._numbers(shape, "length", 1, where)[0] / 2.0]
        elif kind == "mesh":
            geom.set("type", "mesh")
            geom.set("mesh", self._mesh(shape, where))
            return
        else:
            raise UserError(f"{self.path}: {where} is '{kind[:80]}'; allowed are box, sphere, cylinder, capsule, mesh")
        geom.set("type", kind)
        geom.set("size", as_text(size))

    def _mesh(self, shape: ET.Element, where: str) -> str:
        file = shape.get("filename", "").removeprefix("file://")
        if file.startswith("package://"):
            file = file.removeprefix("package://").partition("/")[2]
        if Path(file).suffix.lower() not in MESHES:
            raise UserError(f"{self.path}: {where} shows '{file[:200]}'; meshes are read from {' and '.join(MESHES)} "
                            "files")
        scale = as_text(self._numbers(shape, "scale", 3, where, "1 1 1"))
        asset = self.assets.setdefault(f"{file} {scale}", ET.Element("mesh", name=f"mesh_{len(self.assets)}", file=file,
                                                                     scale=scale))
        return asset.get("name", "")

    def _place(self, element: ET.Element, placed: ET.Element, where: str) -> None:
        pos, turn = self._origin(placed, where)
        element.set("pos", as_text(pos))
        element.set("quat", as_text(_quat_wxyz(turn)))

    def _origin(self, element: ET.Element, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] and rotation matrix [3, 3] of ``<origin>``: R = Rz(yaw) Ry(pitch) Rx(roll)."""
        origin = found if (found := element.find("origin")) is not None else ET.Element("origin")
        roll, pitch, yaw = self._numbers(origin, "rpy", 3, where, "0 0 0")
        (cr, sr), (cp, sp), (cy, sy) = ((math.cos(a), math.sin(a)) for a in (roll, pitch, yaw))
        turn = np.array([[cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
                         [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr], [-sp, cp * sr, cp * cr]])
        return self._numbers(origin, "xyz", 3, where, "0 0 0"), turn

    def _numbers(self, element: ET.Element, key: str, count: int, where: str, default: str = "") -> np.ndarray:
        return read_numbers(element.get(key, default), count, f"{self.path}: <{element.tag}> of {where}", key, MOST)


def _quat_wxyz(turn: np.ndarray) -> np.ndarray:
    """Quaternion w x y z of a rotation matrix: the eigenvector of Bar-Itzhack's matrix (2000) of its largest value."""
    r = turn
    k = np.array([[r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
                  [0.0, r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
                  [0.0, 0.0, r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1]],
                  [0.0, 0.0, 0.0, r[2, 2] - r[0, 0] - r[1, 1]]])
    q = np.linalg.eigh(k, UPLO="U")[1][:, -1]
    return q if q[0] >= 0 else -q
