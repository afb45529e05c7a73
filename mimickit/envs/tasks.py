"""Goals for characters that move like the clips: a place to go to, a direction and speed to keep (Peng et al. 2021,
section 7.1): what a goal adds to observation and reward, and its metrics.

Everything happens on the ground plane: targets, directions and velocities are horizontal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mimickit.envs.amp import PriorConfig, style_terms, with_generated_starts
from mimickit.envs.base import DoneFlag
from mimickit.envs.env import Env
from mimickit.envs.metrics import StepMean
from mimickit.envs.scene import Scene, Setup
from mimickit.envs.terms import Lines, Marker, Memory, Metric, StepState, Term, Termination, overwrite
from mimickit.util.assets import locate
from mimickit.util.rotations import heading, in_heading, normalize, yaw_quat

LOCATION_MARKER = Path("data/assets/objects/location_marker.xml")
STEERING_MARKER = Path("data/assets/objects/steering_marker.xml")
RED, GREEN = (0.8, 0.0, 0.0), (0.0, 0.8, 0.0)
ON_COURSE_SPEED, ON_COURSE_SHARE = 0.5, 0.25  # m/s; of the speed asked for
SPEEDS = ("slow", "medium", "fast")  # thirds of the range of speeds


# --- settings --------------------------------------------------------------------------------------------------------


class GoalConfig(PriorConfig):
    """Keys of goals that change from time to time."""

    tar_change_time_min: float = Field(ge=0.0, description="s, shortest time before a goal changes")
    tar_change_time_max: float = Field(gt=0.0, description="s, longest time before a goal changes")

    @model_validator(mode="after")
    def _ranges(self) -> GoalConfig:
        for key in ("tar_change_time", "tar_dist", "tar_speed"):
            low, high = getattr(self, f"{key}_min", 0.0), getattr(self, f"{key}_max", float("inf"))
            if low > high:
                raise ValueError(f"{key}_min = {low} exceeds {key}_max = {high}")
        return self


class LocationConfig(GoalConfig):
    """``task_location``: go to a place in the style of the clips."""

    env_name: Literal["task_location"]
    tar_speed: float = Field(gt=0.0, description="m/s towards the target that is asked for at least")
    tar_dist_min: float = Field(0.0, ge=0.0, description="m, of a new target")
    tar_dist_max: float = Field(gt=0.0, description="m, of a new target")
    dist_threshold: float = Field(0.5, ge=0.0, description="m^2 (0.5 is 0.707 m), squared distance that is near enough")
    dist_threshold_m: float | None = Field(None, ge=0.0, description="m; replaces dist_threshold (ours)")
    pos_err_scale: float = Field(0.5, description="1/m^2")
    vel_err_scale: float = Field(4.0, description="s^2/m^2")
    pos_reward_w: float = 0.5
    vel_reward_w: float = 0.4
    face_reward_w: float = 0.1

    @property
    def squared_threshold(self) -> float:
        """m^2."""
        return self.dist_threshold if self.dist_threshold_m is None else self.dist_threshold_m**2


class SteeringConfig(GoalConfig):
    """``task_steering``: keep a direction and a speed in the style of the clips."""

    env_name: Literal["task_steering"]
    rand_tar_dir: bool = Field(True, description="any direction; otherwise the world's x axis")
    rand_face_dir: bool = Field(True, description="face any direction; otherwise the one to go in")
    tar_speed_min: float = Field(ge=0.0, description="m/s")
    tar_speed_max: float = Field(ge=0.0, description="m/s")
    reward_steering_tar_w: float
    reward_steering_face_w: float
    reward_steering_vel_scale: float = Field(description="s^2/m^2")


# --- mathematics ------------------------------------------------------------------------------------------------------


def unit(angle: Tensor) -> Tensor:
    """Directions [..., 2] of angles [...] from X."""
    return torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1)


def to_heading(root_rot: Tensor, vector: Tensor) -> Tensor:
    """Horizontal vectors [..., 2] of the world in the heading axes of root_rot [..., 4]."""
    level = torch.cat([vector, torch.zeros_like(vector[..., :1])], dim=-1)
    return in_heading(level, heading(root_rot))[..., :2]


def location_reward(
    root_pos: Tensor, root_rot: Tensor, velocity: Tensor, target: Tensor, speed: float, dist_threshold: float,
    scales: tuple[float, float], weights: tuple[float, float, float],
) -> Tensor:
    """Reward [N] for coming to a target, at a speed, facing it.

    Args:
        root_pos: [N, 3] m; velocity: [N, 2] m/s, of the root; target: [N, 2] m.
        speed: m/s that is asked for at least, towards the target.
        dist_threshold: m^2, squared distance below which velocity and facing no longer matter.
        scales: of the squared distance (1/m^2) and of the squared lack of speed (s^2/m^2).
        weights: of position, velocity and facing.
    """
    offset = target - root_pos[..., :2]
    square = offset.square().sum(dim=-1)
    direction = normalize(offset)
    towards = (direction * velocity).sum(dim=-1)
    moving = torch.exp(-scales[1] * (speed - towards).clamp(min=0.0).square())
    moving = torch.where(towards > 0.0, moving, 0.0)
    facing = (direction * unit(heading(root_rot))).sum(dim=-1).clamp(min=0.0)
    near = square < dist_threshold
    return (
        weights[0] * torch.exp(-scales[0] * square)
        + weights[1] * torch.where(near, 1.0, moving)
        + weights[2] * torch.where(near, 1.0, facing)
    )


def steering_reward(
    root_rot: Tensor, velocity: Tensor, direction: Tensor, speed: Tensor, face: Tensor, scale: float,
    weights: tuple[float, float],
) -> Tensor:
    """Reward [N] for moving with a velocity, facing a direction.

    Args:
        velocity: [N, 2] m/s; direction, face: [N, 2] unit vectors; speed: [N] m/s.
        scale: of the squared velocity error, s^2/m^2.
        weights: of velocity and facing.
    """
    error = (speed.unsqueeze(-1) * direction - velocity).square().sum(dim=-1)
    backwards = (direction * velocity).sum(dim=-1) < 0.0
    moving = torch.where(backwards, 0.0, torch.exp(-scale * error))
    facing = (face * unit(heading(root_rot))).sum(dim=-1).clamp(min=0.0)
    return weights[0] * moving + weights[1] * facing


def facing_error(root_rot: Tensor, face: Tensor) -> Tensor:
    """Angle [N] (degrees) between heading and the direction to face, [N, 2]."""
    return torch.rad2deg(torch.acos((unit(heading(root_rot)) * face).sum(dim=-1).clamp(-1.0, 1.0)))


def in_third(speed: Tensor, slowest: float, fastest: float, third: int) -> Tensor:
    """Whether [N] speeds [N] are in that third, 0 to 2, of a range."""
    low, high = (slowest + share / 3 * (fastest - slowest) for share in (third, third + 1))
    return (speed >= (-math.inf if third == 0 else low)) & (speed < (math.inf if third == 2 else high))


def on_course(error: Tensor, speed: Tensor) -> Tensor:
    """Whether a velocity error [...] (m/s) is below 0.5 m/s or a quarter of the speed [...] (m/s) asked for."""
    return error < (ON_COURSE_SHARE * speed).clamp(min=ON_COURSE_SPEED)


# --- goals ------------------------------------------------------------------------------------------------------------


class Goal(Memory):
    """A goal that changes after a time drawn uniformly from [``tar_change_time_min``, ``tar_change_time_max``].

    Attributes:
        over: [N] bool, it changed in this step.
        change: [N] s since the environment's reset, when it changes.
    """

    def __init__(self, config: GoalConfig, scene: Scene) -> None:
        self._scene = scene
        self._shortest, self._span = config.tar_change_time_min, config.tar_change_time_max - config.tar_change_time_min
        self.over = torch.zeros(scene.num_envs, dtype=torch.bool, device=scene.device)
        self.change = torch.zeros(scene.num_envs, device=scene.device)
        self._before = torch.zeros(scene.num_envs, 2, device=scene.device)  # m, of the root before physics

    def before_physics(self) -> None:
        self._before.copy_(self._scene.engine.root_pos[:, :2])

    def update(self, now: StepState) -> None:
        torch.ge(now.time, self.change, out=self.over)
        self.reset(self.over, now)

    def reset(self, mask: Tensor, start: StepState) -> None:
        self._draw(mask, start)
        time = start.time
        overwrite(mask, time + self._shortest + self._span * torch.rand_like(time), self.change)

    def _draw(self, mask: Tensor, now: StepState) -> None:
        """Set a new goal where mask [N]."""
        raise NotImplementedError

    def velocity(self, now: StepState) -> Tensor:
        """Mean horizontal velocity [N, 2] (m/s) of the roots over the last control step."""
        return (now.char.root_pos[:, :2] - self._before) / self._scene.dt


class LocationGoal(Goal):
    """Go to a place on the ground. A new one lies at a random distance in a random direction.

    Attributes:
        target: [N, 2] m.
    """

    def __init__(self, config: LocationConfig, scene: Scene) -> None:
        super().__init__(config, scene)
        self.config = config
        self.target = torch.zeros(scene.num_envs, 2, device=scene.device)

    def observe(self, now: StepState) -> Tensor:
        """The way to the target [N, 2] (m) in heading axes."""
        return to_heading(now.char.root_rot, self.target - now.char.root_pos[:, :2])

    def reward(self, now: StepState) -> Tensor:
        """:func:`location_reward`."""
        c, char = self.config, now.char
        return location_reward(
            char.root_pos, char.root_rot, self.velocity(now), self.target, c.tar_speed, c.squared_threshold,
            (c.pos_err_scale, c.vel_err_scale), (c.pos_reward_w, c.vel_reward_w, c.face_reward_w),
        )

    def square_distance(self, now: StepState) -> Tensor:
        """To the target, [N] m^2."""
        return (self.target - now.char.root_pos[:, :2]).square().sum(dim=-1)

    def measures(self, now: StepState) -> Tensor:
        """``task_reward``; ``goal_err`` (m), distance to the target, being on the way included: [N, 2]."""
        return torch.stack([self.reward(now), self.square_distance(now).sqrt()], dim=-1)

    def _draw(self, mask: Tensor, now: StepState) -> None:
        c = self.config
        angle = 2.0 * math.pi * torch.rand_like(now.time)
        distance = c.tar_dist_min + (c.tar_dist_max - c.tar_dist_min) * torch.rand_like(now.time)
        overwrite(mask, now.char.root_pos[:, :2] + distance.unsqueeze(-1) * unit(angle), self.target)

    def draw(self) -> list[Marker | Lines]:
        """A red post at the target of environment 0, and a line to it from the root."""
        place = torch.cat([self.target[0], self.target.new_zeros(1)])
        return [Marker(locate(LOCATION_MARKER), place, yaw_quat(self.target.new_zeros(())), RED),
                Lines(self._scene.engine.root_pos[:1], place.unsqueeze(0), RED)]

    def buffers(self) -> dict[str, Tensor]:
        return {"target": self.target, "change": self.change}


class TargetsReached(Metric):
    """``success_rate``: share of targets that were reached (distance below the threshold) before they changed or the
    character fell. Targets that the end of an episode cuts off do not count."""

    def __init__(self, goal: LocationGoal, scene: Scene) -> None:
        super().__init__(("success_rate",), scene.num_envs, scene.device)
        self._goal = goal
        self._reached = torch.zeros(scene.num_envs, dtype=torch.bool, device=scene.device)

    def measure(self, now: StepState, done: Tensor, valid: Tensor) -> None:
        goal = self._goal
        self._count(goal.over)
        self._reached.masked_fill_(goal.over, False)
        self._reached.logical_or_(valid & (goal.square_distance(now) < goal.config.squared_threshold))
        self._count(done == DoneFlag.FAIL)
        self._reached.logical_and_(done == DoneFlag.NULL)

    def _count(self, over: Tensor) -> None:
        self.means.add(self._reached.to(self._goal.target.dtype).unsqueeze(-1), over)

    def clear(self) -> None:
        super().clear()
        self._reached.zero_()

    def buffers(self) -> dict[str, Tensor]:
        return {**super().buffers(), "reached": self._reached}


class SteeringGoal(Goal):
    """Move in a direction at a speed, facing a direction; all change together.

    Attributes:
        direction, face: [N, 2] unit vectors. speed: [N] m/s. speeds: m/s, lowest and highest.
    """

    def __init__(self, config: SteeringConfig, scene: Scene) -> None:
        super().__init__(config, scene)
        self._config = config
        self.speeds = config.tar_speed_min, config.tar_speed_max
        self.direction = torch.zeros(scene.num_envs, 2, device=scene.device)
        self.face = torch.zeros_like(self.direction)
        self.speed = torch.zeros(scene.num_envs, device=scene.device)

    def observe(self, now: StepState) -> Tensor:
        """Direction (2), speed (1) and direction to face (2), in heading axes: [N, 5]."""
        goals = torch.stack([self.direction, self.face], dim=-2)
        direction, face = to_heading(now.char.root_rot.unsqueeze(-2), goals).unbind(dim=-2)
        return torch.cat([direction, self.speed.unsqueeze(-1), face], dim=-1)

    def reward(self, now: StepState) -> Tensor:
        """:func:`steering_reward`."""
        c = self._config
        return steering_reward(
            now.char.root_rot, self.velocity(now), self.direction, self.speed, self.face,
            c.reward_steering_vel_scale, (c.reward_steering_tar_w, c.reward_steering_face_w),
        )

    def errors(self, now: StepState) -> Tensor:
        """``vel_err`` (m/s), norm of the velocity error; ``success_rate``, whether that is below 0.5 m/s or a quarter
        of the speed asked for, whichever is more: [N, 2]."""
        wanted = self.speed.unsqueeze(-1) * self.direction
        error = torch.linalg.vector_norm(wanted - self.velocity(now), dim=-1)
        return torch.stack([error, on_course(error, self.speed).to(error.dtype)], dim=-1)

    def measures(self, now: StepState) -> Tensor:
        """``task_reward`` and :meth:`errors`: [N, 3]."""
        return torch.cat([self.reward(now).unsqueeze(-1), self.errors(now)], dim=-1)

    def facing_error(self, now: StepState) -> Tensor:
        """``facing_err``: angle (degrees) between heading and direction to face, [N, 1]."""
        return facing_error(now.char.root_rot, self.face).unsqueeze(-1)

    def in_third(self, third: int) -> Term:
        """Whether [N] the speed asked for is in that third, 0 to 2, of the environment's range."""
        return lambda now: in_third(self.speed, *self.speeds, third)

    def _draw(self, mask: Tensor, now: StepState) -> None:
        c, time = self._config, now.time
        angle = any_angle(time) if c.rand_tar_dir else torch.zeros_like(time)
        face = any_angle(time) if c.rand_face_dir else angle
        speed = c.tar_speed_min + (c.tar_speed_max - c.tar_speed_min) * torch.rand_like(time)
        overwrite(mask, unit(angle), self.direction)
        overwrite(mask, unit(face), self.face)
        overwrite(mask, speed, self.speed)

    def draw(self) -> list[Marker | Lines]:
        """A red bar in the direction to go, farther away for higher speeds, and a green one in that to face."""
        c = self._config
        span = c.tar_speed_max - c.tar_speed_min
        beyond = 0.5 * (self.speed[0] - c.tar_speed_min) / span if span > 0.0 else 0.0
        return [
            self._marker(self.direction[0], 1.0 + beyond, 0.0, RED),
            self._marker(self.face[0], 1.0, 0.01, GREEN),
        ]

    def _marker(self, direction: Tensor, distance: Tensor | float, height: float, color) -> Marker:
        place = self._scene.engine.root_pos[0, :2] + distance * direction
        yaw = torch.atan2(direction[1], direction[0])
        place = torch.cat([place, torch.full_like(place[:1], height)])
        return Marker(locate(STEERING_MARKER), place, yaw_quat(yaw), color)

    def buffers(self) -> dict[str, Tensor]:
        return {"direction": self.direction, "face": self.face, "speed": self.speed, "change": self.change}


def any_angle(like: Tensor) -> Tensor:
    """Angles (rad) drawn uniformly from [-pi, pi), in the shape of ``like``."""
    return 2.0 * math.pi * torch.rand_like(like) - math.pi


# --- recipes ----------------------------------------------------------------------------------------------------------


def build_location(config: LocationConfig, setup: Setup) -> Env:
    """Style, and a place to go to."""
    scene = Scene(config, setup)
    goal = LocationGoal(config, scene)
    return with_goal(config, scene, goal, {
        "goal": StepMean(("task_reward", "goal_err"), goal.measures, scene),
        "success_rate": TargetsReached(goal, scene),
    })


def build_steering(config: SteeringConfig, setup: Setup) -> Env:
    """Style, and a direction and speed to keep."""
    scene = Scene(config, setup)
    goal = SteeringGoal(config, scene)
    return with_goal(config, scene, goal, {
        "goal": StepMean(("task_reward", "vel_err", "success_rate"), goal.measures, scene),
        "facing": StepMean(("facing_err",), goal.facing_error, scene),
        **{speed: StepMean((f"vel_err_{speed}", f"success_rate_{speed}"), goal.errors, scene, goal.in_third(third))
           for third, speed in enumerate(SPEEDS)},
    })


class Task(Protocol):
    """What :func:`with_goal` needs of a memory."""

    def observe(self, now: StepState) -> Tensor: ...

    def reward(self, now: StepState) -> Tensor: ...

    def draw(self) -> list[Marker | Lines]: ...


def with_goal(config: PriorConfig, scene: Scene, goal: Task, metrics: dict[str, Metric],
              ends: Mapping[str, Termination] = MappingProxyType({})) -> Env:
    """The terms of style, and those of a goal; ``ends``: further reasons to end."""
    terms = with_generated_starts(config, scene, style_terms(config, scene))
    terms.observations["goal"] = goal.observe
    terms.rewards = {"goal": goal.reward}
    terms.terminations |= ends
    terms.metrics = {**metrics, **terms.metrics}
    terms.memory["goal"] = goal
    terms.drawings.append(goal.draw)
    return Env(scene, terms)
