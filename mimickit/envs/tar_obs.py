"""Observation of the reference: its phase, and its poses some steps ahead (Peng et al. 2018, section 5.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mimickit.anim.motion_lib import MotionLib
from mimickit.envs.char_obs import tan_norms
from mimickit.envs.parts import CharState, Part, Snapshot
from mimickit.util.rotations import heading, in_heading


def phase_observation(phase: Tensor, frequencies: Tensor) -> Tensor:
    """Phase [N] in [0, 1] as [N, 1 + 2 n]: itself, n sines, n cosines of 2 pi 2^k phase.

    Args:
        frequencies: [n] rad, 2 pi 2^k for k = 0..n-1.
    """
    angle = phase.unsqueeze(-1) * frequencies
    return torch.cat([phase.unsqueeze(-1), torch.sin(angle), torch.cos(angle)], dim=-1)


def target_observation(
    root_pos: Tensor, target: CharState, key_ids: Tensor, global_obs: bool, root_height_obs: bool
) -> Tensor:
    """Targets [N, S, ...] as [N, S * (3 or 2, + 6 + 6 J + 3 K)].

    Per target: root position relative to the anchor, its third number the absolute height (dropped without
    ``root_height_obs``); root rotation (tangent-normal); joint rotations; key bodies relative to the target's root.
    With ``global_obs`` the anchor is the position of the simulated root and axes are the world's; otherwise position
    and heading of the first target, so that nothing tells the character its own horizontal error.

    Args:
        root_pos: [N, 3] m, simulated root.
        key_ids: [K] int64, bodies that are observed.
    """
    anchor = root_pos.unsqueeze(-2) if global_obs else target.root_pos[..., :1, :]
    offset = target.root_pos - anchor
    key_pos = target.body_pos.index_select(-2, key_ids) - target.root_pos.unsqueeze(-2)
    root, joints = tan_norms(target.root_rot, target.joint_rot)
    vectors = torch.cat([offset.unsqueeze(-2), root, key_pos], dim=-2)
    if not global_obs:
        vectors = in_heading(vectors, heading(target.root_rot[..., :1, :]).unsqueeze(-1))
    vectors = vectors.flatten(-2)
    height = [target.root_pos[..., 2:]] if root_height_obs else []
    return torch.cat([vectors[..., :2], *height, vectors[..., 3:9], joints, vectors[..., 9:]], dim=-1).flatten(-2)


class PhaseObs(Part):
    """Observes how far the clip has advanced."""

    def __init__(self, motions: MotionLib, num_frequencies: int, device: torch.device) -> None:
        self._motions = motions
        self._frequencies = torch.tensor([2.0 * math.pi * 2.0**k for k in range(num_frequencies)], device=device)

    def observe(self, now: Snapshot) -> Tensor:
        return phase_observation(self._motions.phase(now.ref.ids, now.ref.time), self._frequencies)

    def describe(self) -> str:
        return f"phase observation ({len(self._frequencies)} frequencies)"


class TargetObs(Part):
    """Observes the reference ahead of time."""

    def __init__(self, key_ids: Tensor, global_obs: bool, root_height_obs: bool) -> None:
        self._key_ids = key_ids
        self._global_obs = global_obs
        self._root_height_obs = root_height_obs

    def observe(self, now: Snapshot) -> Tensor:
        return target_observation(
            now.char.root_pos, now.ref.future, self._key_ids, self._global_obs, self._root_height_obs
        )

    def describe(self) -> str:
        return f"target observation ({'world' if self._global_obs else 'first target'} axes)"
