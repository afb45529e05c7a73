"""The character's observation of itself (DeepMimic: Peng et al. 2018, section 5.1, in tangent-normal form)."""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.envs.parts import CharState, Part, Snapshot
from mimickit.util.rotations import heading_quat_inv, quat_mul, quat_rotate, quat_to_tan_norm


def char_observation(char: CharState, key_ids: Tensor, global_obs: bool, root_height_obs: bool) -> Tensor:
    """Observation [N, h + 12 + 6 J + D + 3 K] of characters [N, ...].

    Blocks: root height (h = 1 if ``root_height_obs``), root rotation 6 (tangent-normal), root velocity 3, root angular
    velocity 3, joint rotations 6 J (local), dof velocities D, key bodies relative to the root 3 K.

    Args:
        key_ids: [K] int64, bodies that are observed.
        global_obs: world axes; otherwise the frame of the character's heading. Joints are always local.
    """
    root_rot, root_vel, root_ang_vel = char.root_rot, char.root_vel, char.root_ang_vel
    key_pos = char.body_pos.index_select(-2, key_ids) - char.root_pos.unsqueeze(-2)
    if not global_obs:
        inverse = heading_quat_inv(root_rot)
        root_rot = quat_mul(inverse, root_rot)
        vectors = torch.stack([root_vel, root_ang_vel], dim=-2)
        vectors = quat_rotate(inverse.unsqueeze(-2), torch.cat([vectors, key_pos], dim=-2))
        root_vel, root_ang_vel, key_pos = vectors[..., 0, :], vectors[..., 1, :], vectors[..., 2:, :]
    rotations = quat_to_tan_norm(torch.cat([root_rot.unsqueeze(-2), char.joint_rot], dim=-2))
    blocks = [char.root_pos[..., 2:]] if root_height_obs else []
    blocks += [
        rotations[..., 0, :], root_vel, root_ang_vel, rotations[..., 1:, :].flatten(-2), char.dof_vel,
        key_pos.flatten(-2),
    ]
    return torch.cat(blocks, dim=-1)


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
