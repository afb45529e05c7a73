"""Start states that a motion prior generates ("generative state initialization"): from windows as the prior sees them
to states of the character.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.envs.ref_motion import RefMotion
from mimickit.envs.terms import CharState, Reference, RefState, select
from mimickit.util.rotations import quat_diff, quat_to_exp_map, tan_norm_to_quat


def decode_windows(windows: Tensor, character: Character, dt: float) -> CharState:
    """States [n, S, ...] of windows [n, S, C] of :func:`~mimickit.envs.disc_obs.prior_observation`.

    Root position and the rotations of root and joints are taken from the window, root height observed; hinges turn
    about their axes only. Velocities are forward differences over dt (s), the last frame's those of the one before;
    body poses by forward kinematics. In the axes of the window: the last frame's root stands at x = y = 0.
    """
    joints = windows[..., 9:9 + 6 * character.num_joints].unflatten(-1, (character.num_joints, 6))
    root_pos, root_rot = windows[..., :3], tan_norm_to_quat(windows[..., 3:9])
    joint_rot = character.dof_to_rot(character.rot_to_dof(tan_norm_to_quat(joints)))
    velocities = (
        (root_pos[:, 1:] - root_pos[:, :-1]) / dt,
        quat_to_exp_map(quat_diff(root_rot[:, :-1], root_rot[:, 1:])) / dt,
        character.dof_velocity(joint_rot[:, :-1], joint_rot[:, 1:], dt),
    )
    root_vel, root_ang_vel, dof_vel = (torch.cat([x, x[:, -1:]], dim=1) for x in velocities)
    body_pos, body_rot = character.forward_kinematics(root_pos, root_rot, joint_rot)
    return CharState(root_pos, root_rot, root_vel, root_ang_vel, joint_rot, dof_vel, body_pos, body_rot)


class GeneratedStarts(Reference):
    """Like ``clips``, but once :meth:`add` was called episodes start from generated windows: at their last frames, with
    all frames as the past. The clip goes on to be drawn and shown, from its beginning; nothing compares with it.

    Args:
        dt: s, one control step.

    Attributes:
        clips: as given.
        ids, start: as of :class:`RefMotion`.
    """

    def __init__(self, clips: RefMotion, character: Character, dt: float) -> None:
        self.ids, self.start = clips.ids, clips.start
        self.clips, self._character, self._dt = clips, character, dt
        self._states: CharState | None = None  # [K, S, ...]
        self._received = torch.zeros((), dtype=torch.int64, device=clips.start.device)

    def open(self, capacity: int, frames: int) -> None:
        """Keep the newest ``capacity`` windows of ``frames`` states. Before the first step."""
        character = self._character
        shapes = ((3,), (4,), (3,), (3,), (character.num_joints, 4), (character.num_dofs,),
                  (character.num_bodies, 3), (character.num_bodies, 4))
        device = self._received.device
        self._states = CharState(*(torch.zeros(capacity, frames, *shape, device=device) for shape in shapes))

    def add(self, windows: Tensor) -> None:
        """Put windows [n, S C] over the oldest, n at most the capacity; does not wait."""
        assert self._states is not None, "not open"
        capacity, frames = self._states.root_pos.shape[:2]
        rows = (self._received + torch.arange(len(windows), device=windows.device)) % capacity
        states = decode_windows(windows.unflatten(-1, (frames, -1)), self._character, self._dt)
        for kept, new in zip(self._states, states, strict=True):
            kept.index_copy_(0, rows, new)
        self._received += len(windows)

    def lookup(self, time: Tensor) -> tuple[RefState, RefState]:
        ref, start = self.clips.lookup(time)
        if self._states is None:
            return ref, start
        capacity = len(self._states.root_pos)
        count = self._received.clamp(max=capacity)
        row = (torch.rand_like(time) * count).long().clamp(max=capacity - 1)
        drawn = CharState(*(kept.index_select(0, row) for kept in self._states))
        some = (count > 0).expand_as(row)
        window = CharState(*(select(some, new, old) for new, old in zip(drawn, start.window, strict=True)))
        frames = CharState(*(torch.cat([select(some, new[:, -1:], old[:, :1]), old[:, 1:]], dim=1)
                             for new, old in zip(drawn, start.frames, strict=True)))
        begin = torch.where(some, 0.0, start.time)
        return ref, start._replace(frames=frames, window=window, time=begin)

    def reset(self, mask: Tensor, reset_state: RefState) -> None:
        self.clips.reset(mask, reset_state)

    def pose_of(self, env: int, time: Tensor) -> tuple[Tensor, Tensor]:
        return self.clips.pose_of(env, time)

    def buffers(self) -> dict[str, Tensor]:
        if self._states is None:
            return self.clips.buffers()
        states = {f"generated.{name}": x for name, x in self._states._asdict().items()}
        return {**self.clips.buffers(), **states, "generated.received": self._received}

    def describe(self) -> str:
        return self.clips.describe()
