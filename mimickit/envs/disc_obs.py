"""What a discriminator sees: windows of recent states, of the character and of the clips.

A window has ``S`` frames, oldest first, one control step apart. ``J`` joints, ``K`` key bodies, ``B`` bodies, ``D``
dofs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.anim.motion_lib import MotionLib
from mimickit.envs.char_obs import tan_norms
from mimickit.envs.parts import CharState, Part, Reference, Snapshot, overwrite, select
from mimickit.envs.ref_motion import clip_state
from mimickit.util.rotations import heading, in_heading


class Frames(NamedTuple):
    """States over time; any leading shape, the last of it is the window's ``S``."""

    root_pos: Tensor  # [..., S, 3] m
    root_rot: Tensor  # [..., S, 4]
    root_vel: Tensor  # [..., S, 3] m/s
    root_ang_vel: Tensor  # [..., S, 3] rad/s
    dof_vel: Tensor  # [..., S, D] rad/s
    joint_rot: Tensor  # [..., S, J, 4]
    body_pos: Tensor  # [..., S, B, 3] m


def frames_of(state: CharState) -> Frames:
    """The same states without what no discriminator looks at."""
    return Frames(
        state.root_pos, state.root_rot, state.root_vel, state.root_ang_vel, state.dof_vel, state.joint_rot,
        state.body_pos,
    )


# --- observations -----------------------------------------------------------------------------------------------------


def prior_observation(
    frames: Frames, key_ids: Tensor, global_obs: bool, root_height_obs: bool, dof_vel_obs: bool,
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


def tracking_observation(frames: Frames, global_obs: bool) -> Tensor:
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
    """Windows of clips, ending at any time.

    Args:
        num_steps: S.
        dt: s, between frames.
    """

    def __init__(self, motions: MotionLib, character: Character, num_steps: int, dt: float) -> None:
        self.motions = motions
        self.character = character
        self.num_steps = num_steps
        self._offsets = torch.tensor([(i + 1 - num_steps) * dt for i in range(num_steps)], device=motions.device)

    def ending(self, ids: Tensor, times: Tensor) -> Frames:
        """Windows [N, S, ...] of clip ids [N] ending at times [N] (s). Before 0 a clip repeats, or holds its start."""
        window = times.unsqueeze(-1) + self._offsets
        return frames_of(clip_state(self.motions, self.character, ids.unsqueeze(-1).expand_as(window), window))

    def sample(self, count: int) -> Frames:
        """Windows [count, S, ...] drawn independently: clips by weight, end times uniform within the clip."""
        ids = self.motions.sample_motions(count)
        return self.ending(ids, self.motions.sample_times(ids))


class History(Part):
    """The last ``S`` states of every character, oldest first; at the start of an episode those of its clip.

    Args:
        still: [N] bool, episodes that began at rest in the default pose: their past is that pose.
    """

    def __init__(self, windows: ClipWindows, num_envs: int, still: Tensor | None = None) -> None:
        character = windows.character
        self._windows = windows
        self._still = still
        self._rows = (character.num_joints, character.num_bodies)
        self._widths = (3, 4, 3, 3, character.num_dofs, 4 * character.num_joints, 3 * character.num_bodies)
        self._data = torch.zeros(num_envs, windows.num_steps, sum(self._widths), device=character.device)

    @property
    def num_steps(self) -> int:
        return self._windows.num_steps

    def frames(self) -> Frames:
        """The windows [N, S, ...]; valid until the next step."""
        *flat, joint_rot, body_pos = self._data.split(self._widths, dim=-1)
        joints, bodies = self._rows
        return Frames(*flat, joint_rot.unflatten(-1, (joints, 4)), body_pos.unflatten(-1, (bodies, 3)))

    def update(self, now: Snapshot) -> None:
        newest = _packed(frames_of(now.char)).unsqueeze(1)
        self._data.copy_(torch.cat([self._data[:, 1:], newest], dim=1))

    def reset(self, mask: Tensor, start: Snapshot) -> None:
        past = _packed(frames_of(start.ref.window))
        if self._still is not None:
            past = select(self._still, _packed(frames_of(start.char)).unsqueeze(1), past)
        overwrite(mask, past, self._data)

    def buffers(self) -> dict[str, Tensor]:
        return {"frames": self._data}

    def describe(self) -> str:
        return f"history of {self.num_steps} states"


def _packed(frames: Frames) -> Tensor:
    """Everything of a frame in one row, [..., F]."""
    *flat, joint_rot, body_pos = frames
    return torch.cat([*flat, joint_rot.flatten(-2), body_pos.flatten(-2)], dim=-1)


# --- parts ------------------------------------------------------------------------------------------------------------


class PriorObs(Part):
    """Info for AMP and ASE: ``disc_obs``, what the characters did, and ``disc_demo``, as many windows of the clips.

    Demonstrations are drawn anew in every step: clips by weight, end times uniform. Where episodes begin is drawn just
    so, for all environments in every step, so those windows serve (looking them up is the larger part of the cost);
    only where episodes always begin at a clip's beginning others are drawn.

    Args:
        rand_reset: episodes begin anywhere in a clip.
    """

    def __init__(
        self, history: History, windows: ClipWindows, rand_reset: bool, key_ids: Tensor, global_obs: bool,
        root_height_obs: bool, dof_vel_obs: bool, world_anchor: bool,
    ) -> None:
        self._history = history
        self._windows = windows
        self._rand_reset = rand_reset
        self._options = (key_ids, global_obs, root_height_obs, dof_vel_obs, world_anchor)
        self._obs = prior_observation(history.frames(), *self._options)
        self._demo = torch.zeros_like(self._obs)

    def look(self, ref: Reference, fresh: Reference) -> None:
        demo = frames_of(fresh.window) if self._rand_reset else self._windows.sample(len(self._demo))
        self._demo.copy_(prior_observation(demo, *self._options))

    def update(self, now: Snapshot) -> None:
        self._obs.copy_(prior_observation(self._history.frames(), *self._options))

    def discard(self, valid: Tensor) -> None:
        self._obs.masked_fill_(~valid.unsqueeze(-1), 0.0)

    def info(self) -> dict[str, Tensor]:
        return {"disc_obs": self._obs, "disc_demo": self._demo}

    def describe(self) -> str:
        return f"discriminator observation {self._obs.shape[1]} ({self._history.num_steps} frames) and demonstrations"


class TrackingObs(Part):
    """Info for ADD: ``disc_obs`` of the characters, and ``disc_obs_demo`` of their references at the same instant."""

    def __init__(self, history: History, global_obs: bool) -> None:
        self._history = history
        self._global_obs = global_obs
        self._obs = tracking_observation(history.frames(), global_obs)
        self._reference = torch.zeros_like(self._obs)

    def look(self, ref: Reference, fresh: Reference) -> None:
        self._reference.copy_(tracking_observation(frames_of(ref.window), self._global_obs))

    def update(self, now: Snapshot) -> None:
        self._obs.copy_(tracking_observation(self._history.frames(), self._global_obs))

    def discard(self, valid: Tensor) -> None:
        self._obs.masked_fill_(~valid.unsqueeze(-1), 0.0)

    def info(self) -> dict[str, Tensor]:
        return {"disc_obs": self._obs, "disc_obs_demo": self._reference}

    def describe(self) -> str:
        return f"discriminator observation {self._obs.shape[1]} of character and reference"
