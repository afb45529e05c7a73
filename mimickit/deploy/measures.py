"""What episodes in plain MuJoCo come to, by the definitions of the test stage: the environments' own functions."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimickit.deploy.loop import FAILED, Step
from mimickit.deploy.observation import State
from mimickit.deploy.policy_file import PolicyFile
from mimickit.engines.engine_config import make_engine_config
from mimickit.envs.add import ADDConfig
from mimickit.envs.amp import PriorConfig
from mimickit.envs.base import DoneFlag
from mimickit.envs.deepmimic import DeepMimicConfig
from mimickit.envs.disc_obs import ClipWindows
from mimickit.envs.env_builder import make_env_config
from mimickit.envs.scene import Scene, Setup
from mimickit.envs.similarity import MotionSimilarity
from mimickit.envs.smoothness import FOOT_SLIDE, SMOOTHNESS, Motors, foot_slide, on_ground, smoothness
from mimickit.envs.tasks import (
    SPEEDS,
    LocationConfig,
    SteeringConfig,
    facing_error,
    in_third,
    location_reward,
    on_course,
    steering_reward,
)
from mimickit.envs.terms import CharState, StepState
from mimickit.envs.tracking_reward import MEASURES, tracking_errors
from mimickit.learning.metrics import summarize
from mimickit.util.distributed import Distributed
from mimickit.util.rotations import matrix_to_quat

Sums = dict[str, tuple[float, float]]  # of an episode, by name: sum over its samples, number of samples


class Episodes:
    """Measures of recorded episodes.

    Args:
        mass: kg, of the character.
    """

    def __init__(self, policy: PolicyFile, mass: float) -> None:
        configuration = policy.training.configuration
        self._env = make_env_config(configuration["env"], "policy.json: training.configuration.env")
        engine = make_engine_config(configuration["engine"], "policy.json: training.configuration.engine")
        self._scene = Scene(self._env, Setup(engine, 1, torch.device("cpu"), _no_engine))
        self._motors = Motors(self._scene.character, engine.control_mode)
        self._mass, self._goal = mass, policy.goal
        self._sums: list[Sums] = []
        self._states: list[CharState] = []  # of the episodes whose motion is compared with the clips
        self._pooled: dict[str, float] = {}
        self._nonfinite = 0

    def add(self, steps: Sequence[Step]) -> None:
        """An episode, from its first step to its last."""
        char, ref = (_char_state([getattr(step, name) for step in steps]) for name in ("state", "reference"))
        self._nonfinite += int((~char.body_pos.isfinite()).flatten(1).any(dim=1).sum())
        failed = float(steps[-1].end == FAILED)
        sums: Sums = {"length": (len(steps), 1.0), "survival": (1.0 - failed, 1.0)}
        if self._env.log_tracking_error or isinstance(self._env, DeepMimicConfig | ADDConfig):
            sums |= _over_steps(MEASURES, tracking_errors(char, ref))
        if isinstance(self._env, DeepMimicConfig | ADDConfig):
            sums["success_rate"] = (1.0 - failed, 1.0)
        else:
            sums["fall_rate"] = (failed, 1.0)
        self._sums.append(sums | self._task(steps, char) | self._smoothness(steps, char))
        if isinstance(self._env, PriorConfig):
            self._states.append(char)

    def result(self) -> dict[str, Any]:
        """Measures and statistics, as in ``result.json`` of a test."""
        if self._states:
            self._compare_with_clips()
        names = list(dict.fromkeys(name for sums in self._sums for name in sums))
        rows = {name: torch.tensor([sums.get(name, (0.0, 0.0)) for sums in self._sums]) for name in names}
        statistics = {name: summarize(row[:, 0], row[:, 1], share=name == "survival" or name.endswith("_rate"))
                      for name, row in rows.items()}
        statistics = {name: found for name, found in statistics.items() if found is not None}
        return {
            "test_episode_length": statistics["length"]["mean"], "test_episodes": len(self._sums),
            "measures": {**{name: found["mean"] for name, found in statistics.items() if name != "length"},
                         **self._pooled},
            "statistics": statistics, "nonfinite": self._nonfinite,
        }

    def _smoothness(self, steps: Sequence[Step], char: CharState) -> Sums:
        action, force = (_tensor([getattr(step, name) for step in steps]) for name in ("action", "ground_force"))
        sums: Sums = {}
        if len(steps) > 1:
            touches = on_ground(force)
            slide, stays = foot_slide(char.body_pos[1:], char.body_pos[:-1], touches[1:], touches[:-1], self._scene.dt)
            sums[FOOT_SLIDE] = (float(slide[stays].sum()), float(stays.sum()))
        if len(steps) > 2:
            dof_pos = self._scene.character.rot_to_dof(char.joint_rot)
            torque = self._motors.torque(action, dof_pos, char.dof_vel)
            values = smoothness(torque[2:], action[2:], action[1:-1], char.dof_vel.unfold(0, 3, 1).transpose(1, 2),
                                force[2:], force[1:-1], self._mass, self._scene.dt)
            sums |= _over_steps(SMOOTHNESS, values)
        return sums

    def _task(self, steps: Sequence[Step], char: CharState) -> Sums:
        env, goal = self._env, {name: _tensor([step.goal[name] for step in steps]) for name in steps[0].goal}
        if not goal:
            return {}
        velocity = torch.zeros(len(steps), 2)  # the first step's begins before what is recorded: it is left out
        velocity[1:] = torch.diff(char.root_pos[:, :2], dim=0) / self._scene.dt
        if isinstance(env, LocationConfig):
            reward = location_reward(
                char.root_pos, char.root_rot, velocity, char.root_pos[:, :2] + goal["offset"], env.tar_speed,
                env.squared_threshold, (env.pos_err_scale, env.vel_err_scale),
                (env.pos_reward_w, env.vel_reward_w, env.face_reward_w))
            distance = torch.linalg.vector_norm(goal["offset"], dim=-1)
            sums = _over_steps(("task_reward", "goal_err"), torch.stack([reward, distance], dim=-1)[1:])
            return {**sums, "success_rate": _targets_reached(
                distance < self._goal.reached, goal["changed"][:, 0] > 0, steps[-1].end == FAILED)}
        assert isinstance(env, SteeringConfig)
        speed = goal["speed"][:, 0]
        reward = steering_reward(char.root_rot, velocity, goal["direction"], speed, goal["face"],
                                 env.reward_steering_vel_scale,
                                 (env.reward_steering_tar_w, env.reward_steering_face_w))
        error = torch.linalg.vector_norm(speed[:, None] * goal["direction"] - velocity, dim=-1)
        values = torch.stack([reward, error, on_course(error, speed).to(error.dtype)], dim=-1)
        sums = _over_steps(("task_reward", "vel_err", "success_rate"), values[1:])
        sums |= _over_steps(("facing_err",), facing_error(char.root_rot, goal["face"])[1:, None])
        for third, name in enumerate(SPEEDS):
            inside = in_third(speed[1:], env.tar_speed_min, env.tar_speed_max, third)
            sums |= _over_steps((f"vel_err_{name}", f"success_rate_{name}"), values[1:, 1:][inside])
        return sums

    def _compare_with_clips(self) -> None:
        """All episodes side by side, as :class:`MotionSimilarity` wants them."""
        windows = ClipWindows(self._scene, self._env.num_disc_obs_steps)
        count, size = len(self._states), windows.num_steps
        longest = max(len(state.root_pos) for state in self._states)
        history = SimpleNamespace(num_steps=size)
        metric = MotionSimilarity(history, windows, count, self._scene.dt)
        running = torch.ones(count, dtype=torch.int32) * DoneFlag.NULL
        lengths = torch.tensor([len(state.root_pos) for state in self._states])
        for last in range(size, longest + 1):
            rows = torch.arange(last - size, last)
            frames = [CharState(*(x.index_select(0, rows.clamp(max=len(state.root_pos) - 1)) for x in state))
                      for state in self._states]
            window = CharState(*(torch.stack(x) for x in zip(*frames)))
            history.frames = lambda window=window: window
            time = torch.full((count,), last * self._scene.dt)
            metric.measure(StepState(time, CharState(*(x[:, -1] for x in window)), None), running, last <= lengths)
        sums, counts = metric.means.per_env()["motion_err"]
        for own, total, weight in zip(self._sums, sums.tolist(), counts.tolist(), strict=True):
            own["motion_err"] = (total, weight)
        pooled = metric.pooled(Distributed(0, 1, 0, torch.device("cpu")))
        self._pooled = {name: float(value) for name, value in pooled.items() if not torch.isnan(value)}


def _targets_reached(near: Tensor, changed: Tensor, failed: bool) -> tuple[float, float]:
    """Targets that were reached before they changed or the character fell, and all of these, of an episode [T]."""
    reached = count = 0.0
    so_far = False
    for is_near, is_new in zip(near.tolist(), changed.tolist(), strict=True):
        if is_new:
            reached, count, so_far = reached + so_far, count + 1.0, False
        so_far = so_far or is_near
    return (reached + so_far, count + 1.0) if failed else (reached, count)


def _char_state(states: Sequence[State]) -> CharState:
    """Recorded states as [T, ...]."""
    x = State(*(_tensor(column) for column in zip(*states)))
    return CharState(x.root_pos, matrix_to_quat(x.root_mat), x.root_vel, x.root_ang_vel, matrix_to_quat(x.joint_mat),
                     x.dof_vel, x.body_pos, matrix_to_quat(x.body_mat))


def _tensor(rows: Sequence[np.ndarray]) -> Tensor:
    return torch.as_tensor(np.stack(rows), dtype=torch.float32)


def _over_steps(names: Sequence[str], values: Tensor) -> Sums:
    """Sums of values [T, number of names]."""
    return {name: (float(total), float(len(values)))
            for name, total in zip(names, values.double().sum(dim=0), strict=True)}


def _no_engine(*_: object) -> Any:
    raise AssertionError("episodes are recorded: there is no physics here")
