"""Makes recorded humanoid clips fit for imitation: loops close, feet stay put, nothing sinks into the ground.

Steps of :func:`clean`, each on the whole clip at once (float64):

1. heading (looping clips): a turn between first and last frame is taken back evenly over the clip;
2. seam (looping clips): over the last 0.15 s or a little more the pose is led into the first frame's pose. The stride
   of the loop is chosen so that a foot which stands on the ground across the seam does not slide;
3. ground: the clip is shifted so that its lowest points rest on the ground; where other bodies than feet still sink
   in, the root is raised smoothly, and each foot is raised on its own;
4. legs: hip, knee and ankle are solved anew so that the feet are where they should be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import mujoco
import numpy as np
import torch
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.anim.mjcf import load_character_model
from mimickit.anim.motion import LoopMode, MotionClip
from mimickit.util import rotations as rot

SEAM_WINDOW = (0.15, 0.4)  # s; longer windows for wider gaps, so that
SEAM_SPEED, SEAM_FOOT_SPEED = 4.0, 0.5  # rad/s, m/s: about what closing adds to the fastest joint, to a foot
STANCE_HEIGHT, STANCE_SPEED = 0.03, 0.5  # m, m/s: below both a foot stands
SINK_ALLOWED = 0.005  # m, other bodies than feet
STRAIGHTEST_KNEE = 0.03  # rad
LEGS = (("right_thigh", "right_shin", "right_foot"), ("left_thigh", "left_shin", "left_foot"))


@dataclass(frozen=True)
class Motion:
    """A clip being worked on: root_pos [F, 3], root_rot [F, 4], joint_rot [F, J, 4]; float64."""

    root_pos: Tensor
    root_rot: Tensor
    joint_rot: Tensor
    fps: float
    loops: bool


@dataclass(frozen=True)
class Feet:
    """World poses of the feet's origins: pos [F, 2, 3], rot [F, 2, 4] (right, left)."""

    pos: Tensor
    rot: Tensor


class Shape:
    """A character with its collision shapes as spheres: centres [P, 3] in bodies [P], radii [P] (0 at box corners)."""

    def __init__(self, char_file: str | Path) -> None:
        self.character = Character(load_character_model(char_file), dtype=torch.float64)
        model = mujoco.MjModel.from_xml_path(str(char_file))
        body, centre, radius = [], [], []
        for geom in range(model.ngeom):
            matrix = np.zeros(9)
            mujoco.mju_quat2Mat(matrix, model.geom_quat[geom])
            size = model.geom_size[geom]
            kind = mujoco.mjtGeom(model.geom_type[geom])
            if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
                local, r = np.zeros((1, 3)), size[0]
            elif kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
                local, r = np.array([[0, 0, -size[1]], [0, 0, size[1]]]), size[0]
            elif kind == mujoco.mjtGeom.mjGEOM_BOX:
                local, r = size * np.stack(np.meshgrid(*[[-1, 1]] * 3), axis=-1).reshape(-1, 3), 0.0
            else:
                continue
            centre.append(model.geom_pos[geom] + local @ matrix.reshape(3, 3).T)
            body += [self.character.model.body_index(model.body(model.geom_bodyid[geom]).name)] * len(local)
            radius += [r] * len(local)
        self.body, self.radius = torch.tensor(body), torch.tensor(radius, dtype=torch.float64)
        self.centre = torch.from_numpy(np.concatenate(centre))
        self.feet = [self.character.model.body_index(leg[2]) for leg in LEGS]

    def heights(self, body_pos: Tensor, body_rot: Tensor) -> Tensor:
        """Lowest point [F, B] of every body (m); infinity for bodies without a shape."""
        points = body_pos[:, self.body] + rot.quat_rotate(body_rot[:, self.body], self.centre)
        low = torch.full(body_pos.shape[:2], torch.inf, dtype=torch.float64)
        return low.scatter_reduce(1, self.body.expand(len(low), -1), points[..., 2] - self.radius, "amin")

    def foot_heights(self, feet: Feet) -> Tensor:
        """Lowest point [F, 2] of each foot (m)."""
        pos = torch.zeros(len(feet.pos), self.character.num_bodies, 3, dtype=torch.float64)
        turn = torch.zeros(len(feet.pos), self.character.num_bodies, 4, dtype=torch.float64)
        pos[:, self.feet], turn[:, self.feet] = feet.pos, feet.rot
        return self.heights(pos, turn)[:, self.feet]

    def kinematics(self, motion: Motion) -> tuple[Tensor, Tensor]:
        return self.character.forward_kinematics(motion.root_pos, motion.root_rot, motion.joint_rot)


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


def clean(clip: MotionClip, shape: Shape) -> MotionClip:
    """The clip, cleaned up (see the module's text). Frame count, rate and loop mode stay."""
    motion = unpack(clip, shape)
    feet = _feet(motion, shape)
    if motion.loops:
        motion, feet = _straighten(motion, feet)
        motion, feet = _close_seam(motion, feet, shape)
    return pack(_ground(motion, feet, shape), shape)


def _feet(motion: Motion, shape: Shape) -> Feet:
    pos, turn = shape.kinematics(motion)
    return Feet(pos[:, shape.feet], turn[:, shape.feet])


def _straighten(motion: Motion, feet: Feet) -> tuple[Motion, Feet]:
    """Turn frame i by -(i / (F - 1)) of the yaw between first and last frame, and bend the path accordingly."""
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    yaw = rot.quat_twist_angle(rot.quat_diff(motion.root_rot[0], motion.root_rot[-1]), up)
    angle = -yaw * torch.linspace(0.0, 1.0, len(motion.root_pos), dtype=torch.float64)
    steps = rot.quat_rotate(rot.yaw_quat(0.5 * (angle[1:] + angle[:-1])), torch.diff(motion.root_pos, dim=0))
    root_pos = motion.root_pos[:1] + torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])
    turn = rot.yaw_quat(angle)
    around = turn.unsqueeze(1)
    feet = Feet(root_pos.unsqueeze(1) + rot.quat_rotate(around, feet.pos - motion.root_pos.unsqueeze(1)),
                rot.quat_mul(around, feet.rot))
    return replace(motion, root_pos=root_pos, root_rot=rot.quat_mul(turn, motion.root_rot)), feet


def _close_seam(motion: Motion, feet: Feet, shape: Shape) -> tuple[Motion, Feet]:
    """Lead the last frames into the pose of the first; root and feet end one stride further."""
    all_rot = torch.cat([motion.root_rot.unsqueeze(1), motion.joint_rot], dim=1)
    stride = motion.root_pos[-1] - motion.root_pos[0]
    speed = torch.diff(feet.pos, dim=0).norm(dim=-1) * motion.fps
    height = shape.foot_heights(feet)
    stands = (height[[0, -1]] < height.amin(0) + STANCE_HEIGHT).all(0) & (speed[[0, -1]] < STANCE_SPEED).all(0)
    if stands.any():
        stride = (feet.pos[-1] - feet.pos[0])[stands].mean(0)
    stride = torch.cat([stride[:2], torch.zeros(1, dtype=torch.float64)])

    gap = rot.quat_diff_angle(all_rot[0], all_rot[-1]).max().item()
    foot_gap = (feet.pos[0] + stride - feet.pos[-1]).norm(dim=-1).max().item()
    window = np.clip(max(gap / SEAM_SPEED, foot_gap / SEAM_FOOT_SPEED), *SEAM_WINDOW)
    frames = len(motion.root_pos)
    x = (1.0 - (frames - 1 - torch.arange(frames, dtype=torch.float64)) / (window * motion.fps)).clamp(0.0, 1.0)
    weight = x * x * x * (10.0 - 15.0 * x + 6.0 * x * x)  # quintic step: no jump in velocity or acceleration

    def towards(pos: Tensor) -> Tensor:
        """Positions [F, ..., 3] led to the first one plus stride."""
        return pos + weight.view(-1, *[1] * (pos.dim() - 1)) * (pos[0] + stride - pos[-1])

    def turned(quat: Tensor) -> Tensor:
        """Rotations [F, n, 4] led to the first one, by a turn in the body's own frame."""
        error = rot.quat_to_exp_map(rot.quat_mul(rot.quat_conj(quat[-1]), quat[0]))
        return rot.quat_mul(quat, rot.exp_map_to_quat(weight.view(-1, 1, 1) * error))

    all_rot = turned(all_rot)
    closed = replace(motion, root_pos=towards(motion.root_pos), root_rot=all_rot[:, 0], joint_rot=all_rot[:, 1:])
    return closed, Feet(towards(feet.pos), turned(feet.rot))


def _ground(motion: Motion, feet: Feet, shape: Shape) -> Motion:
    """Shift, raise the root and the feet where they sink in, and solve the legs."""
    lowest = shape.heights(*shape.kinematics(motion)).amin(1)
    touching = lowest[lowest < torch.quantile(lowest, 0.25) + STANCE_HEIGHT]
    shift = torch.zeros(3, dtype=torch.float64)
    shift[2] = -touching.median()
    motion = replace(motion, root_pos=motion.root_pos + shift)
    feet = Feet(feet.pos + shift, feet.rot)
    others = [b for b in range(shape.character.num_bodies) if b not in shape.feet]
    solved = motion
    for _ in range(4):  # raising the root moves knees, so look again
        depth = (-SINK_ALLOWED - shape.heights(*shape.kinematics(solved))[:, others].amin(1)).clamp_min(0.0)
        lift = _envelope(depth, motion.fps, motion.loops)
        motion = replace(motion, root_pos=motion.root_pos + torch.nn.functional.pad(lift.unsqueeze(-1), (2, 0)))
        sunk = (-shape.foot_heights(feet)).clamp_min(0.0)
        rise = torch.stack([_blur(sunk[:, i], 0.02 * motion.fps, motion.loops) for i in (0, 1)], dim=1)
        feet = Feet(feet.pos + torch.nn.functional.pad(rise.unsqueeze(-1), (2, 0)), feet.rot)
        solved = _solve_legs(motion, feet, shape)
    return solved


def _envelope(depth: Tensor, fps: float, loops: bool) -> Tensor:
    """A smooth curve that stays (about) above ``depth`` [F]: sliding maximum, then blur."""
    reach = max(1, round(0.1 * fps))
    padded = _extend(depth, reach, loops)
    return _blur(torch.nn.functional.max_pool1d(padded[None], 2 * reach + 1, stride=1)[0], 0.05 * fps, loops)


def _blur(values: Tensor, sigma: float, loops: bool) -> Tensor:
    """Gaussian blur of [F], sigma in frames."""
    reach = max(1, round(3 * sigma))
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offset / max(sigma, 0.3)) ** 2)
    padded = _extend(values, reach, loops)
    return torch.nn.functional.conv1d(padded[None, None], (kernel / kernel.sum())[None, None])[0, 0]


def _extend(values: Tensor, reach: int, loops: bool) -> Tensor:
    """``reach`` more values at both ends of [F]: the loop's other end, or the end value held."""
    frames = len(values)
    index = torch.arange(-reach, frames + reach)
    return values[index % (frames - 1) if loops else index.clamp(0, frames - 1)]


def _solve_legs(motion: Motion, feet: Feet, shape: Shape) -> Motion:
    """Hip, knee and ankle rotations that bring both feet to their poses; each knee stays in the plane it was in.

    Two-link inverse kinematics: the distance hip-ankle gives the knee angle (law of cosines), the smallest turn of the
    hip then aims the ankle, and the ankle restores the foot's rotation. Out of reach, the leg stretches toward it.
    """
    model = shape.character.model
    joint_rot = motion.joint_rot.clone()
    for side, names in enumerate(LEGS):
        thigh, shin, foot = (model.body_index(name) for name in names)
        offsets = torch.from_numpy(model.local_pos[[thigh, shin, foot]])
        hip_offset, thigh_offset, shin_offset = offsets.unbind()
        upper, lower = thigh_offset.norm(), shin_offset.norm()
        hip = motion.root_pos + rot.quat_rotate(motion.root_rot, hip_offset)
        aim = rot.quat_rotate(rot.quat_conj(motion.root_rot), feet.pos[:, side] - hip)  # in the pelvis's frame
        cosine = (aim.square().sum(-1) - upper**2 - lower**2) / (2.0 * upper * lower)
        bend = torch.acos(cosine.clamp(-0.999, np.cos(STRAIGHTEST_KNEE)))
        knee = rot.axis_angle_to_quat(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), bend)
        turn = joint_rot[:, thigh - 1]
        reach = rot.quat_rotate(turn, thigh_offset + rot.quat_rotate(knee, shin_offset))
        turn = rot.quat_mul(_between(reach, aim), turn)
        above = rot.quat_mul(rot.quat_mul(motion.root_rot, turn), knee)
        joint_rot[:, thigh - 1], joint_rot[:, shin - 1] = turn, knee
        joint_rot[:, foot - 1] = rot.quat_mul(rot.quat_conj(above), feet.rot[:, side])
    return replace(motion, joint_rot=rot.quat_pos(rot.quat_normalize(joint_rot)))


def _between(a: Tensor, b: Tensor) -> Tensor:
    """Smallest rotation [F, 4] that takes the direction of a [F, 3] to that of b."""
    a, b = rot.normalize(a), rot.normalize(b)
    half = torch.cat([rot.cross(a, b), 1.0 + (a * b).sum(-1, keepdim=True)], dim=-1)
    return rot.quat_normalize(half)


@dataclass(frozen=True)
class Report:
    """What to know about a clip before training on it."""

    frames: int
    fps: float
    loop: str
    lowest_foot: float  # m, lowest point of the feet over the clip
    lowest: float  # m, the same of all bodies
    slide: float  # m/s, mean horizontal speed of a standing foot (nan: none stands)
    seam_rot: float  # rad, widest gap of a joint or the root between first and last frame (0 for clamped clips)
    seam_pos: float  # m, gap of the root's height (0 for clamped clips)
    max_speed: float  # rad/s, fastest joint
    hinge_violation: float  # rad, how far a hinge exceeds its range


def measure(clip: MotionClip, shape: Shape) -> Report:
    """Measure a clip; see :class:`Report`."""
    motion, model = unpack(clip, shape), shape.character.model
    heights = shape.heights(*shape.kinematics(motion))
    feet = _feet(motion, shape)
    low = heights[:, shape.feet]
    middle = feet.pos + rot.quat_rotate(feet.rot, torch.tensor([0.045, 0.0, -0.05], dtype=torch.float64))
    moves = torch.diff(middle, dim=0) * clip.fps
    stands = (low[:-1] < 0.02) & (low[1:] < 0.02) & (moves.norm(dim=-1) < STANCE_SPEED)
    slide = moves[..., :2].norm(dim=-1)[stands].mean().item() if stands.any() else float("nan")
    all_rot = torch.cat([motion.root_rot.unsqueeze(1), motion.joint_rot], dim=1)
    velocity = shape.character.dof_velocity(motion.joint_rot[:-1], motion.joint_rot[1:], 1.0 / clip.fps)
    dofs = clip.frames[:, 6:]
    hinges = [s.start for s in model.dof_slices if s.stop - s.start == 1]
    excess = np.maximum(model.dof_low[hinges] - dofs[:, hinges], dofs[:, hinges] - model.dof_high[hinges])
    return Report(
        frames=clip.num_frames, fps=clip.fps, loop="wrap" if motion.loops else "clamp",
        lowest_foot=low.min().item(), lowest=heights.min().item(), slide=slide,
        seam_rot=rot.quat_diff_angle(all_rot[0], all_rot[-1]).max().item() if motion.loops else 0.0,
        seam_pos=abs((motion.root_pos[-1] - motion.root_pos[0])[2].item()) if motion.loops else 0.0,
        max_speed=velocity.abs().max().item(), hinge_violation=max(float(excess.max()), 0.0),
    )
