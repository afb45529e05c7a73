"""Goals for characters that move like the clips: a place to go to, a direction and speed to keep (Peng et al. 2021,
section 7.1). What a goal adds to observation and reward, and how well it is met.

Everything happens on the ground plane: targets, directions and velocities are horizontal.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from mimickit.engines.engine import Engine
from mimickit.envs.base import DoneFlag
from mimickit.envs.env_config import LocationConfig, SteeringConfig
from mimickit.envs.parts import Lines, Marker, MeasuringPart, Snapshot, overwrite
from mimickit.util.assets import locate
from mimickit.util.means import Means
from mimickit.util.rotations import heading, in_heading, normalize, yaw_quat

LOCATION_MARKER = Path("data/assets/objects/location_marker.xml")
STEERING_MARKER = Path("data/assets/objects/steering_marker.xml")
RED, GREEN = (0.8, 0.0, 0.0), (0.0, 0.8, 0.0)
ON_COURSE_SPEED, ON_COURSE_SHARE = 0.5, 0.25  # m/s; of the speed asked for


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


# --- parts ------------------------------------------------------------------------------------------------------------


class Schedule:
    """When goals change: after a time drawn uniformly from [shortest, longest] (s)."""

    def __init__(self, num_envs: int, shortest: float, longest: float, device: torch.device) -> None:
        self._shortest, self._span = shortest, longest - shortest
        self.change = torch.zeros(num_envs, device=device)  # [N] s since the environment's reset

    def due(self, time: Tensor) -> Tensor:
        """Whether [N] the goal changes now, time [N] s."""
        return time >= self.change

    def restart(self, mask: Tensor, time: Tensor) -> None:
        """Draw the next change where mask [N]."""
        overwrite(mask, time + self._shortest + self._span * torch.rand_like(time), self.change)


class RootMotion:
    """Mean horizontal root velocity over the last control step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before = torch.zeros_like(engine.root_pos[:, :2])

    def remember(self) -> None:
        """Before physics: where the root is."""
        self._before.copy_(self._engine.root_pos[:, :2])

    def velocity(self, root_pos: Tensor) -> Tensor:
        """[N, 2] m/s, given the root's present position [N, 3]."""
        return (root_pos[:, :2] - self._before) / self._engine.control_dt


class LocationGoal(MeasuringPart):
    """Go to a place on the ground; when it changes, the new one lies at a random distance in any direction.

    Measures: ``task_reward``; ``goal_err`` (m), mean distance to the target, being on the way included;
    ``success_rate``, share of targets that were reached (distance below the threshold) before they changed or the
    character fell. Targets that the end of an episode cuts off do not count.
    """

    def __init__(self, config: LocationConfig, engine: Engine) -> None:
        n, device = engine.num_envs, engine.device
        self._config = config
        self._engine = engine
        self._schedule = Schedule(n, config.tar_change_time_min, config.tar_change_time_max, device)
        self._motion = RootMotion(engine)
        self.target = torch.zeros(n, 2, device=device)  # m
        self._reached = torch.zeros(n, dtype=torch.bool, device=device)
        super().__init__(("task_reward", "goal_err"), n, device)
        self._success = Means(("success_rate",), n, device)

    def act(self) -> None:
        self._motion.remember()

    def update(self, now: Snapshot) -> None:
        due = self._schedule.due(now.time)
        self._judge(due)
        self._draw(due, now)

    def observe(self, now: Snapshot) -> Tensor:
        return to_heading(now.char.root_rot, self.target - now.char.root_pos[:, :2])

    def reward(self, now: Snapshot) -> Tensor:
        c, char = self._config, now.char
        return location_reward(
            char.root_pos, char.root_rot, self._motion.velocity(char.root_pos), self.target, c.tar_speed,
            c.squared_threshold, (c.pos_err_scale, c.vel_err_scale), (c.pos_reward_w, c.vel_reward_w, c.face_reward_w),
        )

    def measure(self, now: Snapshot, flags: Tensor, valid: Tensor) -> None:
        square = (self.target - now.char.root_pos[:, :2]).square().sum(dim=-1)
        self._means.add(torch.stack([self.reward(now), square.sqrt()], dim=-1), valid)
        self._reached.logical_or_(valid & (square < self._config.squared_threshold))
        self._judge(flags == DoneFlag.FAIL)

    def reset(self, mask: Tensor, start: Snapshot) -> None:
        self._draw(mask, start)

    def _judge(self, over: Tensor) -> None:
        self._success.add(self._reached.to(self.target.dtype).unsqueeze(-1), over)

    def _draw(self, mask: Tensor, now: Snapshot) -> None:
        c = self._config
        angle = 2.0 * math.pi * torch.rand_like(now.time)
        distance = c.tar_dist_min + (c.tar_dist_max - c.tar_dist_min) * torch.rand_like(now.time)
        overwrite(mask, now.char.root_pos[:, :2] + distance.unsqueeze(-1) * unit(angle), self.target)
        self._schedule.restart(mask, now.time)
        self._reached.logical_and_(~mask)

    def markers(self) -> list[Marker]:
        return [Marker(locate(LOCATION_MARKER), self._target_on_ground(), yaw_quat(self.target.new_zeros(())), RED)]

    def lines(self) -> list[Lines]:
        return [Lines(self._engine.root_pos[:1], self._target_on_ground().unsqueeze(0), RED)]

    def _target_on_ground(self) -> Tensor:
        """[3] m, of environment 0."""
        return torch.cat([self.target[0], self.target.new_zeros(1)])

    def diagnostics(self) -> dict[str, Tensor]:
        return {**super().diagnostics(), **self._success.means()}

    def measure_sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {**super().measure_sums(), **self._success.per_env()}

    def clear_diagnostics(self) -> None:
        super().clear_diagnostics()
        self._success.clear()

    def buffers(self) -> dict[str, Tensor]:
        return {
            "target": self.target, "change": self._schedule.change, "reached": self._reached, **super().buffers(),
            **{f"success_{name}": tensor for name, tensor in self._success.buffers().items()},
        }

    def describe(self) -> str:
        return f"goal: a place up to {self._config.tar_dist_max:g} m away, at {self._config.tar_speed:g} m/s"


class SteeringGoal(MeasuringPart):
    """Move in a direction at a speed, facing a direction; all change together.

    Measures: ``task_reward``; ``vel_err`` (m/s), mean norm of the velocity error; ``success_rate``, share of steps with
    a velocity error below 0.5 m/s or a quarter of the speed asked for, whichever is more.
    """

    def __init__(self, config: SteeringConfig, engine: Engine) -> None:
        n, device = engine.num_envs, engine.device
        self._config = config
        self._engine = engine
        self._schedule = Schedule(n, config.tar_change_time_min, config.tar_change_time_max, device)
        self._motion = RootMotion(engine)
        self.direction = torch.zeros(n, 2, device=device)  # unit vector
        self.face = torch.zeros(n, 2, device=device)  # unit vector
        self.speed = torch.zeros(n, device=device)  # m/s
        super().__init__(("task_reward", "vel_err", "success_rate"), n, device)

    def act(self) -> None:
        self._motion.remember()

    def update(self, now: Snapshot) -> None:
        self._draw(self._schedule.due(now.time), now)

    def observe(self, now: Snapshot) -> Tensor:
        goals = torch.stack([self.direction, self.face], dim=-2)
        direction, face = to_heading(now.char.root_rot.unsqueeze(-2), goals).unbind(dim=-2)
        return torch.cat([direction, self.speed.unsqueeze(-1), face], dim=-1)

    def reward(self, now: Snapshot) -> Tensor:
        c = self._config
        return steering_reward(
            now.char.root_rot, self._motion.velocity(now.char.root_pos), self.direction, self.speed, self.face,
            c.reward_steering_vel_scale, (c.reward_steering_tar_w, c.reward_steering_face_w),
        )

    def measure(self, now: Snapshot, flags: Tensor, valid: Tensor) -> None:
        wanted = self.speed.unsqueeze(-1) * self.direction
        error = torch.linalg.vector_norm(wanted - self._motion.velocity(now.char.root_pos), dim=-1)
        on_course = error < (ON_COURSE_SHARE * self.speed).clamp(min=ON_COURSE_SPEED)
        self._means.add(torch.stack([self.reward(now), error, on_course.to(error.dtype)], dim=-1), valid)

    def reset(self, mask: Tensor, start: Snapshot) -> None:
        self._draw(mask, start)

    def _draw(self, mask: Tensor, now: Snapshot) -> None:
        c, time = self._config, now.time
        angle = self._angle(time) if c.rand_tar_dir else torch.zeros_like(time)
        face = self._angle(time) if c.rand_face_dir else angle
        speed = c.tar_speed_min + (c.tar_speed_max - c.tar_speed_min) * torch.rand_like(time)
        overwrite(mask, unit(angle), self.direction)
        overwrite(mask, unit(face), self.face)
        overwrite(mask, speed, self.speed)
        self._schedule.restart(mask, time)

    @staticmethod
    def _angle(like: Tensor) -> Tensor:
        return 2.0 * math.pi * torch.rand_like(like) - math.pi

    def markers(self) -> list[Marker]:
        c = self._config
        span = c.tar_speed_max - c.tar_speed_min
        beyond = 0.5 * (self.speed[0] - c.tar_speed_min) / span if span > 0.0 else 0.0
        return [
            self._marker(self.direction[0], 1.0 + beyond, 0.0, RED),
            self._marker(self.face[0], 1.0, 0.01, GREEN),
        ]

    def _marker(self, direction: Tensor, distance: Tensor | float, height: float, color) -> Marker:
        place = self._engine.root_pos[0, :2] + distance * direction
        yaw = torch.atan2(direction[1], direction[0])
        place = torch.cat([place, torch.full_like(place[:1], height)])
        return Marker(locate(STEERING_MARKER), place, yaw_quat(yaw), color)

    def buffers(self) -> dict[str, Tensor]:
        return {
            "direction": self.direction, "face": self.face, "speed": self.speed, "change": self._schedule.change,
            **super().buffers(),
        }

    def describe(self) -> str:
        c = self._config
        return f"goal: a direction at {c.tar_speed_min:g} to {c.tar_speed_max:g} m/s"
