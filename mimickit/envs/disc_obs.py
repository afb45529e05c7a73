"""What a discriminator sees: windows of recent states, of the character and of the clips.

A window has ``S`` frames, oldest first, one control step apart. ``J`` joints, ``K`` key bodies, ``B`` bodies, ``D``
dofs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.envs.observations import tan_norms
from mimickit.envs.ref_motion import clip_state
from mimickit.envs.scene import Scene
from mimickit.envs.terms import CharState, Memory, StepState, overwrite, select
from mimickit.util.rotations import heading, in_heading

# --- observations -----------------------------------------------------------------------------------------------------


def prior_observation(
    frames: CharState, key_ids: Tensor, global_obs: bool, root_height_obs: bool, dof_vel_obs: bool,
    world_anchor: bool = False,
) -> Tensor:
    """AMP's observation [..., S * (3 or 2, + 12 + 6 J + 3 K, + D)] of windows [..., S, ...] (Peng et al. 2021, 5.3).

    Per frame: root position relative to the newest frame's root, its third number the absolute height (dropped without
    ``root_height_obs``); root rotation (tangent-normal); joint rotations; key bodies relative to this frame's root;
    root velocity and angular velocity; with ``dof_vel_obs`` dof velocities.

    Args:
        key_ids: [K] int64, bodies that are observed.
        global_obs: world axes; otherwise everything but joints and height is in the newest frame's heading axes.
        world_anchor: root positions are relative to the world's origin instead.
    """
    offset = frames.root_pos if world_anchor else frames.root_pos - frames.root_pos[..., -1:, :]
    key_pos = frames.body_pos.index_select(-2, key_ids) - frames.root_pos.unsqueeze(-2)
    root, joints = tan_norms(frames.root_rot, frames.joint_rot)
    velocities = (frames.root_vel.unsqueeze(-2), frames.root_ang_vel.unsqueeze(-2))
    vectors = torch.cat([offset.unsqueeze(-2), root, key_pos, *velocities], dim=-2)
    if not global_obs:
        vectors = in_heading(vectors, heading(frames.root_rot[..., -1:, :]).unsqueeze(-1))
    vectors = vectors.flatten(-2)
    blocks = [vectors[..., :2]]
    if root_height_obs:
        blocks.append(frames.root_pos[..., 2:])
    blocks += [vectors[..., 3:9], joints, vectors[..., 9:]]
    if dof_vel_obs:
        blocks.append(frames.dof_vel)
    return torch.cat(blocks, dim=-1).flatten(-2)


def tracking_observation(frames: CharState, global_obs: bool) -> Tensor:
    """ADD's observation [..., S * (15 + 6 J + 3 B + D)] of windows [..., S, ...] (Zhang et al. 2025).

    Per frame, without ``global_obs`` in that frame's own heading axes: root position (x and y read zero then; z is
    absolute); root rotation; joint rotations; all bodies relative to the root; root velocity and angular velocity; dof
    velocities.
    """
    root_pos = frames.root_pos
    body_pos = frames.body_pos - root_pos.unsqueeze(-2)
    root, joints = tan_norms(frames.root_rot, frames.joint_rot)
    velocities = (frames.root_vel.unsqueeze(-2), frames.root_ang_vel.unsqueeze(-2))
    vectors = torch.cat([root, body_pos, *velocities], dim=-2)
    if not global_obs:
        vectors = in_heading(vectors, heading(frames.root_rot).unsqueeze(-1))
        root_pos = torch.cat([torch.zeros_like(root_pos[..., :2]), root_pos[..., 2:]], dim=-1)
    vectors = vectors.flatten(-2)
    return torch.cat([root_pos, vectors[..., :6], joints, vectors[..., 6:], frames.dof_vel], dim=-1).flatten(-2)


# --- windows ----------------------------------------------------------------------------------------------------------


class ClipWindows:
    """Windows of the scene's clips, ending at any time; frames are one control step apart.

    Args:
        num_steps: S.
    """

    def __init__(self, scene: Scene, num_steps: int) -> None:
        self.motions, self.num_steps = scene.motions, num_steps
        self._offsets = torch.tensor([(i + 1 - num_steps) * scene.dt for i in range(num_steps)], device=scene.device)

    def ending(self, ids: Tensor, times: Tensor) -> CharState:
        """Windows [N, S, ...] of clip ids [N] ending at times [N] (s). Before 0 a clip repeats, or holds its start."""
        window = times.unsqueeze(-1) + self._offsets
        return clip_state(self.motions, ids.unsqueeze(-1).expand_as(window), window)

    def sample(self, count: int) -> CharState:
        """Windows [count, S, ...] drawn independently: clips by weight, end times uniform within the clip."""
        ids = self.motions.sample_motions(count)
        return self.ending(ids, self.motions.sample_times(ids))


class History(Memory):
    """The last ``S`` states of every character, oldest first; at the start of an episode those of its clip.

    Attributes:
        still: [N] bool, episodes that started at rest: their past is the state they started from.
    """

    still: Tensor | None = None

    def __init__(self, windows: ClipWindows, num_envs: int) -> None:
        character = windows.motions.character
        self.windows = windows
        self._joints, self._bodies = character.num_joints, character.num_bodies
        self._widths = (3, 4, 3, 3, 4 * self._joints, character.num_dofs, 3 * self._bodies)
        self._data = torch.zeros(num_envs, windows.num_steps, sum(self._widths), device=character.device)

    @property
    def num_steps(self) -> int:
        """S."""
        return self.windows.num_steps

    def frames(self) -> CharState:
        """The windows [N, S, ...]; valid until the next step."""
        *root, joint_rot, dof_vel, body_pos = self._data.split(self._widths, dim=-1)
        joint_rot, body_pos = joint_rot.unflatten(-1, (self._joints, 4)), body_pos.unflatten(-1, (self._bodies, 3))
        return CharState(*root, joint_rot, dof_vel, body_pos)

    def update(self, now: StepState) -> None:
        newest = _packed(now.char).unsqueeze(1)
        self._data.copy_(torch.cat([self._data[:, 1:], newest], dim=1))

    def reset(self, mask: Tensor, start: StepState) -> None:
        past = _packed(start.ref.window)
        if self.still is not None:
            past = select(self.still, _packed(start.char).unsqueeze(1), past)
        overwrite(mask, past, self._data)

    def buffers(self) -> dict[str, Tensor]:
        return {"frames": self._data}


def _packed(state: CharState) -> Tensor:
    """States [..., ...] in one row each, [..., F], without body rotations."""
    *root, joint_rot, dof_vel, body_pos, _ = state
    return torch.cat([*root, joint_rot.flatten(-2), dof_vel, body_pos.flatten(-2)], dim=-1)
