"""What to know about a clip before training on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mimickit.anim.mjcf import JointKind
from mimickit.anim.motion import MotionClip
from mimickit.util import rotations as rot
from tools.shape import Shape, unpack

STANCE_HEIGHT, STANCE_SPEED = 0.02, 0.5  # m, m/s: below both, in two frames running, a foot stands


@dataclass(frozen=True)
class Report:
    """Measures of a clip (SI units)."""

    frames: int
    fps: float
    loop: str  # wrap, clamp
    lowest_foot: float  # m, lowest point of the feet over the clip (nan: the feet are not known)
    lowest: float  # m, the same of all bodies
    slide: float  # m/s, mean horizontal speed of the soles of standing feet (nan: none stands)
    seam_rot: float  # rad, widest gap of a joint or the root between first and last frame (0 for clamped clips)
    seam_pos: float  # m, gap of the root's height (0 for clamped clips)
    max_speed: float  # rad/s, fastest joint
    root_speed: float  # m/s, fastest the root moves between two frames
    root_turn: float  # rad/s, fastest the root turns
    hinge_violation: float  # rad, how far a hinge exceeds its range
    worst_hinge: str  # its name (empty: none does)


def measure(clip: MotionClip, shape: Shape) -> Report:
    """Measure a clip, which must fit the character; see :class:`Report`."""
    motion = unpack(clip, shape)
    pos, turn = shape.kinematics(motion)
    heights = shape.heights(pos, turn)
    slide, lowest_foot = float("nan"), float("nan")
    if shape.feet:
        low = shape.foot_heights(heights)
        lowest_foot = low.min().item()
        soles = pos[:, shape.feet] + rot.quat_rotate(turn[:, shape.feet], shape.sole)
        moves = torch.diff(soles, dim=0) * clip.fps
        stands = (low[:-1] < STANCE_HEIGHT) & (low[1:] < STANCE_HEIGHT) & (moves.norm(dim=-1) < STANCE_SPEED)
        if stands.any():
            slide = moves[..., :2].norm(dim=-1)[stands].mean().item()
    all_rot = torch.cat([motion.root_rot.unsqueeze(1), motion.joint_rot], dim=1)
    velocity = shape.character.dof_velocity(motion.joint_rot[:-1], motion.joint_rot[1:], 1.0 / clip.fps)
    steps = torch.diff(motion.root_pos, dim=0).norm(dim=-1) * clip.fps
    turns = rot.quat_diff_angle(motion.root_rot[:-1], motion.root_rot[1:]) * clip.fps
    violation, hinge = _hinge_violation(clip.frames[:, 6:], shape)
    return Report(
        frames=clip.num_frames, fps=clip.fps, loop="wrap" if motion.loops else "clamp",
        lowest_foot=lowest_foot, lowest=heights.min().item(), slide=slide,
        seam_rot=rot.quat_diff_angle(all_rot[0], all_rot[-1]).max().item() if motion.loops else 0.0,
        seam_pos=abs((motion.root_pos[-1] - motion.root_pos[0])[2].item()) if motion.loops else 0.0,
        max_speed=_largest(velocity.abs()), root_speed=_largest(steps), root_turn=_largest(turns),
        hinge_violation=violation, worst_hinge=hinge,
    )


def _largest(values: torch.Tensor) -> float:
    return values.max().item() if values.numel() else 0.0


def _hinge_violation(dofs: np.ndarray, shape: Shape) -> tuple[float, str]:
    """Spherical joints are left out: their three numbers are an exponential map, their ranges those of three hinges."""
    model = shape.character.model
    hinges = [s.start for s, kind in zip(model.dof_slices, model.joint_kinds) if kind is JointKind.HINGE]
    if not hinges:
        return 0.0, ""
    excess = np.maximum(model.dof_low[hinges] - dofs[:, hinges], dofs[:, hinges] - model.dof_high[hinges]).max(0)
    worst = int(excess.argmax())
    return max(float(excess[worst]), 0.0), model.dof_names[hinges[worst]] if excess[worst] > 0 else ""
