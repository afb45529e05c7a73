"""Prepares recorded humanoid clips for imitation: loops close, feet stay put, nothing sinks into the ground.

Steps of :func:`clean`, each on the whole clip at once (float64):

1. heading (looping clips): a turn between first and last frame is taken back evenly over the clip;
2. seam (looping clips): over the last 0.15 s or a little more the pose is led into the first frame's pose. The stride
   of the loop is chosen so that a foot which stands on the ground across the seam does not slide;
3. ground: the clip is shifted so that its lowest points rest on the ground; where other bodies than feet still sink
   in, the root is raised smoothly, and each foot is raised on its own;
4. legs: hip, knee and ankle are solved anew so that the feet are where they should be;
5. where asked for, feet that stand but slide are pinned to one spot.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mimickit.anim.motion import MotionClip
from mimickit.clips.feet import Feet, feet_of, lock
from mimickit.clips.filters import blur, envelope
from mimickit.clips.shape import Motion, Shape, pack, unpack
from mimickit.util import rotations as rot

SEAM_WINDOW = (0.15, 0.4)  # s; longer windows for wider gaps, so that
SEAM_SPEED, SEAM_FOOT_SPEED = 4.0, 0.5  # rad/s, m/s: about what closing adds to the fastest joint, to a foot
STANCE_HEIGHT, STANCE_SPEED = 0.03, 0.5  # m, m/s: below both a foot stands
SINK_ALLOWED = 0.005  # m, other bodies than feet
STRAIGHTEST_KNEE = 0.03  # rad
HUMANOID_LEGS = (("right_thigh", "right_shin", "right_foot"), ("left_thigh", "left_shin", "left_foot"))
LEGS = {  # by the character file's stem, in the order of its feet
    "humanoid": HUMANOID_LEGS, "humanoid_sword_shield": HUMANOID_LEGS,
    "smpl": (("L_Hip", "L_Knee", "L_Ankle"), ("R_Hip", "R_Knee", "R_Ankle")),
}


def clean(clip: MotionClip, shape: Shape, pin_feet: bool = False) -> MotionClip:
    """The clip, cleaned up as the module describes. Frame count, rate and loop mode stay."""
    motion = unpack(clip, shape)
    feet = feet_of(motion, shape)
    if motion.loops:
        motion, feet = _straighten(motion, feet)
        motion, feet = _close_seam(motion, feet, shape)
    grounded = _ground(motion, feet, shape)
    return pack(pinned(grounded, shape) if pin_feet else grounded, shape)


def pinned(motion: Motion, shape: Shape) -> Motion:
    """The motion with standing feet pinned to the ground (:func:`mimickit.clips.feet.lock`) and its legs solved
    again."""
    frames = len(motion.root_pos)
    if not motion.loops:
        return solve_legs(motion, lock(feet_of(motion, shape), shape, motion.fps), shape)
    feet = lock(feet_of(repeated(motion, 3), shape), shape, motion.fps)
    stride = motion.root_pos[-1] - motion.root_pos[0]
    middle = slice(frames - 1, 2 * frames - 1)
    return solve_legs(motion, Feet(feet.pos[middle] - stride, feet.rot[middle]), shape)


def repeated(motion: Motion, times: int) -> Motion:
    """A looping clip ``times`` times in a row, each period displaced by the stride."""
    stride = motion.root_pos[-1] - motion.root_pos[0]
    period = len(motion.root_pos) - 1
    pick = torch.cat([torch.arange(period).repeat(times), torch.tensor([0])])
    turn = torch.arange(times * period + 1) // period
    return replace(motion, root_pos=motion.root_pos[pick] + turn.unsqueeze(-1) * stride,
                   root_rot=motion.root_rot[pick], joint_rot=motion.joint_rot[pick])


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
    """Blend the last frames into the pose of the first; root and feet end one stride further."""
    all_rot = torch.cat([motion.root_rot.unsqueeze(1), motion.joint_rot], dim=1)
    stride = motion.root_pos[-1] - motion.root_pos[0]
    speed = torch.diff(feet.pos, dim=0).norm(dim=-1) * motion.fps
    height = shape.sole_heights(feet.pos, feet.rot)
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
    """Shift the clip, raise root and feet where they sink in, and solve the legs."""
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
        lift = envelope(depth, motion.fps, motion.loops)
        motion = replace(motion, root_pos=motion.root_pos + torch.nn.functional.pad(lift.unsqueeze(-1), (2, 0)))
        sunk = (-shape.sole_heights(feet.pos, feet.rot)).clamp_min(0.0)
        rise = torch.stack([blur(sunk[:, i], 0.02 * motion.fps, motion.loops) for i in (0, 1)], dim=1)
        feet = Feet(feet.pos + torch.nn.functional.pad(rise.unsqueeze(-1), (2, 0)), feet.rot)
        solved = solve_legs(motion, feet, shape)
    return solved


def solve_legs(motion: Motion, feet: Feet, shape: Shape) -> Motion:
    """Hip, knee and ankle rotations that bring both feet to their poses; each knee stays in the plane it was in.

    Two-link inverse kinematics: the distance hip-ankle gives the knee angle (a hinge about y), the smallest turn of the
    hip then aims the ankle, and the ankle restores the foot's rotation. Out of reach, the leg stretches toward it.

    With t, s the offsets of knee and ankle, the square of the distance is |t|^2 + |s|^2 + 2 t . Ry(b) s, and
    t . Ry(b) s = p cos b + q sin b + t_y s_y with p = t_x s_x + t_z s_z, q = t_x s_z - t_z s_x.
    """
    model = shape.character.model
    joint_rot = motion.joint_rot.clone()
    for side, names in enumerate(LEGS[model.file.stem]):
        thigh, shin, foot = (model.body_index(name) for name in names)
        hip_offset, t, s = torch.from_numpy(model.local_pos[[thigh, shin, foot]]).unbind()
        hip = motion.root_pos + rot.quat_rotate(motion.root_rot, hip_offset)
        aim = rot.quat_rotate(rot.quat_conj(motion.root_rot), feet.pos[:, side] - hip)  # in the pelvis's frame
        p, q = t[0] * s[0] + t[2] * s[2], t[0] * s[2] - t[2] * s[0]
        product = 0.5 * (aim.square().sum(-1) - t.square().sum() - s.square().sum()) - t[1] * s[1]
        bend = torch.atan2(q, p) + torch.acos((product / torch.hypot(p, q)).clamp(-0.999, 1.0))
        knee = rot.axis_angle_to_quat(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64),
                                      bend.clamp_min(STRAIGHTEST_KNEE))
        turn = joint_rot[:, thigh - 1]
        reach = rot.quat_rotate(turn, t + rot.quat_rotate(knee, s))
        turn = rot.quat_mul(shortest_turn(reach, aim), turn)
        above = rot.quat_mul(rot.quat_mul(motion.root_rot, turn), knee)
        joint_rot[:, thigh - 1], joint_rot[:, shin - 1] = turn, knee
        joint_rot[:, foot - 1] = rot.quat_mul(rot.quat_conj(above), feet.rot[:, side])
    return replace(motion, joint_rot=rot.quat_pos(rot.quat_normalize(joint_rot)))


def shortest_turn(a: Tensor, b: Tensor) -> Tensor:
    """Smallest rotation [..., 4] that takes the direction a to b [..., 3] (not opposite ones)."""
    a, b = rot.normalize(a), rot.normalize(b)
    return rot.quat_normalize(torch.cat([rot.cross(a, b), 1.0 + (a * b).sum(-1, keepdim=True)], dim=-1))
