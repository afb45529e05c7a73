"""``char`` and ``char_dof_test``: a character that stands, and one whose dofs are driven one after the other."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mimickit.anim.mjcf import JointKind
from mimickit.envs.env import Env
from mimickit.envs.metrics import StepMean
from mimickit.envs.observations import char_observation
from mimickit.envs.ref_motion import FixedPose
from mimickit.envs.scene import EnvConfig, Scene, Setup
from mimickit.envs.terms import EnvTerms, Memory, StepState
from mimickit.util.rotations import quat_diff_angle

SECONDS_PER_DOF = 4.0


class CharConfig(EnvConfig):
    """``char``: stands from ``init_pose``."""

    env_name: Literal["char"]


class DofTestConfig(EnvConfig):
    """``char_dof_test``: drives one dof after the other; ``episode_length`` is replaced by 4 s a dof."""

    env_name: Literal["char_dof_test"]


def driven_dof(time: Tensor, env: Tensor, num_dofs: int) -> Tensor:
    """The dof [N] (int64) that environments env [N] drive at time [N] (s)."""
    return (torch.floor(time / SECONDS_PER_DOF).long() + env) % num_dofs


def dof_command(time: Tensor, env: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Commands [N, D]: the driven dof swings once to ``high`` [D] and once to ``low`` [D] in 4 s, all others are 0."""
    driven = driven_dof(time, env, len(low)).unsqueeze(-1)
    swing = torch.sin(2.0 * math.pi * torch.frac(time / SECONDS_PER_DOF)).unsqueeze(-1)
    value = torch.where(swing >= 0.0, swing * high[driven], -swing * low[driven])
    return torch.zeros(len(time), len(low), device=time.device).scatter(-1, driven, value)


class DofDrive(Memory):
    """Commands one dof after the other, whatever the action, and measures whether its joint follows.

    The angle of the rotation between joint and command is measured, not the difference of numbers, because the numbers
    of a spherical joint jump where its angle passes pi. Commands beyond a hinge's limits count as far as the limit:
    that is where it must stop.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene, model = scene, scene.character.model
        self._low, self._high = scene.action_low, scene.action_high
        self._env = torch.arange(scene.num_envs, device=scene.device)
        spans = list(zip(model.joint_kinds[1:], model.dof_slices[1:], strict=True))
        joint_of = [j for j, (_, span) in enumerate(spans) for _ in range(span.stop - span.start)]
        hinge = [kind is JointKind.HINGE for kind, span in spans for _ in range(span.stop - span.start)]
        self._joint_of = scene.tensor(joint_of, torch.int64)
        limited = scene.tensor(hinge, torch.bool)
        self._reach_low = torch.where(limited, scene.tensor(model.dof_low.copy()), -torch.inf)
        self._reach_high = torch.where(limited, scene.tensor(model.dof_high.copy()), torch.inf)
        self._command = torch.zeros(scene.num_envs, model.num_dofs, device=scene.device)
        self._driven = torch.zeros_like(self._env)
        self._rest = scene.character.dof_to_rot(torch.zeros_like(self._low))

    def before_physics(self) -> None:
        self._scene.engine.command.copy_(self._command)

    def reset(self, mask: Tensor, start: StepState) -> None:
        """Prepare the command of the next step, for all environments."""
        self._command.copy_(dof_command(start.time, self._env, self._low, self._high))
        self._driven.copy_(driven_dof(start.time, self._env, len(self._low)))

    def errors(self, now: StepState) -> Tensor:
        """``pose_err``: angle (rad) between the driven joint and its command. ``command_size``: angle of the command
        itself, which ``pose_err`` equals if no joint moves. [N, 2]"""
        wanted = self._scene.character.dof_to_rot(self._command.clamp(self._reach_low, self._reach_high))
        joint = self._joint_of[self._driven].unsqueeze(-1)
        error = quat_diff_angle(wanted, now.char.joint_rot).gather(-1, joint)
        size = quat_diff_angle(wanted, self._rest).gather(-1, joint)
        return torch.cat([error, size], dim=-1)

    def buffers(self) -> dict[str, Tensor]:
        return {"command": self._command, "driven": self._driven}


def build(config: DofTestConfig, setup: Setup) -> Env:
    """A fixed root, and commands of its own."""
    scene = Scene(config, setup, fixed_root=True, self_collision=False)
    drive, terms = DofDrive(scene), standing_terms(config, scene)
    terms.memory["drive"] = drive
    terms.metrics["drive"] = StepMean(("pose_err", "command_size"), drive.errors, scene)
    terms.episode_length = SECONDS_PER_DOF * scene.character.num_dofs
    return Env(scene, terms)


def build_char(config: CharConfig, setup: Setup) -> Env:
    """A free character."""
    scene = Scene(config, setup)
    return Env(scene, standing_terms(config, scene))


def standing_terms(config: EnvConfig, scene: Scene) -> EnvTerms:
    """A character that starts from ``init_pose``, without a task."""
    return EnvTerms(
        reference=FixedPose(scene.character, scene.num_envs, *scene.init_pose),
        observations={"character": lambda now: char_observation(
            now.char, scene.key_ids, config.global_obs, config.root_height_obs)},
        rewards={"one": scene.constant(1.0)},
    )
