"""More clips from few: mirrored, or along a curve. (For faster and slower ones change ``fps``.)"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from mimickit.clips.cleanup import repeated, solve_legs
from mimickit.clips.feet import Feet, feet_of, lock
from mimickit.clips.shape import GRAVITY, Motion, Shape
from mimickit.util import rotations as rot
from mimickit.util.failures import UserError

SIDES = (("left_", "right_"), ("L_", "R_"), ("l_", "r_"), ("FL_", "FR_"), ("RL_", "RR_"))
CURVE_TIME = 2.5  # s, at least


def mirror(motion: Motion, shape: Shape) -> Motion:
    """The motion seen in a mirror that stands along the x axis: left and right limbs change places.

    A reflection at the plane y = 0 takes a position to (x, -y, z) and a rotation (x, y, z, w) to (-x, y, -z, w).

    Raises:
        UserError: a limb has no counterpart that moves the same way.
    """
    names, kinds = shape.character.body_names, shape.character.model.joint_kinds
    partner = [_partner(name) for name in names]
    lonely = [name for name, kind, other in zip(names, kinds, partner)
              if other not in names or kinds[names.index(other)] is not kind]
    if lonely:
        raise UserError(f"{shape.character.model.file} cannot be mirrored: {', '.join(lonely)} has no counterpart with "
                        "a joint of the same kind")
    order = torch.tensor([names.index(other) - 1 for other in partner[1:]])
    flip = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    return replace(motion, root_pos=motion.root_pos * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64),
                   root_rot=motion.root_rot * flip, joint_rot=motion.joint_rot[:, order] * flip)


def _partner(name: str) -> str:
    for left, right in SIDES:
        if name.startswith(left):
            return right + name.removeprefix(left)
        if name.startswith(right):
            return left + name.removeprefix(right)
    return name


def curve(motion: Motion, yaw_rate: float, shape: Shape) -> Motion:
    """A looping straight motion led along a circle, for at least ``CURVE_TIME`` s; clamped.

    Frame by frame the motion is turned by ``yaw_rate`` (rad/s) times its time and its path is bent; the body leans into
    the curve until gravity and centrifugal force point along it (tan lean = speed * yaw rate / g); the feet, turned but
    not leaned, are pinned to the ground where they stand, and the legs solved.
    """
    period = (len(motion.root_pos) - 1) / motion.fps
    motion = repeated(motion, math.ceil(CURVE_TIME / period))
    angle = yaw_rate * torch.arange(len(motion.root_pos), dtype=torch.float64) / motion.fps
    steps = torch.diff(motion.root_pos, dim=0)
    bent = rot.quat_rotate(rot.yaw_quat(0.5 * (angle[1:] + angle[:-1])), steps)
    root_pos = motion.root_pos[:1] + torch.cat([torch.zeros_like(steps[:1]), bent.cumsum(0)])
    turn = rot.yaw_quat(angle)
    feet = feet_of(motion, shape)
    feet = Feet(root_pos.unsqueeze(1) + rot.quat_rotate(turn.unsqueeze(1), feet.pos - motion.root_pos.unsqueeze(1)),
                rot.quat_mul(turn.unsqueeze(1), feet.rot))

    distance = (motion.root_pos[-1] - motion.root_pos[0])[:2]
    speed = distance.norm() / (len(angle) - 1) * motion.fps
    direction = torch.cat([distance / distance.norm(), torch.zeros(1, dtype=torch.float64)])
    lean = -torch.atan(speed * yaw_rate / GRAVITY).expand(len(angle))
    tilt = rot.axis_angle_to_quat(rot.quat_rotate(turn, direction.expand(len(angle), 3)), lean)
    upright = torch.zeros_like(root_pos)
    upright[:, 2] = root_pos[:, 2]
    root_pos = root_pos - upright + rot.quat_rotate(tilt, upright)
    motion = replace(motion, root_pos=root_pos, root_rot=rot.quat_mul(tilt, rot.quat_mul(turn, motion.root_rot)),
                     loops=False)
    return solve_legs(motion, lock(feet, shape, motion.fps), shape)
