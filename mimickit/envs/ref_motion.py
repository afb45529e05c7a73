"""Where characters start and what they follow: clips of a motion library, or one fixed pose."""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.anim.motion import LoopMode
from mimickit.anim.motion_lib import MotionLib
from mimickit.envs.terms import CharState, Reference, RefState, overwrite, select


def clip_state(motions: MotionLib, ids: Tensor, times: Tensor) -> CharState:
    """States [..., ...] of clips ids [...] at times [...] (s), body poses by forward kinematics."""
    frame = motions.frame(ids, times)
    return CharState(*frame, *motions.character.forward_kinematics(frame.root_pos, frame.root_rot, frame.joint_rot))


class RefMotion(Reference):
    """Every environment follows a clip of its own from a start time of its own.

    An episode starts at a clip drawn by weight and, with ``rand_reset``, a time drawn uniformly within it ("reference
    state initialization", Peng et al. 2018, section 6), else at time 0. At environment time t the reference is the
    clip at start time + t. One lookup a step finds the reference now and ahead, and where episodes may start with what
    is ahead of that and what went before.

    Args:
        future_steps: future frames to look up, in control steps ahead.
        past_steps: P, how many control steps back the window of a reset state reaches.
        past_of_reference: the reference itself has such a window too.
        dt: s, one control step.

    Attributes:
        ids, start: [N] clip and start time (s) of the present episodes.
    """

    def __init__(
        self, motions: MotionLib, num_envs: int, dt: float, future_steps: tuple[int, ...], rand_reset: bool,
        past_steps: int = 0, past_of_reference: bool = False,
    ) -> None:
        device = motions.device
        self._motions = motions
        self._rand_reset = rand_reset
        past = [-step * dt for step in range(past_steps, 0, -1)]
        ahead = [0.0, *(step * dt for step in future_steps)]
        self._past = (past_steps if past_of_reference else 0, past_steps)  # of the reference, of a reset state
        offsets = [past[past_steps - steps:] + ahead for steps in self._past]
        self._counts = tuple(len(times) for times in offsets)
        # what is looked up: for each environment its reference's frames, then for each its reset state's
        each = torch.arange(num_envs)
        rows = [row.repeat_interleave(count) for row, count in zip((each, each + num_envs), self._counts)]
        self._row = torch.cat(rows).to(device)
        self._offset = torch.cat([torch.tensor(times).repeat(num_envs) for times in offsets]).to(device)
        loops = motions.loop_modes == int(LoopMode.WRAP)
        self._end = torch.where(loops, torch.inf, motions.lengths)  # [M] s, when the clip is over
        self.ids = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.start = torch.zeros(num_envs, device=device)

    def lookup(self, time: Tensor) -> tuple[RefState, RefState]:
        count = len(time)
        drawn = self._motions.sample_motions(count)
        start = self._motions.sample_times(drawn, self._rand_reset)
        ids, now = torch.cat([self.ids, drawn]), torch.cat([self.start + time, start])
        times = now.index_select(0, self._row) + self._offset
        state = clip_state(self._motions, ids.index_select(0, self._row), times)
        ended = now >= self._end.index_select(0, ids)
        split = count * self._counts[0]
        found = []
        for past, rows, half in zip(self._past, (slice(split), slice(split, None)), (slice(count), slice(count, None))):
            around = [x[rows].unflatten(0, (count, -1)) for x in state]  # [N, past + 1 + S, ...]
            found.append(RefState(
                CharState(*(x[:, past:] for x in around)), ids[half], now[half], ended[half],
                window=CharState(*(x[:, :past + 1] for x in around)),
            ))
        return tuple(found)

    @property
    def num_future(self) -> int:
        """How many frames ahead are looked up."""
        return self._counts[0] - self._past[0] - 1

    def reset(self, mask: Tensor, reset_state: RefState) -> None:
        overwrite(mask, reset_state.ids, self.ids)
        overwrite(mask, reset_state.time, self.start)

    def pose_of(self, env: int, time: Tensor) -> tuple[Tensor, Tensor]:
        one = slice(env, env + 1)
        state = clip_state(self._motions, self.ids[one], self.start[one] + time[one])
        return state.body_pos[0], state.body_rot[0]

    def buffers(self) -> dict[str, Tensor]:
        return {"ids": self.ids, "start": self.start}

    def describe(self) -> str:
        count = self._motions.num_motions
        return f"{count} clip{'s' if count > 1 else ''}, {self.num_future} future frames"


class DefaultPose(Reference):
    """Like ``clips``, but some episodes start at rest in one pose; clip, time and window remain those that were drawn.

    Args:
        pose: root position [3] (m), root rotation [4], dofs [D].
        probability: that an episode starts in the pose.

    Attributes:
        clips: as given.
        still: [N] bool, episodes that started so.
    """

    def __init__(
        self, clips: RefMotion, character: Character, pose: tuple[Tensor, Tensor, Tensor], probability: float
    ) -> None:
        self.clips = clips
        self._pose = FixedPose(character, len(clips.ids), *pose).lookup(clips.start)[0].frames
        self._probability = probability
        self._first = (torch.arange(1 + clips.num_future) == 0).to(clips.ids.device)  # [1 + S], targets stay the clip's
        self._drawn = torch.zeros_like(clips.ids, dtype=torch.bool)
        self.still = torch.zeros_like(self._drawn)

    def lookup(self, time: Tensor) -> tuple[RefState, RefState]:
        ref, start = self.clips.lookup(time)
        self._drawn.copy_(torch.rand_like(time) < self._probability)
        mask = self._drawn.unsqueeze(-1) & self._first
        frames = CharState(*(select(mask, pose, frame) for pose, frame in zip(self._pose, start.frames, strict=True)))
        return ref, start._replace(frames=frames)

    def reset(self, mask: Tensor, reset_state: RefState) -> None:
        self.clips.reset(mask, reset_state)
        overwrite(mask, self._drawn, self.still)

    def pose_of(self, env: int, time: Tensor) -> tuple[Tensor, Tensor]:
        return self.clips.pose_of(env, time)

    def buffers(self) -> dict[str, Tensor]:
        return {**self.clips.buffers(), "still": self.still}

    def describe(self) -> str:
        return f"{self.clips.describe()}, or init_pose at rest (probability {self._probability:g})"


class FixedPose(Reference):
    """Every episode starts in the same pose, at rest. It is also the reference.

    Args:
        root_pos: [3] m; root_rot: [4]; dof_pos: [D].
    """

    def __init__(
        self, character: Character, num_envs: int, root_pos: Tensor, root_rot: Tensor, dof_pos: Tensor
    ) -> None:
        joint_rot = character.dof_to_rot(dof_pos)
        body_pos, body_rot = character.forward_kinematics(root_pos, root_rot, joint_rot)
        rest = torch.zeros_like(root_pos)
        state = CharState(root_pos, root_rot, rest, rest, joint_rot, torch.zeros_like(dof_pos), body_pos, body_rot)
        self._frames = CharState(*(x.expand(num_envs, 1, *x.shape) for x in state))
        self._ids = torch.zeros(num_envs, dtype=torch.int64, device=root_pos.device)
        self._start = torch.zeros(num_envs, device=root_pos.device)
        self._never = torch.zeros(num_envs, dtype=torch.bool, device=root_pos.device)

    def lookup(self, time: Tensor) -> tuple[RefState, RefState]:
        pose = RefState(self._frames, self._ids, time, self._never)
        return pose, pose._replace(time=self._start)

    def describe(self) -> str:
        return "starts from init_pose"
