"""The character's observation of itself (DeepMimic: Peng et al. 2018, section 5.1, in tangent-normal form)."""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.envs.parts import CharState, Part, Snapshot
from mimickit.util.rotations import heading, in_heading, quat_to_tan_norm


def char_observation(char: CharState, key_ids: Tensor, global_obs: bool, root_height_obs: bool) -> Tensor:
    """Observation [N, h + 12 + 6 J + D + 3 K] of characters [N, ...].

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
    blocks += [vectors[..., :12], joints, char.dof_vel, vectors[..., 12:]]
    return torch.cat(blocks, dim=-1)


def tan_norms(root_rot: Tensor, joint_rot: Tensor) -> tuple[Tensor, Tensor]:
    """Tangent and normal [..., 2, 3] of a root [..., 4]; those of joints [..., J, 4] in one row [..., 6 J]."""
    rows = quat_to_tan_norm(torch.cat([root_rot.unsqueeze(-2), joint_rot], dim=-2)).flatten(-2)
    return rows[..., :6].unflatten(-1, (2, 3)), rows[..., 6:]


class CharObs(Part):
    """Observes the simulated character."""

    def __init__(self, key_ids: Tensor, global_obs: bool, root_height_obs: bool) -> None:
        self._key_ids = key_ids
        self._global_obs = global_obs
        self._root_height_obs = root_height_obs

    def observe(self, now: Snapshot) -> Tensor:
        return char_observation(now.char, self._key_ids, self._global_obs, self._root_height_obs)

    def describe(self) -> str:
        axes = "world" if self._global_obs else "heading"
        return f"character observation ({axes} axes, {len(self._key_ids)} key bodies)"
