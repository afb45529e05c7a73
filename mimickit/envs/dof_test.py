"""``char`` and ``char_dof_test``: a character that stands, and one whose dofs are driven one after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.anim.mjcf import JointKind
from mimickit.engines.engine import Engine
from mimickit.envs.char_obs import CharObs
from mimickit.envs.env import Env, View
from mimickit.envs.env_config import CharConfig, DofTestConfig
from mimickit.envs.parts import ConstantReward, MeasuringPart, Part, Snapshot
from mimickit.envs.ref_motion import FixedPose
from mimickit.envs.world import Setup, body_ids, init_pose
from mimickit.util.rotations import quat_diff_angle

SECONDS_PER_DOF = 4.0


def driven_dof(time: Tensor, env: Tensor, num_dofs: int) -> Tensor:
    """The dof [N] (int64) that environments env [N] drive at time [N] (s)."""
    return (torch.floor(time / SECONDS_PER_DOF).long() + env) % num_dofs


def dof_command(time: Tensor, env: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Commands [N, D]: the driven dof swings once to ``high`` [D] and once to ``low`` [D] in 4 s, all others are 0."""
    driven = driven_dof(time, env, len(low)).unsqueeze(-1)
    swing = torch.sin(2.0 * math.pi * torch.frac(time / SECONDS_PER_DOF)).unsqueeze(-1)
    value = torch.where(swing >= 0.0, swing * high[driven], -swing * low[driven])
    return torch.zeros(len(time), len(low), device=time.device).scatter(-1, driven, value)


class DofDrive(MeasuringPart):
    """Commands one dof after the other, and measures whether its joint follows.

    ``pose_err``: mean angle (rad) between the driven joint and its command, over all steps. ``command_size``: mean
    angle of those commands themselves, which is what ``pose_err`` would be if nothing moved. The angle of the
    rotation between the two is used, not the difference of numbers, because the numbers of a spherical joint jump
    where its angle passes pi. Commands beyond a hinge's limits count as far as the limit: that is where it must stop.
    """

    def __init__(self, engine: Engine, character: Character, low: Tensor, high: Tensor) -> None:
        model = character.model
        device = low.device
        self._engine = engine
        self._character = character
        self._low, self._high = low, high
        self._env = torch.arange(engine.num_envs, device=device)
        spans = list(zip(model.joint_kinds[1:], model.dof_slices[1:], strict=True))
        joint_of = [j for j, (_, span) in enumerate(spans) for _ in range(span.stop - span.start)]
        hinge = [kind is JointKind.HINGE for kind, span in spans for _ in range(span.stop - span.start)]
        self._joint_of = torch.tensor(joint_of, device=device)
        limited = torch.tensor(hinge, device=device)
        self._reach_low = torch.where(limited, torch.as_tensor(model.dof_low.copy()).to(low), -torch.inf)
        self._reach_high = torch.where(limited, torch.as_tensor(model.dof_high.copy()).to(low), torch.inf)
        self._command = torch.zeros(engine.num_envs, model.num_dofs, device=device)
        self._driven = torch.zeros(engine.num_envs, dtype=torch.int64, device=device)
        self._rest = character.dof_to_rot(torch.zeros_like(low))
        super().__init__(("pose_err", "command_size"), engine.num_envs, device)

    def act(self) -> None:
        self._engine.command.copy_(self._command)

    def measure(self, now: Snapshot, flags: Tensor, valid: Tensor) -> None:
        wanted = self._character.dof_to_rot(self._command.clamp(self._reach_low, self._reach_high))
        joint = self._joint_of[self._driven].unsqueeze(-1)
        error = quat_diff_angle(wanted, now.char.joint_rot).gather(-1, joint)
        size = quat_diff_angle(wanted, self._rest).gather(-1, joint)
        self._means.add(torch.cat([error, size], dim=-1), valid)

    def reset(self, mask: Tensor, start: Snapshot) -> None:
        """Prepare the command of the next step, for all environments."""
        self._command.copy_(dof_command(start.time, self._env, self._low, self._high))
        self._driven.copy_(driven_dof(start.time, self._env, len(self._low)))

    def buffers(self) -> dict[str, Tensor]:
        return {"command": self._command, "driven": self._driven, **super().buffers()}

    def describe(self) -> str:
        return f"drives one dof after the other, {SECONDS_PER_DOF:g} s each"


def build(config: DofTestConfig, setup: Setup) -> Env:
    """char + a fixed root + commands of its own."""
    character, source, parts = _standing(config, setup)
    low, high = setup.action_box(config, character)
    engine = setup.open_world(config, character, fixed_root=True, self_collision=False)
    parts.append(DofDrive(engine, character, low, high))
    length = SECONDS_PER_DOF * character.num_dofs
    return Env(engine, character, source, parts, low, high, length, view=View(config.camera_mode))


def build_char(config: CharConfig, setup: Setup) -> Env:
    """A character that starts from ``init_pose``; nothing is asked of it."""
    character, source, parts = _standing(config, setup)
    low, high = setup.action_box(config, character)
    engine = setup.open_world(config, character)
    return Env(engine, character, source, parts, low, high, config.episode_length, view=View(config.camera_mode))


def _standing(config: CharConfig | DofTestConfig, setup: Setup) -> tuple[Character, FixedPose, list[Part]]:
    character = setup.load_character(config)
    pose = (x.to(setup.device) for x in init_pose(config, character.model))
    key_ids = setup.tensor(body_ids(config, "key_bodies", character.model), torch.int64)
    parts = [
        CharObs(key_ids, config.global_obs, config.root_height_obs),
        ConstantReward(1.0, setup.num_envs, setup.device),
    ]
    return character, FixedPose(character, setup.num_envs, *pose), parts
