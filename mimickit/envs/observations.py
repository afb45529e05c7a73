"""What a character observes: itself, the phase of its clip, and its reference some steps ahead.

DeepMimic's observations (Peng et al. 2018, section 5.1), rotations in tangent-normal form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.envs.terms import CharState
from mimickit.util.rotations import heading, in_heading, quat_to_tan_norm


def char_observation(
    char: CharState, key_ids: Tensor, global_obs: bool, root_height_obs: bool, root_vel_obs: bool = True
) -> Tensor:
    """Observation [N, h + 12 + 6 J + D + 3 K] of characters [N, ...]; 3 less without ``root_vel_obs``.

    Blocks: root height (h = 1 if ``root_height_obs``), root rotation 6 (tangent-normal), root velocity 3, root angular
    velocity 3, joint rotations 6 J (local), dof velocities D, key bodies relative to the root 3 K.

    Args:
        key_ids: [K] int64, bodies that are observed.
        global_obs: world axes; otherwise the frame of the character's heading. Joints are always local.
    """
    key_pos = char.body_pos.index_select(-2, key_ids) - char.root_pos.unsqueeze(-2)
    root, joints = tan_norms(char.root_rot, char.joint_rot)
    vectors = torch.cat([root, char.root_vel.unsqueeze(-2), char.root_ang_vel.unsqueeze(-2), key_pos], dim=-2)
    if not global_obs:
        vectors = in_heading(vectors, heading(char.root_rot).unsqueeze(-1))
    vectors = vectors.flatten(-2)
    blocks = [char.root_pos[..., 2:]] if root_height_obs else []
    root_blocks = [vectors[..., :12]] if root_vel_obs else [vectors[..., :6], vectors[..., 9:12]]
    blocks += [*root_blocks, joints, char.dof_vel, vectors[..., 12:]]
    return torch.cat(blocks, dim=-1)


def tan_norms(root_rot: Tensor, joint_rot: Tensor) -> tuple[Tensor, Tensor]:
    """Tangent and normal [..., 2, 3] of a root [..., 4]; those of joints [..., J, 4] in one row [..., 6 J]."""
    rows = quat_to_tan_norm(torch.cat([root_rot.unsqueeze(-2), joint_rot], dim=-2)).flatten(-2)
    return rows[..., :6].unflatten(-1, (2, 3)), rows[..., 6:]


def phase_observation(phase: Tensor, frequencies: Tensor) -> Tensor:
    """Phase [N] in [0, 1] as [N, 1 + 2 n]: itself, n sines, n cosines of 2 pi 2^k phase.

    Args:
        frequencies: [n] rad, 2 pi 2^k for k = 0..n-1.
    """
    angle = phase.unsqueeze(-1) * frequencies
    return torch.cat([phase.unsqueeze(-1), torch.sin(angle), torch.cos(angle)], dim=-1)


def target_observation(
    root_pos: Tensor, target: CharState, key_ids: Tensor, global_obs: bool, root_height_obs: bool,
    root_pos_obs: bool = True,
) -> Tensor:
    """Targets [N, S, ...] as [N, S * (3 or 2, + 6 + 6 J + 3 K)].

    Per target: root position relative to the anchor, its third number the absolute height (dropped without
    ``root_height_obs``); root rotation (tangent-normal); joint rotations; key bodies relative to the target's root.
    With ``global_obs`` the anchor is the position of the simulated root and axes are the world's; otherwise position
    and heading of the first target, so that the character does not observe its own horizontal error. Without
    ``root_pos_obs`` the anchor is always the first target's position.

    Args:
        root_pos: [N, 3] m, simulated root.
        key_ids: [K] int64, bodies that are observed.
    """
    anchor = root_pos.unsqueeze(-2) if global_obs and root_pos_obs else target.root_pos[..., :1, :]
    offset = target.root_pos - anchor
    key_pos = target.body_pos.index_select(-2, key_ids) - target.root_pos.unsqueeze(-2)
    root, joints = tan_norms(target.root_rot, target.joint_rot)
    vectors = torch.cat([offset.unsqueeze(-2), root, key_pos], dim=-2)
    if not global_obs:
        vectors = in_heading(vectors, heading(target.root_rot[..., :1, :]).unsqueeze(-1))
    vectors = vectors.flatten(-2)
    height = [target.root_pos[..., 2:]] if root_height_obs else []
    return torch.cat([vectors[..., :2], *height, vectors[..., 3:9], joints, vectors[..., 9:]], dim=-1).flatten(-2)
