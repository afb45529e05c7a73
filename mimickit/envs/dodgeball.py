"""``task_dodgeball``: balls are thrown at the character from all sides; it should get out of their way."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mimickit.engines.engine import FreeObject
from mimickit.envs.amp import PriorConfig
from mimickit.envs.base import DoneFlag
from mimickit.envs.env import Env
from mimickit.envs.metrics import StepMean
from mimickit.envs.scene import Scene, Setup
from mimickit.envs.tasks import any_angle, unit, with_goal
from mimickit.envs.terms import Marker, Memory, Metric, StepState, overwrite
from mimickit.util.assets import locate
from mimickit.util.rotations import heading, in_heading

BALL = Path("data/assets/objects/dodgeball.xml")
RADIUS = 0.1  # m
ORANGE = (0.9725, 0.42, 0.1137)
GRAVITY = -9.81  # m/s^2
RANGES = ("proj_dist", "proj_h", "proj_speed", "proj_trigger_time")


class DodgeballConfig(PriorConfig):
    """``task_dodgeball``: keep away from balls in the style of the clips."""

    env_name: Literal["task_dodgeball"]
    num_projectiles: int = Field(1, ge=1)
    proj_target_body: str = Field(description="body that balls are thrown at")
    hit_dist: float = Field(0.8, ge=0.0, description="m between ball and a body's origin, farther away is no hit")
    hit_force_threshold: float = Field(0.1, ge=0.0, description="N, horizontal contact force on the ball")
    hit_delta_v_threshold: float = Field(1.5, ge=0.0, description="m/s, change of the ball's velocity in a step, "
                                                                  "gravity's aside")
    proj_dist_min: float = Field(8.0, gt=0.0, description="m, from where balls are thrown")
    proj_dist_max: float = Field(10.0, gt=0.0)
    proj_h_min: float = Field(0.5, ge=0.0, description="m, height from which they are thrown")
    proj_h_max: float = Field(2.5, ge=0.0)
    proj_speed_min: float = Field(12.0, gt=0.0, description="m/s, horizontal")
    proj_speed_max: float = Field(15.0, gt=0.0)
    proj_trigger_time_min: float = Field(1.0, gt=0.0, description="s from one throw to the next")
    proj_trigger_time_max: float = Field(4.0, gt=0.0)
    proj_aim_noise_scale: float = Field(0.1, ge=0.0, description="m, standard deviation of the point that is aimed at")

    @model_validator(mode="after")
    def _ranges(self) -> DodgeballConfig:
        for key in RANGES:
            low, high = getattr(self, f"{key}_min"), getattr(self, f"{key}_max")
            if low > high:
                raise ValueError(f"{key}_min = {low} exceeds {key}_max = {high}")
        return self


# --- mathematics ------------------------------------------------------------------------------------------------------


def throw(
    target: Tensor, target_vel: Tensor, distance: Tensor, speed: Tensor, height: Tensor, angle: Tensor
) -> tuple[Tensor, Tensor]:
    """Position and velocity [..., 3] with which a ball is thrown so that it meets a target.

    Where the target will be is predicted in the plane; its height is taken as it is.

    Args:
        target: [..., 3] m; target_vel: [..., 3] m/s.
        distance: [...] m, in the plane, to where the target will be; speed: [...] m/s, in the plane.
        height: [...] m, of the ball when it is thrown; angle: [...] rad, direction in which it starts from there.
    """
    flight = distance / speed
    meeting = target[..., :2] + target_vel[..., :2] * flight.unsqueeze(-1)
    away = unit(angle)
    rising = (target[..., 2] - height) / flight - 0.5 * GRAVITY * flight
    place = torch.cat([meeting + distance.unsqueeze(-1) * away, height.unsqueeze(-1)], dim=-1)
    return place, torch.cat([-speed.unsqueeze(-1) * away, rising.unsqueeze(-1)], dim=-1)


def hits(
    ball_pos: Tensor, ball_vel: Tensor, before: Tensor, force: Tensor, body_pos: Tensor, dt: float, distance: float,
    least_force: float, least_change: float,
) -> Tensor:
    """Which balls hit the character, [N, K] bool: something pushed a ball while it was near a body.

    Args:
        ball_pos, ball_vel, force: [N, K, 3] after physics; before: [N, K, 3] m/s, velocities before it.
        body_pos: [N, B, 3] m.
        distance: m; least_force: N, horizontal; least_change: m/s, of the velocity, gravity's share aside.
    """
    near = torch.linalg.vector_norm(ball_pos.unsqueeze(2) - body_pos.unsqueeze(1), dim=-1).amin(dim=-1) < distance
    change = ball_vel - before
    change = torch.cat([change[..., :2], change[..., 2:] - GRAVITY * dt], dim=-1)
    pushed = torch.linalg.vector_norm(force[..., :2], dim=-1) > least_force
    return near & (pushed | (torch.linalg.vector_norm(change, dim=-1) > least_change))


def dodge_reward(root_pos: Tensor, root_vel: Tensor, ball_pos: Tensor) -> Tensor:
    """Reward [N] for being far from the nearest ball and standing still: root_pos, root_vel [N, 3], ball_pos [N, K, 3].
    """
    nearest = torch.linalg.vector_norm(ball_pos - root_pos.unsqueeze(1), dim=-1).amin(dim=-1)
    still = torch.exp(-root_vel[..., :2].square().sum(dim=-1))
    return 0.9 * (1.0 - torch.exp(-0.3 * nearest)) + 0.1 * still


# --- the balls --------------------------------------------------------------------------------------------------------


class Balls(Memory):
    """Balls that lie aside until they are thrown, again and again. K balls.

    Attributes:
        hit: [N, K] bool, hit the character in this step. thrown: [N, K] bool, in this step.
        due: [N, K] s since the environment's reset, when they are thrown next.
    """

    def __init__(self, config: DodgeballConfig, scene: Scene) -> None:
        self._config, self._scene = config, scene
        shape = scene.num_envs, config.num_projectiles
        self._target, = scene.body_ids("proj_target_body")
        self._rest = scene.tensor(resting_places(config.num_projectiles))
        self.hit = torch.zeros(shape, dtype=torch.bool, device=scene.device)
        self.thrown = torch.zeros_like(self.hit)
        self.due = torch.zeros(shape, device=scene.device)
        self._before = torch.zeros(*shape, 3, device=scene.device)

    def before_physics(self) -> None:
        self._before.copy_(self._scene.engine.object_vel)

    def update(self, now: StepState) -> None:
        c, engine = self._config, self._scene.engine
        self.hit.copy_(hits(
            engine.object_pos, engine.object_vel, self._before, engine.object_force, now.char.body_pos, self._scene.dt,
            c.hit_dist, c.hit_force_threshold, c.hit_delta_v_threshold))
        torch.ge(now.time.unsqueeze(-1), self.due, out=self.thrown)
        target = now.char.body_pos[:, self._target].unsqueeze(1).expand_as(self._before)
        target_vel = engine.body_vel[:, self._target].unsqueeze(1).expand_as(self._before)
        place, velocity = throw(
            target + c.proj_aim_noise_scale * torch.randn_like(target), target_vel, self._draw("proj_dist"),
            self._draw("proj_speed"), self._draw("proj_h").clamp(min=RADIUS), any_angle(self.due))
        self._move(self.thrown, place, velocity)
        self._wait(self.thrown, now.time)

    def reset(self, mask: Tensor, start: StepState) -> None:
        every = mask.unsqueeze(-1).expand_as(self.hit)
        self._move(every, self._rest.expand_as(self._before), torch.zeros_like(self._before))
        self._wait(every, start.time)

    def _move(self, mask: Tensor, place: Tensor, velocity: Tensor) -> None:
        """Put balls of mask [N, K] elsewhere."""
        engine = self._scene.engine
        overwrite(mask, place, engine.object_pos)
        overwrite(mask, velocity, engine.object_vel)
        engine.object_mask.logical_or_(mask)

    def _wait(self, mask: Tensor, time: Tensor) -> None:
        overwrite(mask, time.unsqueeze(-1) + self._draw("proj_trigger_time"), self.due)

    def _draw(self, key: str) -> Tensor:
        """Values [N, K], uniform between the bounds of a key."""
        low, high = (getattr(self._config, f"{key}_{end}") for end in ("min", "max"))
        return low + (high - low) * torch.rand_like(self.due)

    def observe(self, now: StepState) -> Tensor:
        """Of each ball its place relative to the root (m) and its velocity (m/s), in heading axes: [N, 6 K]."""
        engine = self._scene.engine
        vectors = torch.stack([engine.object_pos - now.char.root_pos.unsqueeze(1), engine.object_vel], dim=2)
        return in_heading(vectors, heading(now.char.root_rot).view(-1, 1, 1)).flatten(1)

    def reward(self, now: StepState) -> Tensor:
        """:func:`dodge_reward`."""
        return dodge_reward(now.char.root_pos, now.char.root_vel, self._scene.engine.object_pos)

    def measures(self, now: StepState) -> Tensor:
        """``task_reward`` [N, 1]."""
        return self.reward(now).unsqueeze(-1)

    def draw(self) -> list[Marker]:
        """The balls of environment 0."""
        rotation = torch.tensor([0.0, 0.0, 0.0, 1.0])
        return [Marker(locate(BALL), place, rotation, ORANGE) for place in self._scene.engine.object_pos[0]]

    def buffers(self) -> dict[str, Tensor]:
        return {"due": self.due}


def resting_places(count: int) -> list[tuple[float, float, float]]:
    """Where balls lie (m) before they are thrown."""
    return [(10.0 + index, 10.0, RADIUS) for index in range(count)]


class ThrowsDodged(Metric):
    """``success_rate``: share of throws that hit nobody until the next one. Throws that the end of an episode cuts off
    do not count, unless they ended it."""

    def __init__(self, balls: Balls, scene: Scene) -> None:
        super().__init__(("success_rate",), scene.num_envs, scene.device)
        self._balls = balls
        self._flying = torch.zeros_like(balls.hit)

    def measure(self, now: StepState, done: Tensor, valid: Tensor) -> None:
        hit, over = self._balls.hit & self._flying, self._balls.thrown & self._flying
        for index in range(hit.shape[1]):
            dodged = (~hit[:, index]).to(now.time.dtype).unsqueeze(-1)
            self.means.add(dodged, (hit | over)[:, index] & valid)
        self._flying.copy_((self._flying & ~hit | self._balls.thrown) & (done == DoneFlag.NULL).unsqueeze(-1))

    def clear(self) -> None:
        super().clear()
        self._flying.zero_()

    def buffers(self) -> dict[str, Tensor]:
        return {**super().buffers(), "flying": self._flying}


def build_dodgeball(config: DodgeballConfig, setup: Setup) -> Env:
    """Style, and balls to keep away from. A hit ends the episode with early termination."""
    places = resting_places(config.num_projectiles)
    scene = Scene(config, setup, free_objects=tuple(FreeObject(locate(BALL), place, ORANGE) for place in places))
    balls = Balls(config, scene)
    ends = {}
    if config.enable_early_termination:
        ends["hit"] = (DoneFlag.FAIL, lambda now: balls.hit.any(dim=-1))
    return with_goal(config, scene, balls, {
        "goal": StepMean(("task_reward",), balls.measures, scene), "success_rate": ThrowsDodged(balls, scene)}, ends)
