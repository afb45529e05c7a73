"""How well the character follows its reference: the reward (Peng et al. 2018, equation 6 ff.) and the measures."""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.envs.metrics import StepMean
from mimickit.envs.scene import Scene
from mimickit.envs.terms import CharState
from mimickit.util.rotations import heading, in_heading, quat_diff_angle, quat_mul, yaw_quat

TERMS = ("pose", "vel", "root_pose", "root_vel", "key_pos")
MEASURES = (
    "root_pos_err", "root_rot_err", "body_pos_err", "body_rot_err", "dof_vel_err", "root_vel_err", "root_ang_vel_err",
)


def reward_errors(
    char: CharState, ref: CharState, key_ids: Tensor, joint_w: Tensor, dof_w: Tensor,
    track_root: bool, root_height_obs: bool, track_axes: bool | None = None,
) -> Tensor:
    """The five squared errors [N, 5] of the reward, in the order of ``TERMS``.

    pose: joint angles (rad^2, weighted joint_w [J]); vel: dof velocities (rad^2/s^2, weighted dof_w [D]); root_pose:
    position (m^2) + 0.1 angle (rad^2); root_vel: velocity + 0.1 angular velocity; key_pos: key bodies relative to the
    root (m^2). Without ``track_root`` the horizontal root position does not count. Without ``track_axes`` (the same
    as ``track_root`` if not given) everything of the root is compared in each character's own heading frame. Root
    height counts only with ``root_height_obs``. Without key
    bodies the last error is 0, so its term is constant.
    """
    (rotations, vectors), (ref_rotations, ref_vectors) = (
        _own_frame(c, key_ids, track_root if track_axes is None else track_axes) for c in (char, ref))
    angles = quat_diff_angle(rotations, ref_rotations).square()
    pose = (joint_w * angles[..., 1:]).sum(dim=-1)
    vel = (dof_w * (ref.dof_vel - char.dof_vel).square()).sum(dim=-1)

    position = (ref.root_pos - char.root_pos).square()
    across, height = position[..., :2].sum(dim=-1), position[..., 2]
    root_pose = 0.1 * angles[..., 0]
    if track_root:
        root_pose = root_pose + across
    if root_height_obs:
        root_pose = root_pose + height

    distances = (ref_vectors - vectors).square().sum(dim=-1)
    root_vel = distances[..., 0] + 0.1 * distances[..., 1]
    key_pos = distances[..., 2:].sum(dim=-1)
    return torch.stack([pose, vel, root_pose, root_vel, key_pos], dim=-1)


def tracking_reward(errors: Tensor, weights: Tensor, scales: Tensor) -> Tensor:
    """Reward [N] of :func:`reward_errors` [N, 5]: the sum of weight * exp(-scale * error); weights and scales [5]."""
    return (weights * torch.exp(-scales * errors)).sum(dim=-1)


def _own_frame(char: CharState, key_ids: Tensor, world_axes: bool) -> tuple[Tensor, Tensor]:
    """Rotations [N, 1 + J, 4] of root and joints; vectors [N, 2 + K, 3]: root velocity, angular velocity, key bodies
    from the root. Those of the root in world axes or in the own heading frame."""
    key_pos = char.body_pos.index_select(-2, key_ids) - char.root_pos.unsqueeze(-2)
    vectors = torch.cat([char.root_vel.unsqueeze(-2), char.root_ang_vel.unsqueeze(-2), key_pos], dim=-2)
    root_rot = char.root_rot
    if not world_axes:
        angle = heading(root_rot)
        root_rot, vectors = quat_mul(yaw_quat(-angle), root_rot), in_heading(vectors, angle.unsqueeze(-1))
    return torch.cat([root_rot.unsqueeze(-2), char.joint_rot], dim=-2), vectors


def tracking_errors(char: CharState, ref: CharState) -> Tensor:
    """The measures [N, 7] in the order of ``MEASURES``, in world axes.

    Root position (m) and rotation (rad); means over bodies of position relative to the root (m) and of rotation (rad);
    means of absolute component differences of dof velocity (rad/s), root velocity (m/s), angular velocity (rad/s).
    """
    root_offset = char.root_pos - ref.root_pos
    body_offset = char.body_pos - ref.body_pos - root_offset.unsqueeze(-2)
    body_angle = quat_diff_angle(char.body_rot, ref.body_rot)
    return torch.stack([
        torch.linalg.vector_norm(root_offset, dim=-1),
        body_angle[..., 0],  # body 0 is the root
        torch.linalg.vector_norm(body_offset, dim=-1).mean(dim=-1),
        body_angle.mean(dim=-1),
        (char.dof_vel - ref.dof_vel).abs().mean(dim=-1),
        (char.root_vel - ref.root_vel).abs().mean(dim=-1),
        (char.root_ang_vel - ref.root_ang_vel).abs().mean(dim=-1),
    ], dim=-1)


def position_error(char: CharState, ref: CharState) -> Tensor:
    """``pos_err`` [N] (m): (sum over joints of the distance between character and reference, each relative to its
    root, in world axes, + distance of the roots) / (joints + 1) (Peng 2025, "MimicKit", table 1)."""
    root_offset = char.root_pos - ref.root_pos
    body_offset = char.body_pos - ref.body_pos - root_offset.unsqueeze(-2)
    offsets = torch.cat([root_offset.unsqueeze(-2), body_offset[..., 1:, :]], dim=-2)
    return torch.linalg.vector_norm(offsets, dim=-1).mean(dim=-1)


def tracking_metric(scene: Scene) -> StepMean:
    """Mean tracking errors over all steps of a test."""
    return StepMean(MEASURES, lambda now: tracking_errors(now.char, now.ref.now), scene)
