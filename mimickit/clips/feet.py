"""Standing feet: finds stances in a clip, and pins them to one spot on the ground."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mimickit.clips.filters import envelope
from mimickit.clips.shape import Motion, Shape
from mimickit.util import rotations as rot

STANCE_HEIGHT, STANCE_SPEED = 0.02, 0.45  # m (of the lowest point above the ground), m/s (of the sole's middle)
UPRIGHT = 0.5  # cosine of the tilt up to which a foot may count as standing: 60 degrees, on its toes
SHORTEST, BRIDGED = 0.05, 0.04  # s: shorter stances do not count, shorter gaps within a stance do not either
BLEND = 0.12  # s to lead a foot into and out of its stance
MOST_YAW = 0.35  # rad; a foot that turns further while it stands is a pivot, and keeps turning


UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


@dataclass(frozen=True)
class Feet:
    """World poses of the feet's carrying bodies: pos [F, N, 3] m, rot [F, N, 4]."""

    pos: Tensor
    rot: Tensor


def feet_of(motion: Motion, shape: Shape) -> Feet:
    """The feet's poses in a clip."""
    pos, turn = shape.kinematics(motion)
    return Feet(pos[:, shape.feet], turn[:, shape.feet])


def soles(feet: Feet, shape: Shape) -> Tensor:
    """Middles of the soles [F, N, 3] (m)."""
    return feet.pos + rot.quat_rotate(feet.rot, shape.sole)


def stances(feet: Feet, shape: Shape, fps: float, upright: float = UPRIGHT) -> list[list[tuple[int, int]]]:
    """Per foot, the intervals [first, last] of frames in which it stands (low, slow and upright)."""
    moves = torch.diff(soles(feet, shape), dim=0).norm(dim=-1) * fps
    speed = torch.minimum(torch.cat([moves[:1], moves]), torch.cat([moves, moves[-1:]]))
    up = rot.quat_rotate(feet.rot, UP)[..., 2]
    stands = (shape.sole_heights(feet.pos, feet.rot) < STANCE_HEIGHT) & (speed < STANCE_SPEED) & (up > upright)
    return [_intervals(stands[:, i].tolist(), BRIDGED * fps, SHORTEST * fps) for i in range(stands.shape[1])]


def _intervals(flags: list[bool], bridged: float, shortest: float) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for i, flag in enumerate(flags):
        if not flag:
            continue
        if found and i - found[-1][1] - 1 <= bridged:
            found[-1] = (found[-1][0], i)
        else:
            found.append((i, i))
    return [(a, b) for a, b in found if b - a + 1 >= shortest]


def lock(feet: Feet, shape: Shape, fps: float, flatten: float = 0.0,
         when: list[list[tuple[int, int]]] | None = None) -> Feet:
    """Pin standing feet: the sole's middle stays at its mean place, its yaw at the mean yaw, its lowest point at z = 0.

    Args:
        feet: poses over F frames (of a looping clip: several periods in a row).
        flatten: part of a standing foot's tilt that is taken away, 0 to 1.
        when: the stances; by default those of :func:`stances`.

    Corrections fade in and out over ``BLEND`` s before and after a stance. Afterwards nothing of a foot is below z = 0.
    """
    pos, turn = feet.pos.clone(), feet.rot.clone()
    middle = soles(feet, shape)
    for foot, intervals in enumerate(stances(feet, shape, fps) if when is None else when):
        weights = _weights(intervals, len(pos), fps)
        if not intervals:
            continue
        nearest = torch.stack([torch.arange(len(pos)).clamp(a, b) for a, b in intervals])  # [S, F]
        spin, shift = torch.zeros(len(pos), dtype=torch.float64), torch.zeros(len(pos), 2, dtype=torch.float64)
        yaw = _unwrap(rot.quat_twist_angle(turn[:, foot], UP))
        for (a, b), weight, at in zip(intervals, weights, nearest):
            if yaw[a:b + 1].max() - yaw[a:b + 1].min() < MOST_YAW:
                spin += weight * (yaw[a:b + 1].mean() - yaw[at])
            shift += weight.unsqueeze(-1) * (middle[a:b + 1, foot, :2].mean(0) - middle[at, foot, :2])
        stand = weights.amax(0)
        level = levelled(turn[:, foot], flatten * stand)
        turn[:, foot] = rot.quat_mul(rot.yaw_quat(spin), level)
        target = middle[:, foot].clone()
        target[:, :2] += shift
        pos[:, foot] = target - rot.quat_rotate(turn[:, foot], shape.sole[foot])
        low = shape.sole_heights(pos, turn)[:, foot]
        pos[:, foot, 2] -= stand * low
    return Feet(raised(pos, turn, shape, fps), turn)


def raised(pos: Tensor, turn: Tensor, shape: Shape, fps: float) -> Tensor:
    """Positions [F, N, 3] of feet, lifted smoothly where they would be below the ground."""
    sunk = (-shape.sole_heights(pos, turn)).clamp_min(0.0)
    rise = [torch.maximum(envelope(depth, fps, loops=False, reach=0.05, sigma=0.03), depth) for depth in sunk.unbind(1)]
    return torch.cat([pos[..., :2], pos[..., 2:] + torch.stack(rise, dim=1).unsqueeze(-1)], dim=-1)


def _weights(intervals: list[tuple[int, int]], frames: int, fps: float) -> Tensor:
    """How much each stance holds its foot [S, F]: 1 inside, fading outside; where stances overlap the sum is 1."""
    time = torch.arange(frames, dtype=torch.float64)
    rows = []
    for a, b in intervals:
        away = torch.maximum(a - time, time - b).clamp_min(0.0) / (BLEND * fps)
        x = (1.0 - away).clamp_min(0.0)
        rows.append(x * x * (3.0 - 2.0 * x))
    weights = torch.stack(rows) if rows else torch.zeros(0, frames, dtype=torch.float64)
    return weights / weights.sum(0).clamp_min(1.0) if rows else weights


def levelled(turn: Tensor, part: Tensor | float) -> Tensor:
    """Rotations [..., 4] with ``part`` [...] of their tilt taken away; the heading stays."""
    flat = rot.yaw_quat(rot.quat_twist_angle(turn, UP))
    tilt = rot.quat_to_exp_map(rot.quat_mul(rot.quat_conj(flat), turn))
    return rot.quat_mul(flat, rot.exp_map_to_quat(torch.as_tensor(1.0 - part).unsqueeze(-1) * tilt))


def _unwrap(angle: Tensor) -> Tensor:
    steps = rot.wrap_angle(torch.diff(angle))
    return angle[:1] + torch.cat([torch.zeros(1, dtype=angle.dtype), steps.cumsum(0)])
