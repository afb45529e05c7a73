"""Reads the kinematic part of a character's MJCF file: bodies, joints, gains, limits. No simulator is needed.

Only a subset of MJCF describes a character here, and everything outside it that would change the kinematics is an
error rather than a surprise in the simulation:

* one body tree; its root moves freely, whatever joints are written there;
* every other body has no joint (fixed), one hinge, or three hinges about x, y, z (a spherical joint);
* joints sit at the body's origin; bodies are placed by ``pos`` and ``quat`` alone;
* every hinge has a finite, non-empty ``range``;
* every body that moves has mass, of its own or of bodies fixed to it;
* geoms are spheres, capsules, cylinders, ellipsoids, boxes or meshes; ``fromto`` places capsules and cylinders only.

``stiffness``, ``damping`` and ``actuatorfrcrange`` of a joint are the gains and the torque limit of its controller.
"""

from __future__ import annotations

import enum
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimickit.util.failures import UserError
from mimickit.util.mjcf_file import FOREIGN, read_mjcf
from mimickit.util.names import nearest
from mimickit.util.xml_numbers import read_numbers

UNLIMITED_EFFORT = 1e6  # N m (hinge), where the file states no torque limit

GEOM_SIZES = {"sphere": 1, "capsule": 2, "cylinder": 2, "ellipsoid": 3, "box": 3, "mesh": 0}  # numbers in ``size``
GEOM_NUMBERS: dict[str, int | None] = {"pos": 3, "quat": 4, "fromto": 6} | dict.fromkeys((  # how many; None: any
    "size", "density", "mass", "friction", "contype", "conaffinity", "condim", "group", "priority", "solmix", "solref",
    "solimp", "margin", "gap", "axisangle", "xyaxes", "zaxis", "euler", "rgba", "fitscale", "fluidcoef", "user",
))
KNOWN_ATTRIBUTES: dict[str, set[str]] = {  # of MJCF; anything else is a misspelling
    "joint": {
        "name", "class", "type", "group", "pos", "axis", "range", "stiffness", "damping", "armature", "frictionloss",
        "limited", "actuatorfrcrange", "actuatorfrclimited", "actuatorgravcomp", "solreflimit", "solimplimit",
        "solreffriction", "solimpfriction", "springdamper", "springref", "ref", "margin", "user",
    },
    "geom": {"name", "class", "type", "material", "mesh", "fluidshape", "shellinertia", *GEOM_NUMBERS},
}


class JointKind(enum.Enum):
    """How a body hangs on its parent."""

    ROOT = "root"  # free; no dofs of its own
    FIXED = "fixed"  # 0 dofs
    HINGE = "hinge"  # 1 dof: angle about the axis
    SPHERICAL = "spherical"  # 3 dofs: exponential map of the rotation relative to rest


@dataclass(frozen=True, eq=False)
class CharacterModel:
    """A character as its file states it: ``B`` bodies in depth-first order (0 is the root), ``D`` dofs in joint order.

    Arrays are float64 and read-only; SI units; quaternions xyzw. A spherical joint owns three consecutive dofs whose
    per-dof numbers are those of its x, y, z hinges.
    """

    file: Path
    name: str
    body_names: tuple[str, ...]  # B
    parents: tuple[int, ...]  # B, -1 for the root
    local_pos: np.ndarray  # [B, 3] m, body origin in the parent's frame
    local_rot: np.ndarray  # [B, 4] rest rotation relative to the parent
    joint_kinds: tuple[JointKind, ...]  # B
    joint_names: tuple[str, ...]  # B; a spherical joint: its first hinge's name up to the last underscore
    joint_axis: np.ndarray  # [B, 3] unit axis in the body's frame; zeros unless HINGE
    dof_slices: tuple[slice, ...]  # B, empty for ROOT and FIXED
    dof_names: tuple[str, ...]  # D, names of the hinge elements
    dof_low: np.ndarray  # [D] rad
    dof_high: np.ndarray  # [D] rad
    kp: np.ndarray  # [D] N m / rad
    kd: np.ndarray  # [D] N m s / rad
    effort: np.ndarray  # [D] N m, torque limit
    armature: np.ndarray  # [D] kg m^2
    frictionloss: np.ndarray  # [D] N m

    @property
    def num_bodies(self) -> int:
        return len(self.body_names)

    @property
    def num_joints(self) -> int:
        """Joints without the root, fixed ones included."""
        return len(self.body_names) - 1

    @property
    def num_dofs(self) -> int:
        return len(self.dof_names)

    def body_index(self, name: str) -> int:
        """Index of a body.

        Raises:
            UserError: no body has this name.
        """
        if name not in self.body_names:
            raise UserError(f"{self.file}: there is no body '{name}'{nearest(name, self.body_names)}; "
                            f"its bodies are {', '.join(self.body_names)}")
        return self.body_names.index(name)


def action_bounds(model: CharacterModel, control_mode: str, zero_center: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The action box (low [D], high [D], float64) of a control mode.

    ``pos`` and ``pd_explicit``: target positions. A spherical joint gets +-1.2 times the largest absolute limit of its
    axes on all three numbers, a hinge the interval of 1.4 times its half range around its middle (around zero, with
    the larger side, if ``zero_center``). ``vel``: +-2 pi rad/s. ``torque``: +-effort. ``none``: +-1.

    Raises:
        UserError: an unknown mode, ``pd_explicit`` with spherical joints, or a dof whose box is empty.
    """
    if control_mode in ("pos", "pd_explicit"):
        low, high = _position_bounds(model, zero_center)
        balls = [n for n, kind in zip(model.joint_names, model.joint_kinds) if kind is JointKind.SPHERICAL]
        if control_mode == "pd_explicit" and balls:
            raise UserError(f"control_mode pd_explicit needs a character of hinges only, but {model.file} has "
                            f"spherical joints ({', '.join(balls)}); use pos")
    elif control_mode == "vel":
        high = np.full(model.num_dofs, 2.0 * math.pi)
        low = -high
    elif control_mode == "torque":
        high = model.effort.copy()
        low = -high
    elif control_mode == "none":
        high = np.ones(model.num_dofs)
        low = -high
    else:
        raise UserError(f"unknown control_mode '{control_mode}': allowed are none, pos, vel, torque, pd_explicit")
    empty = [name for name, extent in zip(model.dof_names, high - low) if not extent > 0]
    if empty:
        raise UserError(f"{model.file}: with control_mode {control_mode} the action box is empty for "
                        f"{', '.join(empty)}")
    return low, high


def _position_bounds(model: CharacterModel, zero_center: bool) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.zeros(model.num_dofs), np.zeros(model.num_dofs)
    for kind, dofs in zip(model.joint_kinds, model.dof_slices):
        lo, hi = model.dof_low[dofs], model.dof_high[dofs]
        if kind is JointKind.SPHERICAL:
            extent = 1.2 * np.max(np.maximum(np.abs(lo), np.abs(hi)))
            low[dofs], high[dofs] = -extent, extent
        elif kind is JointKind.HINGE:
            middle = np.zeros_like(lo) if zero_center else 0.5 * (lo + hi)
            extent = 1.4 * np.maximum(np.abs(hi - middle), np.abs(lo - middle))
            low[dofs], high[dofs] = middle - extent, middle + extent
    return low, high


def load_character_model(path: str | Path) -> CharacterModel:
    """Read a character's MJCF file.

    Raises:
        AssetMissingError: the file, or one that it includes, does not exist.
        UserError: the file is not an MJCF character of the supported subset; the message names file, body and what is
            allowed.
    """
    return _Reader(Path(path)).read()


@dataclass(frozen=True)
class _Hinge:
    name: str
    axis: np.ndarray | None
    low: float
    high: float
    kp: float
    kd: float
    effort: float
    armature: float
    frictionloss: float


class _Reader:
    """One pass over one file. Collects bodies depth first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        self.parents: list[int] = []
        self.pos: list[np.ndarray] = []
        self.rot: list[np.ndarray] = []
        self.hinges: list[list[_Hinge]] = []
        self.massive: list[bool] = []
        self.meshes: set[str] = set()
        self.defaults: dict[str, dict[str, dict[str, str]]] = {}  # class, element, attribute
        self.angle_unit = math.pi / 180.0
        self.autolimits = True
        self.inertia_from_geoms = False
        self.mass_is_told = True  # False: the compiler's settings decide what has mass

    def read(self) -> CharacterModel:
        if self.path.suffix.lower() not in (".xml", ".urdf", *FOREIGN):
            raise UserError(f"character file {self.path}: only MJCF (.xml) and URDF files are supported")
        root = read_mjcf(self.path)
        self._read_compiler(root)
        for element in root.findall("default"):
            name = element.get("class", "main")
            self._read_default(element, inherited={}, name=name)
            self.defaults.setdefault("main", self.defaults[name])  # the outermost class may have any name
        self.meshes = {mesh.get("name") or Path(mesh.get("file", "")).stem
                       for asset in root.findall("asset") for mesh in asset.findall("mesh")}
        bodies = [b for world in root.findall("worldbody") for b in world.findall("body")]
        if len(bodies) != 1:
            raise UserError(f"{self.path}: a character file needs exactly one body in <worldbody>, found {len(bodies)}")
        self._read_body(bodies[0], parent=-1, childclass="main")
        model = self._model(root.get("model", self.path.stem))
        self._check_masses()
        return model

    def _read_compiler(self, root: ET.Element) -> None:
        for compiler in root.findall("compiler"):
            angle = compiler.get("angle", "degree" if self.angle_unit != 1.0 else "radian")
            if angle not in ("degree", "radian"):
                raise UserError(f"{self.path}: compiler angle is '{angle}', allowed are degree and radian")
            self.angle_unit = 1.0 if angle == "radian" else math.pi / 180.0
            self.inertia_from_geoms |= compiler.get("inertiafromgeom") == "true"
            self.mass_is_told &= not {"boundmass", "inertiagrouprange"} & set(compiler.attrib)
            self.autolimits = compiler.get("autolimits", "true" if self.autolimits else "false") == "true"
            if compiler.get("coordinate", "local") != "local":
                raise UserError(f"{self.path}: compiler coordinate must be local")

    def _read_default(self, element: ET.Element, inherited: dict[str, dict[str, str]], name: str) -> None:
        known = dict(self.defaults.get(name, inherited))
        for tag in KNOWN_ATTRIBUTES:
            for given in element.findall(tag):
                self._check_attributes(given, f"default class '{name}'")
                known[tag] = {**known.get(tag, {}), **given.attrib}
        self.defaults[name] = known
        for child in element.findall("default"):
            child_name = child.get("class")
            if not child_name:
                raise UserError(f"{self.path}: a nested <default> needs a class name")
            self._read_default(child, known, child_name)

    def _read_body(self, body: ET.Element, parent: int, childclass: str) -> None:
        name = body.get("name", "")
        above = "the world" if parent < 0 else f"body '{self.names[parent]}'"
        if not name:
            raise UserError(f"{self.path}: a body below {above} has no name")
        if name in self.names:
            raise UserError(f"{self.path}: two bodies are named '{name}'")
        for attribute in ("euler", "axisangle", "xyaxes", "zaxis"):
            if attribute in body.attrib:
                raise UserError(f"{self.path}: body '{name}' is rotated by '{attribute}'; only 'quat' (w x y z) is "
                                "read")
        for tag in ("frame", "replicate", "attach", "composite", "flexcomp"):
            if body.find(tag) is not None:
                raise UserError(f"{self.path}: body '{name}' contains <{tag}>; only plain bodies, joints and geoms "
                                "are supported")
        childclass = body.get("childclass", childclass)
        self._default("joint", childclass, f"body '{name}'")
        index = len(self.names)
        where = f"body '{name}'"
        self.names.append(name)
        self.parents.append(parent)
        self.pos.append(self._numbers(body.get("pos", "0 0 0"), 3, where, "pos"))
        self.rot.append(self._quaternion(body.get("quat", "1 0 0 0"), where))
        self.hinges.append([] if parent < 0 else self._read_joints(body, name, childclass))
        self.massive.append(self._has_mass(body, name, childclass))
        for child in body.findall("body"):
            self._read_body(child, index, childclass)

    def _read_joints(self, body: ET.Element, name: str, childclass: str) -> list[_Hinge]:
        if body.find("freejoint") is not None:
            raise UserError(f"{self.path}: body '{name}' has a free joint; only the root moves freely")
        elements = body.findall("joint")
        if len(elements) not in (0, 1, 3):
            raise UserError(f"{self.path}: body '{name}' has {len(elements)} joints; allowed are 0 (fixed), 1 hinge or "
                            "3 hinges about x, y, z (spherical)")
        hinges = [self._read_hinge(element, name, childclass) for element in elements]
        if len(hinges) == 3:
            axes = np.array([(0.0, 0.0, 1.0) if h.axis is None else h.axis for h in hinges])
            if np.abs(axes - np.eye(3)).max() > 1e-6:
                raise UserError(f"{self.path}: the three hinges of body '{name}' have the axes {axes.tolist()}; a "
                                "spherical joint needs 1 0 0, 0 1 0, 0 0 1 in this order")
        elif hinges and hinges[0].axis is None:
            raise UserError(f"{self.path}: hinge '{hinges[0].name}' of body '{name}' has no axis")
        return hinges

    def _read_hinge(self, element: ET.Element, body: str, childclass: str) -> _Hinge:
        where = f"joint '{element.get('name', '')}' of body '{body}'"
        if not element.get("name"):
            raise UserError(f"{self.path}: a joint of body '{body}' has no name")
        self._check_attributes(element, where)
        attributes = {**self._default("joint", element.get("class", childclass), where), **element.attrib}
        if attributes.get("type", "hinge") != "hinge":
            raise UserError(f"{self.path}: {where} is of type '{attributes['type']}'; only hinges are supported "
                            "(three of them for a spherical joint)")
        if np.abs(self._numbers(attributes.get("pos", "0 0 0"), 3, where, "pos")).max() > 0:
            raise UserError(f"{self.path}: {where} has pos '{attributes['pos']}'; joints must sit at the body's origin "
                            "(0 0 0)")
        if "range" not in attributes:
            raise UserError(f"{self.path}: {where} has no range; every joint needs one (it sizes the action box)")
        low, high = self._numbers(attributes["range"], 2, where, "range") * self.angle_unit
        if not low < high:
            raise UserError(f"{self.path}: {where} has the empty range '{attributes['range']}'")
        return _Hinge(
            name=element.get("name", ""), axis=self._axis(attributes.get("axis"), where), low=low, high=high,
            kp=self._scalar(attributes, "stiffness", where), kd=self._scalar(attributes, "damping", where),
            effort=self._effort(attributes, where), armature=self._scalar(attributes, "armature", where),
            frictionloss=self._scalar(attributes, "frictionloss", where),
        )

    def _has_mass(self, body: ET.Element, name: str, childclass: str) -> bool:
        """Check a body's geoms; whether they, or its ``<inertial>``, give it mass."""
        geoms = [self._read_geom(element, f"geom '{element.get('name', number)}' of body '{name}'", childclass)
                 for number, element in enumerate(body.findall("geom"))]
        inertial = body.find("inertial")
        if inertial is None or self.inertia_from_geoms:
            return any(geoms)
        return self._scalar(inertial.attrib, "mass", f"the inertial of body '{name}'") > 0

    def _read_geom(self, element: ET.Element, where: str, childclass: str) -> bool:
        """Check a geom; whether it has mass."""
        self._check_attributes(element, where)
        attributes = {**self._default("geom", element.get("class", childclass), where), **element.attrib}
        mesh = attributes.get("mesh")
        kind = attributes.get("type", "sphere")
        if kind not in GEOM_SIZES:
            raise UserError(f"{self.path}: {where} is of type '{kind}'{nearest(kind, GEOM_SIZES)}; allowed are "
                            f"{', '.join(GEOM_SIZES)}")
        numbers = {key: self._numbers(attributes[key], count, where, key)
                   for key, count in GEOM_NUMBERS.items() if key in attributes}
        if mesh is not None and mesh not in self.meshes:
            raise UserError(f"{self.path}: {where} shows the mesh '{mesh}', which no <asset> names"
                            f"{nearest(mesh, self.meshes)}")
        if mesh is None and kind == "mesh":
            raise UserError(f"{self.path}: {where} is of type 'mesh' and names no mesh")
        if "fromto" in numbers and kind not in ("capsule", "cylinder"):
            raise UserError(f"{self.path}: {where} is of type '{kind}' and has fromto; only capsules and cylinders "
                            "may, others need size, pos and quat")
        count = 0 if mesh is not None else 1 if "fromto" in numbers else GEOM_SIZES[kind]
        size = numbers.get("size", np.zeros(0))[:count]
        if len(size) < count or (size <= 0).any():
            raise UserError(f"{self.path}: {where} is of type '{kind}' and has size=\"{attributes.get('size', '')}\"; "
                            f"needed {'is 1 positive number' if count == 1 else f'are {count} positive numbers'}")
        return self._scalar(attributes, "mass" if "mass" in attributes else "density", where, "1000") > 0

    def _check_masses(self) -> None:
        for body, hinges in enumerate(self.hinges):
            if self.mass_is_told and (body == 0 or hinges) and not self._carries_mass(body):
                raise UserError(f"{self.path}: body '{self.names[body]}' moves but has no mass: it needs a geom with "
                                "density or mass, an <inertial> with a mass, or such a body fixed to it")

    def _carries_mass(self, body: int) -> bool:
        fixed = [child for child, parent in enumerate(self.parents) if parent == body and not self.hinges[child]]
        return self.massive[body] or any(self._carries_mass(child) for child in fixed)

    def _check_attributes(self, element: ET.Element, where: str) -> None:
        known = KNOWN_ATTRIBUTES[element.tag]
        unknown = [f"'{key}'{nearest(key, known)}" for key in element.attrib if key not in known]
        if unknown:
            raise UserError(f"{self.path}: {where} has the unknown attribute {', '.join(unknown)}")

    def _axis(self, text: str | None, where: str) -> np.ndarray | None:
        if text is None:
            return None
        axis = self._numbers(text, 3, where, "axis")
        norm = np.linalg.norm(axis)
        if norm < 1e-6:
            raise UserError(f"{self.path}: {where} has the axis '{text}' of length zero")
        return axis / norm

    def _effort(self, attributes: dict[str, str], where: str) -> float:
        limited = attributes.get("actuatorfrclimited", "auto")
        if "actuatorfrcrange" not in attributes or limited == "false" or (limited == "auto" and not self.autolimits):
            return UNLIMITED_EFFORT
        return float(np.abs(self._numbers(attributes["actuatorfrcrange"], 2, where, "actuatorfrcrange")).max())

    def _scalar(self, attributes: dict[str, str], key: str, where: str, default: str = "0") -> float:
        value = float(self._numbers(attributes.get(key, default), None, where, key)[0])
        if value < 0:
            raise UserError(f"{self.path}: {where} has {key}=\"{attributes[key]}\"; it must not be negative")
        return value

    def _quaternion(self, text: str, where: str) -> np.ndarray:
        wxyz = self._numbers(text, 4, where, "quat")
        norm = np.linalg.norm(wxyz)
        if norm < 1e-6:
            raise UserError(f"{self.path}: {where} has a quat of length zero")
        return wxyz[[1, 2, 3, 0]] / norm

    def _numbers(self, text: str, count: int | None, where: str, key: str) -> np.ndarray:
        return read_numbers(text, count, f"{self.path}: {where}", key)

    def _default(self, tag: str, name: str, where: str) -> dict[str, str]:
        if name not in self.defaults and name != "main":
            raise UserError(f"{self.path}: {where} uses the default class '{name}', which is not defined"
                            f"{nearest(name, self.defaults)}")
        return self.defaults.get(name, {}).get(tag, {})

    def _model(self, name: str) -> CharacterModel:
        kinds, joint_names, slices, axis, dofs = [], [], [], [], []
        for body, hinges in enumerate(self.hinges):
            slices.append(slice(len(dofs), len(dofs) + len(hinges)))
            dofs += hinges
            kinds.append(JointKind.ROOT if body == 0 else _KIND[len(hinges)])
            joint_names.append(_joint_name(hinges, self.names[body]))
            axis.append(hinges[0].axis if len(hinges) == 1 else np.zeros(3))
        twice = {d.name for d in dofs if sum(e.name == d.name for e in dofs) > 1}
        if twice:
            raise UserError(f"{self.path}: joint names are used twice: {', '.join(sorted(twice))}")
        return CharacterModel(
            file=self.path, name=name, body_names=tuple(self.names), parents=tuple(self.parents),
            local_pos=_frozen(self.pos, (-1, 3)), local_rot=_frozen(self.rot, (-1, 4)),
            joint_kinds=tuple(kinds), joint_names=tuple(joint_names), joint_axis=_frozen(axis, (-1, 3)),
            dof_slices=tuple(slices), dof_names=tuple(d.name for d in dofs),
            dof_low=_frozen([d.low for d in dofs]), dof_high=_frozen([d.high for d in dofs]),
            kp=_frozen([d.kp for d in dofs]), kd=_frozen([d.kd for d in dofs]),
            effort=_frozen([d.effort for d in dofs]), armature=_frozen([d.armature for d in dofs]),
            frictionloss=_frozen([d.frictionloss for d in dofs]),
        )


_KIND = {0: JointKind.FIXED, 1: JointKind.HINGE, 3: JointKind.SPHERICAL}


def _joint_name(hinges: Sequence[_Hinge], body: str) -> str:
    if not hinges:
        return body
    return hinges[0].name if len(hinges) == 1 else hinges[0].name.rpartition("_")[0] or hinges[0].name


def _frozen(values: Sequence, shape: tuple[int, ...] = (-1,)) -> np.ndarray:
    array = np.array(values, dtype=np.float64).reshape(shape)
    array.setflags(write=False)
    return array
