"""The parts of authored clips: smooth curves through key poses, planned footsteps, arms that reach for a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mimickit.clips.cleanup import shortest_turn
from mimickit.clips.feet import UP, Feet, raised
from mimickit.clips.filters import blur
from mimickit.clips.shape import Shape
from mimickit.util import rotations as rot

SWING_PITCH = 0.2  # rad, toes down in the middle of a swing
SOFTEN = 0.05  # s, standard deviation of the blur that rounds the curves between keys


def monotone(times: Sequence[float], values: Tensor, at: Tensor) -> Tensor:
    """Piecewise cubic through (times [K], values [K, n]), evaluated at ``at`` [F]; never overshoots neighbouring
    keys.

    Slopes by Fritsch and Butland (1984, "A method for constructing local monotone piecewise cubic interpolants"); zero
    at both ends and at local extrema, so a held value stays still. Outside the keys the end values are held.
    """
    t = torch.tensor(times, dtype=torch.float64)
    step = torch.diff(t).unsqueeze(-1)
    assert (step > 0).all(), f"key times must increase: {times}"
    rise = torch.diff(values, dim=0) / step
    before, after = rise[:-1], rise[1:]
    a, b = 2 * step[1:] + step[:-1], step[1:] + 2 * step[:-1]
    same = before * after > 0
    inner = torch.where(same, (a + b) / (a / torch.where(same, before, 1.0) + b / torch.where(same, after, 1.0)), 0.0)
    end = torch.zeros_like(values[:1])
    slope = torch.cat([end, inner, end])
    i = (torch.searchsorted(t, at, right=True) - 1).clamp(0, len(t) - 2)
    h = step[i]
    s = ((at - t[i]).unsqueeze(-1) / h).clamp(0.0, 1.0)
    return ((1 + 2 * s) * (1 - s) ** 2 * values[i] + s * (1 - s) ** 2 * h * slope[i]
            + s * s * (3 - 2 * s) * values[i + 1] - s * s * (1 - s) * h * slope[i + 1])


def curve_through(times: Sequence[float], values: Tensor, frames: int, fps: float) -> Tensor:
    """Smooth curve [F, n] close to the keys [K, n]: :func:`monotone`, blurred (all derivatives continuous)."""
    at = torch.arange(frames, dtype=torch.float64) / fps
    return blur(monotone(times, values, at), SOFTEN * fps, loops=False)


def turns_through(times: Sequence[float], quats: Tensor, frames: int, fps: float) -> Tensor:
    """The same for rotations [K, ..., 4] -> [F, ..., 4]: the four numbers interpolated and normalised; keys less
    than 180 deg apart."""
    curve = curve_through(times, _one_sided(quats).flatten(1), frames, fps)
    return rot.quat_normalize(curve.unflatten(1, quats.shape[1:]))


def turns_between(times: Sequence[float], quats: Tensor, at: Tensor) -> Tensor:
    """As :func:`monotone`, for rotations [K, ..., 4] -> [F, ..., 4]."""
    return rot.quat_normalize(monotone(times, _one_sided(quats).flatten(1), at).unflatten(1, quats.shape[1:]))


def _one_sided(quats: Tensor) -> Tensor:
    """The same rotations, with signs such that neighbouring keys lie close together."""
    flips = (quats[1:] * quats[:-1]).sum(-1, keepdim=True)
    return torch.cat([quats[:1], quats[1:] * torch.where(flips < 0, -1.0, 1.0).cumprod(0)])


@dataclass(frozen=True)
class Step:
    """One foot (0 right, 1 left) goes from where it is to x, y (m, middle of the sole) and yaw (rad) in the world."""

    foot: int
    start: float  # s
    end: float
    x: float
    y: float
    yaw: float
    lift: float = 0.08  # m


def walk_feet(first: Sequence[tuple[float, float, float]], steps: Sequence[Step], frames: int, fps: float,
              shape: Shape) -> Feet:
    """Feet that stand flat at ``first`` (x, y, yaw; right, left) except during ``steps``, whose swings are quintic
    (C2)."""
    time = torch.arange(frames, dtype=torch.float64) / fps
    place = [torch.tensor(at, dtype=torch.float64).expand(frames, 3).clone() for at in first]
    height, pitch = torch.zeros(frames, 2, dtype=torch.float64), torch.zeros(frames, 2, dtype=torch.float64)
    for step in sorted(steps, key=lambda step: step.start):
        s = ((time - step.start) / (step.end - step.start)).clamp(0.0, 1.0)
        ease = s ** 3 * (10.0 - 15.0 * s + 6.0 * s * s)
        goal = torch.tensor([step.x, step.y, step.yaw], dtype=torch.float64)
        start = place[step.foot][-1].clone()
        place[step.foot] += ease.unsqueeze(-1) * (goal - start)
        bump = 64.0 * (s * (1.0 - s)) ** 3
        height[:, step.foot] += step.lift * bump
        pitch[:, step.foot] += SWING_PITCH * bump
    turn = torch.stack([rot.quat_mul(rot.yaw_quat(place[i][:, 2]), about_y(pitch[:, i])) for i in (0, 1)], dim=1)
    middle = torch.stack([torch.cat([place[i][:, :2], height[:, i:i + 1]], dim=-1) for i in (0, 1)], dim=1)
    pos = middle - rot.quat_rotate(turn, shape.sole)
    return Feet(raised(pos, turn, shape, fps), turn)


def about_y(angle: Tensor) -> Tensor:
    """Rotations [..., 4] about y."""
    return rot.axis_angle_to_quat(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand(*angle.shape, 3), angle)


def from_columns(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Rotation [..., 4] with the orthonormal axes x, y, z [..., 3] as columns."""
    return rot.matrix_to_quat(torch.stack([x, y, z], dim=-1))


def reach(shape: Shape, side: str, hand: Tensor, pole: Tensor) -> tuple[Tensor, Tensor]:
    """Shoulder and elbow rotations [F, 4] that bring the humanoid's hand to a point.

    Args:
        side: right, left.
        hand: [F, 3] m in the torso's frame; out of reach, the arm is all but straight towards it.
        pole: [F, 3] direction from the shoulder to the side on which the elbow is to be.

    The upper arm rests along -y (right) or +y (left); the elbow turns about z so that the forearm bends towards +x.
    """
    model = shape.character.model
    upper, lower, end = (model.body_index(f"{side}_{part}") for part in ("upper_arm", "lower_arm", "hand"))
    shoulder, to_elbow, to_hand = (torch.tensor(model.local_pos[i]) for i in (upper, lower, end))
    a, b = to_elbow.norm(), to_hand.norm()
    sign = float(to_elbow[1].sign())  # -1 right, 1 left
    line = hand - shoulder
    distance = line.norm(dim=-1, keepdim=True).clamp(float((a - b).abs()) + 0.12, float(a + b) * 0.985)
    along = rot.normalize(line)
    out = rot.normalize(pole - (pole * along).sum(-1, keepdim=True) * along)
    cosine = (a * a + distance ** 2 - b * b) / (2 * a * distance)
    bone = cosine * along + (1 - cosine ** 2).clamp_min(0.0).sqrt() * out  # direction of the upper arm
    fore = rot.normalize(distance * along - a * bone)
    bend = (bone * fore).sum(-1).clamp(-1.0, 1.0).acos()
    x = rot.normalize(fore - (fore * bone).sum(-1, keepdim=True) * bone)
    y = sign * bone
    turn = from_columns(x, y, rot.cross(x, y))
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(len(hand), 3)
    return turn, rot.axis_angle_to_quat(axis, -sign * bend)


def aim_sword(fore_turn: Tensor, blade: Tensor, low: np.ndarray, high: np.ndarray) -> Tensor:
    """Wrist rotation [F, 4] that points the hand's x axis (the blade) along ``blade`` [F, 3], within its range.

    ``fore_turn`` [F, 4] is the forearm's rotation in the frame of ``blade``; ``low``, ``high`` [3] (rad) bound the
    numbers of the exponential map.
    """
    goal = rot.quat_rotate(rot.quat_conj(fore_turn), rot.normalize(blade))
    ahead = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).expand_as(goal)
    exp_map = rot.quat_to_exp_map(shortest_turn(ahead, goal))
    bound = torch.where(exp_map < 0, -torch.tensor(low), torch.tensor(high)) * 0.97
    excess = (exp_map.abs() / bound).amax(-1, keepdim=True).clamp_min(1.0)
    return rot.exp_map_to_quat(exp_map / excess)


def yaw_of(quat: Tensor) -> Tensor:
    """Turn about the vertical [...] (rad)."""
    return rot.quat_twist_angle(quat, UP)
