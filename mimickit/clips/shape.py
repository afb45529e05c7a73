"""Characters as the clip tools see them: kinematics, collision shapes as spheres, and feet; clips as rotations."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import torch
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.anim.mjcf import load_character_model
from mimickit.anim.motion import LoopMode, MotionClip
from mimickit.util import rotations as rot
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.mjcf_file import read_mjcf

ASSETS = SHIPPED / "data/assets"
GRAVITY = 9.81  # m/s^2
RIM = 12  # points that stand for each rim of a cylinder


@dataclass(frozen=True)
class Foot:
    """A foot: the bodies it consists of (the first one carries it) and the middle of its sole in that body (m)."""

    bodies: tuple[str, ...]
    sole: tuple[float, float, float]


def _pair(names: Sequence[tuple[str, ...]], sole: tuple[float, float, float]) -> tuple[Foot, ...]:
    return tuple(Foot(bodies, sole) for bodies in names)


HUMANOID_FEET = _pair([("right_foot",), ("left_foot",)], (0.045, 0.0, -0.05))
FEET: dict[str, tuple[Foot, ...]] = {  # by the character file's stem
    "humanoid": HUMANOID_FEET,
    "humanoid_sword_shield": HUMANOID_FEET,
    "g1": _pair([("left_ankle_roll_link",), ("right_ankle_roll_link",)], (0.04, 0.0, -0.035)),
    "pi_22dof": _pair([("l_ankle_roll_link",), ("r_ankle_roll_link",)], (-0.0265, 0.0, -0.05)),
    "smpl": _pair([("L_Ankle", "L_Toe"), ("R_Ankle", "R_Toe")], (0.0346, 0.0, -0.0529)),
    "go2": _pair([(f"{leg}_foot",) for leg in ("FL", "FR", "RL", "RR")], (0.0, 0.0, 0.0)),  # balls: their centre
}
CHARACTERS = {  # folder below data/motions -> character file below data/assets
    "humanoid": "humanoid/humanoid.xml",
    "sword_shield": "sword_shield/humanoid_sword_shield.xml",
    "g1": "g1/g1.xml",
    "go2": "go2/go2.xml",
    "hightorque_pi_plus": "hightorque_pi_plus/pi_22dof.xml",
    "smpl": "smpl/smpl.xml",
}


@dataclass(frozen=True)
class Motion:
    """A clip in work: root_pos [F, 3] m, root_rot [F, 4], joint_rot [F, J, 4]; float64, quaternions xyzw."""

    root_pos: Tensor
    root_rot: Tensor
    joint_rot: Tensor
    fps: float
    loops: bool


class Shape:
    """A character with its collision shapes as spheres: centres [P, 3] in bodies [P], radii [P] (0 at corners, rims).

    Attributes:
        character: kinematics in float64.
        feet: N body indices, one a foot (its carrying body); empty for characters that are not listed in ``FEET``.
        foot_parts: N lists of body indices, all bodies of a foot.
        sole: [N, 3] m, middle of each sole in the foot's frame.

    Raises:
        AssetMissingError, UserError: as :func:`mimickit.anim.mjcf.load_character_model`.
    """

    def __init__(self, char_file: str | Path) -> None:
        path = Path(char_file)
        if not path.is_file():
            raise AssetMissingError(f"character file not found: {path}")
        self.character = Character(load_character_model(path), dtype=torch.float64)
        model = compiled(path)
        body, centre, radius = [], [], []
        for geom in range(model.ngeom):
            points, r = _points(mujoco.mjtGeom(model.geom_type[geom]), model.geom_size[geom])
            name = model.body(model.geom_bodyid[geom]).name
            if not len(points) or name not in self.character.body_names:
                continue
            matrix = np.zeros(9)
            mujoco.mju_quat2Mat(matrix, model.geom_quat[geom])
            centre.append(model.geom_pos[geom] + points @ matrix.reshape(3, 3).T)
            body += [self.character.model.body_index(name)] * len(points)
            radius += [r] * len(points)
        if not centre:
            raise UserError(f"{path}: no body has a sphere, capsule, box or cylinder, by which clips are measured")
        self.body, self.radius = torch.tensor(body), torch.tensor(radius, dtype=torch.float64)
        self.centre = torch.from_numpy(np.concatenate(centre))
        feet = FEET.get(path.stem, ())
        self.foot_parts = [[self.character.model.body_index(name) for name in foot.bodies] for foot in feet]
        self.feet = [parts[0] for parts in self.foot_parts]
        self._foot_points = [self._at_rest(parts) for parts in self.foot_parts]
        self.sole = torch.tensor([foot.sole for foot in feet], dtype=torch.float64).reshape(-1, 3)

    def heights(self, body_pos: Tensor, body_rot: Tensor) -> Tensor:
        """Lowest point [F, B] of every body (m); infinity for bodies without a shape."""
        points = body_pos[:, self.body] + rot.quat_rotate(body_rot[:, self.body], self.centre)
        low = torch.full(body_pos.shape[:2], torch.inf, dtype=torch.float64)
        return low.scatter_reduce(1, self.body.expand(len(low), -1), points[..., 2] - self.radius, "amin")

    def foot_heights(self, heights: Tensor) -> Tensor:
        """Lowest point [F, N] of every foot (m), from the :meth:`heights` [F, B] of all bodies."""
        return torch.stack([heights[:, parts].amin(1) for parts in self.foot_parts], dim=1)

    def sole_heights(self, pos: Tensor, turn: Tensor) -> Tensor:
        """Lowest point [F, N] of every foot (m) whose carrying body is at ``pos`` [F, N, 3], ``turn`` [F, N, 4].

        Joints within a foot are taken to be at rest.
        """
        low = []
        for foot, (centre, radius) in enumerate(self._foot_points):
            points = pos[:, foot, None] + rot.quat_rotate(turn[:, foot, None], centre)
            low.append((points[..., 2] - radius).amin(1))
        return torch.stack(low, dim=1)

    def foot_length(self) -> float:
        """Length of the (first) sole (m)."""
        centre, radius = self._foot_points[0]
        return float((centre[:, 0] + radius).max() - (centre[:, 0] - radius).min())

    def _at_rest(self, parts: list[int]) -> tuple[Tensor, Tensor]:
        """Centres [P, 3] in the frame of the first of ``parts``, the others at rest, and radii [P]."""
        model = self.character.model
        centres, radii = [], []
        for part in parts:
            offset, body = np.zeros(3), part
            while body != parts[0]:
                assert np.allclose(model.local_rot[body], (0, 0, 0, 1)), "parts of a foot rest unrotated"
                offset, body = offset + model.local_pos[body], model.parents[body]
            mine = self.body == part
            centres.append(self.centre[mine] + torch.from_numpy(offset))
            radii.append(self.radius[mine])
        return torch.cat(centres), torch.cat(radii)

    def kinematics(self, motion: Motion) -> tuple[Tensor, Tensor]:
        """Body poses [F, B, 3] and [F, B, 4] in the world."""
        return self.character.forward_kinematics(motion.root_pos, motion.root_rot, motion.joint_rot)


def compiled(path: Path) -> mujoco.MjModel:
    """The model as MuJoCo compiles it, with inertias repaired as the library does.

    Raises:
        AssetMissingError: a mesh or texture does not exist, by name. UserError: MuJoCo refuses the file.
    """
    root = read_mjcf(path)
    folder = path.resolve().parent
    compiler = ElementTree.SubElement(root, "compiler")  # the last one wins
    for key, tags in (("meshdir", ("mesh", "hfield", "skin")), ("texturedir", ("texture",))):
        named = [given for one in root.findall("compiler") for given in (one.get("assetdir"), one.get(key)) if given]
        files = folder / (named[-1] if named else "")
        missing = [str(files / name) for asset in root.findall("asset") for tag in tags for item in asset.findall(tag)
                   if (name := item.get("file")) and not os.path.isfile(files / name)]
        if missing:
            raise AssetMissingError(f"{path} uses files that do not exist: {', '.join(missing[:20])}")
        compiler.set(key, str(files))
    try:
        return mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    except ValueError as error:
        raise UserError(f"{path}: MuJoCo cannot read it: {' '.join(str(error).split())[:500]}") from None


def _points(kind: mujoco.mjtGeom, size: np.ndarray) -> tuple[np.ndarray, float]:
    """Centres [n, 3] in the geom's frame and radius of the spheres that stand for a geom; none for planes, meshes."""
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return np.zeros((1, 3)), size[0]
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        return np.array([[0, 0, -size[1]], [0, 0, size[1]]]), size[0]
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return size * np.stack(np.meshgrid(*[[-1, 1]] * 3), axis=-1).reshape(-1, 3), 0.0
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        angle = np.linspace(0.0, 2.0 * np.pi, RIM, endpoint=False)
        rim = np.stack([size[0] * np.cos(angle), size[0] * np.sin(angle), np.full(RIM, size[1])], axis=-1)
        return np.concatenate([rim, rim * (1, 1, -1)]), 0.0
    return np.zeros((0, 3)), 0.0


def unpack(clip: MotionClip, shape: Shape) -> Motion:
    """Clip -> rotations."""
    frames = torch.from_numpy(clip.frames).double()
    joint_rot = rot.quat_pos(shape.character.dof_to_rot(frames[:, 6:]))
    return Motion(frames[:, :3], rot.exp_map_to_quat(frames[:, 3:6]), joint_rot, clip.fps,
                  clip.loop_mode is LoopMode.WRAP)


def pack(motion: Motion, shape: Shape) -> MotionClip:
    """Rotations -> clip."""
    frames = torch.cat([motion.root_pos, rot.quat_to_exp_map(motion.root_rot),
                        shape.character.rot_to_dof(motion.joint_rot)], dim=-1)
    return MotionClip(LoopMode.WRAP if motion.loops else LoopMode.CLAMP, motion.fps, frames.numpy().astype(np.float32))
