"""All clips of a run on the device, and the reference pose of any of them at any time, for all environments at once.

Frames of all clips are concatenated into one table; a lookup gathers a frame together with the pose that follows it,
and blends the poses. Lookups allocate by fixed shape only and can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.anim.motion import LoopMode, MotionClip, load_motion
from mimickit.config import Config, build, load_yaml
from mimickit.util import rotations as rot
from mimickit.util.assets import locate
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.names import missing_file


class DatasetEntry(Config):
    file: str = Field(description="path of a clip")
    weight: float = Field(1.0, ge=0, description="relative probability of being drawn")


class Dataset(Config):
    """A ``.yaml`` dataset file: clips with weights."""

    motions: list[DatasetEntry] = Field(min_length=1)


class MotionFrame(NamedTuple):
    """Reference state; leading shape as the lookup's. Velocities are those of body origins, world axes.

    Dof positions, where needed, are ``character.rot_to_dof(frame.joint_rot)``.
    """

    root_pos: Tensor  # [..., 3] m
    root_rot: Tensor  # [..., 4]
    root_vel: Tensor  # [..., 3] m/s
    root_ang_vel: Tensor  # [..., 3] rad/s
    joint_rot: Tensor  # [..., J, 4] relative to rest
    dof_vel: Tensor  # [..., D] rad/s, child's frame


def list_motions(motion_file: str | Path) -> tuple[list[Path], list[float]]:
    """Clips and weights that a ``motion_file`` stands for: a ``.yaml`` dataset, or one clip of weight 1.

    Raises:
        AssetMissingError: the dataset file does not exist. (Clips are not looked for.)
        UserError: the dataset file is not valid, or all its weights are 0.
    """
    path = Path(motion_file)
    if path.suffix not in (".yaml", ".yml"):
        return [path], [1.0]
    entries = build(Dataset, load_yaml(path), str(path)).motions
    weights = [entry.weight for entry in entries]
    if sum(weights) <= 0:
        raise UserError(f"{path}: all weights are 0; at least one must be positive")
    return [locate(entry.file) for entry in entries], weights


def missing_motions(motion_file: str | Path) -> list[Path]:
    """The clips of a ``motion_file`` that do not exist (errors as :func:`list_motions`)."""
    return [path for path in list_motions(motion_file)[0] if not os.path.exists(path)]


def load_motions(motion_file: str | Path, character: Character) -> tuple[list[MotionClip], list[float]]:
    """Read and check all clips of a ``motion_file``; returns clips and weights.

    Raises:
        AssetMissingError: naming every clip that does not exist.
        UserError: one message with every clip that is not readable or does not fit the character.
    """
    paths, weights = list_motions(motion_file)
    missing = [missing_file(path) for path in paths if not os.path.exists(path)]
    if missing:
        raise AssetMissingError(f"{motion_file}: {len(missing)} of {len(paths)} motion files not found: "
                                f"{', '.join(missing)} (data/motions/README.md says where clips come from)")
    clips, problems = [], []
    for path in paths:
        try:
            clips.append(load_motion(path, character.model))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return clips, weights


class MotionLib:
    """``M`` clips, ``T`` frames in all, for one character.

    Time runs from 0 to a clip's length L. Beyond, a WRAP clip repeats, its root carried on horizontally by the step
    from first to last frame for every period (also for negative times); a CLAMP clip holds its first or last pose.

    Args:
        motion_file: a clip (``.pkl``, ``.npz``) or a ``.yaml`` dataset.
        character: gives joint layout and device.
        hold_still: a CLAMP clip has zero velocities outside [0, L]. False keeps those of its end frames.
        accumulate_yaw: a WRAP clip that ends in another heading than it began continues from there: every period is
            also turned by the difference. False repeats it in its own heading.

    Attributes:
        num_motions: M.
        lengths: [M] s. loop_modes: [M] int64, :class:`LoopMode`. weights: [M], sum 1.
        files: M paths. num_frames: [M] int64.

    Raises:
        as :func:`load_motions`.
    """

    def __init__(self, motion_file: str | Path, character: Character, *, hold_still: bool = True,
                 accumulate_yaw: bool = False):
        clips, weights = load_motions(motion_file, character)
        self.files = tuple(list_motions(motion_file)[0])
        self.character = character
        self.device = character.device
        self.hold_still, self.accumulate_yaw = hold_still, accumulate_yaw
        self.num_motions = len(clips)

        def tensor(values, dtype=torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(self.device)

        counts = [clip.num_frames for clip in clips]
        self.lengths = tensor([clip.length for clip in clips])
        self.loop_modes = tensor([int(clip.loop_mode) for clip in clips], torch.int64)
        self.num_frames = tensor(counts, torch.int64)
        cumulative = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        self.weights = tensor([w / sum(weights) for w in weights])
        self._cdf = (cumulative / cumulative[-1]).float().to(self.device)
        self._first = tensor([sum(counts[:i]) for i in range(len(counts))], torch.int64)
        tables = [frame_tables(clip, character.model) for clip in clips]
        self._frames = _overlapping_rows(tables, self.device)
        self._widths = (3, 4 * (1 + character.num_joints), 6 + character.num_dofs)
        strides = [stride(poses, clip, accumulate_yaw) for clip, (poses, _) in zip(clips, tables)]
        self._facts = tensor([_facts(clip) + step.tolist() for clip, step in zip(clips, strides)])  # [M, 5 + 6]

    def sample_motions(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Clip ids [count] int64, drawn with replacement by weight."""
        draw = torch.rand(count, device=self.device, generator=generator)
        return torch.searchsorted(self._cdf, draw, right=True)

    def sample_times(self, ids: Tensor, rand_reset: bool = True, generator: torch.Generator | None = None) -> Tensor:
        """Start times [...] s for clip ids [...]: uniform in [0, L), or 0 if not ``rand_reset``."""
        if not rand_reset:
            return torch.zeros(ids.shape, device=self.device)
        return torch.rand(ids.shape, device=self.device, generator=generator) * self._take(self.lengths, ids)

    def phase(self, ids: Tensor, times: Tensor) -> Tensor:
        """Phase [...] in [0, 1] of clip ids [...] (int64) at times [...] (s). 0 for clips of one frame."""
        return self._phase(self._take(self._facts, ids), times)[0]

    def frame(self, ids: Tensor, times: Tensor) -> MotionFrame:
        """Reference state of clip ids [...] (int64) at times [...] (s).

        Root position and rotations are interpolated between the two frames around the time; velocities are those
        of the frame before it (forward differences).
        """
        ids, times = torch.broadcast_tensors(ids, times)
        facts = self._take(self._facts, ids)
        phase, period = self._phase(facts, times)
        position = phase * facts[..., 1]
        row = self._take(self._first, ids) + position.long()
        blend = torch.frac(position).unsqueeze(-1)

        pos0, rot0, velocity, pos1, rot1 = self._take(self._frames, row).split((*self._widths, *self._widths[:2]), -1)
        if self.hold_still:
            moves = (times >= facts[..., 3]) & (times <= facts[..., 4])
            velocity = velocity * moves.unsqueeze(-1)
        root_pos = torch.lerp(pos0, pos1, blend)
        turns = rot.slerp(rot0.unflatten(-1, (-1, 4)), rot1.unflatten(-1, (-1, 4)), blend)
        root_rot, joint_rot = turns[..., 0, :], turns[..., 1:, :]
        root_vel, root_ang_vel, dof_vel = velocity[..., :3], velocity[..., 3:6], velocity[..., 6:]

        drift, yaw, pivot = facts[..., 5:8], facts[..., 8], facts[..., 9:]
        if self.accumulate_yaw:
            turn = rot.yaw_quat(yaw * period)
            pivot = torch.nn.functional.pad(pivot, (0, 1))
            root_pos = pivot + rot.quat_rotate(turn, root_pos - pivot)
            root_rot = rot.quat_mul(turn, root_rot)
            root_vel, root_ang_vel = rot.quat_rotate(turn, root_vel), rot.quat_rotate(turn, root_ang_vel)
        root_pos = torch.addcmul(root_pos, drift, period.unsqueeze(-1))
        return MotionFrame(root_pos, root_rot, root_vel, root_ang_vel, joint_rot, dof_vel)

    @staticmethod
    def _phase(facts: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Phase [...] and whole periods passed [...] (0 for CLAMP), given the clips' :func:`_facts` [..., 5 + 6]."""
        cycles = times / facts[..., 0]
        period = torch.floor(cycles) * facts[..., 2]
        return (cycles - period).clamp(0.0, 1.0), period

    @staticmethod
    def _take(table: Tensor, index: Tensor) -> Tensor:
        """Rows [..., *] of table [n, *] at index [...]."""
        return table.index_select(0, index.reshape(-1)).view(*index.shape, *table.shape[1:])


def _facts(clip: MotionClip) -> list[float]:
    """What a lookup needs to know of a clip: length (s; infinite for one frame, so that its phase is 0), index of the
    last frame, whether it repeats (0 or 1), and from when until when it moves (s)."""
    wraps = clip.loop_mode is LoopMode.WRAP
    if clip.length == 0.0:
        return [math.inf, 0.0, float(wraps), math.inf, -math.inf]
    moves = (-math.inf, math.inf) if wraps else (0.0, clip.length)
    return [clip.length, clip.num_frames - 1.0, float(wraps), *moves]


def _overlapping_rows(tables: list[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """Poses and velocities of all clips as a table [T, P + V + P] float32 (P, V: numbers of a pose, a velocity).

    A row is a frame's pose, its velocity and the next row's pose; rows overlap in memory, so nothing is stored twice.
    What follows a clip's last frame belongs to no motion, but is only ever blended with weight 0.
    """
    rows = torch.cat([torch.cat(table, dim=-1) for table in tables])
    rows = torch.cat([rows, rows[-1:]]).float().to(device)
    (count, width), pose = rows.shape, tables[0][0].shape[1]
    return rows.as_strided((count - 1, width + pose), (width, 1))


def frame_tables(clip: MotionClip, model) -> tuple[Tensor, Tensor]:
    """Poses [F, 3 + 4 (1 + J)] and velocities [F, 6 + D] of a clip's frames, float64 on the host."""
    character = Character(model, dtype=torch.float64)
    frames = torch.from_numpy(clip.frames).double()
    root_pos, root_rot = frames[:, :3], rot.exp_map_to_quat(frames[:, 3:6])
    joint_rot = rot.quat_pos(character.dof_to_rot(frames[:, 6:]))
    velocities = torch.zeros(len(frames), 6 + character.num_dofs, dtype=torch.float64)
    if len(frames) > 1:
        velocities[:-1] = torch.cat([
            torch.diff(root_pos, dim=0) * clip.fps,
            rot.quat_to_exp_map(rot.quat_diff(root_rot[:-1], root_rot[1:])) * clip.fps,
            character.dof_velocity(joint_rot[:-1], joint_rot[1:], 1.0 / clip.fps),
        ], dim=-1)
        velocities[-1] = velocities[-2]
    return torch.cat([root_pos, root_rot, joint_rot.flatten(1)], dim=-1), velocities


def stride(poses: Tensor, clip: MotionClip, accumulate_yaw: bool) -> Tensor:
    """What one period of a clip adds: drift [3], yaw [1] (rad), pivot [2] of that turn; zeros for CLAMP.

    One period maps a horizontal point x to R (x - first) + last, R turning by the yaw. That is a rotation about a
    pivot, or, when the yaw vanishes, a drift by last - first; so k periods are k yaws about the pivot, or k drifts.
    """
    step = torch.zeros(6, dtype=torch.float64)
    if clip.loop_mode is not LoopMode.WRAP:
        return step
    first, last = poses[0, :2], poses[-1, :2]
    yaw = rot.wrap_angle(rot.heading(poses[-1, 3:7]) - rot.heading(poses[0, 3:7]))
    if not accumulate_yaw or yaw.abs() < 1e-3:
        step[:2] = last - first
        return step
    c, s = torch.cos(yaw), torch.sin(yaw)
    turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    step[3] = yaw
    step[4:] = torch.linalg.solve(torch.eye(2, dtype=torch.float64) - turn, last - turn @ first)
    return step
