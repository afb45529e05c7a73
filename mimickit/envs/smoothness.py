"""How hard the motors work, and how smoothly: measures of every test. They reward nothing.

Torques and forces are looked at once in a control step, at its end. ``D`` dofs, ``B`` bodies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.anim.mjcf import JointKind
from mimickit.envs.scene import Scene
from mimickit.envs.termination import CONTACT_FORCE_LIMIT
from mimickit.envs.terms import Metric, StepState
from mimickit.util.rotations import wrap_angle

GRAVITY = 9.81  # m/s^2
TINY_ANGLE = 1e-9  # rad
SMOOTHNESS = ("torque", "action_rate", "jerk", "contact_jump")
FOOT_SLIDE = "foot_slide"


class Motors:
    """The torques of a character's controllers.

    Args:
        control_mode: of the engine, one that drives joints.
    """

    def __init__(self, character: Character, control_mode: str) -> None:
        model = character.model
        self._mode = control_mode
        self._kp, self._kd, self._effort = (
            torch.tensor(x, dtype=torch.float32).to(character.device) for x in (model.kp, model.kd, model.effort))
        ball = [kind is JointKind.SPHERICAL for kind, span in zip(model.joint_kinds, model.dof_slices, strict=True)
                for _ in range(span.stop - span.start)]
        self._balls = torch.tensor(ball).nonzero().flatten().to(character.device)

    def torque(self, command: Tensor, dof_pos: Tensor, dof_vel: Tensor) -> Tensor:
        """Torques [..., D] (N m) for commands [..., D], within the joints' limits."""
        match self._mode:
            case "pos" | "pd_explicit":
                torque = self._kp * (self.short_way(command) - dof_pos) - self._kd * dof_vel
            case "vel":
                torque = self._kd * (command - dof_vel)
            case _:
                torque = command
        return torque.clamp(-self._effort, self._effort)

    def short_way(self, command: Tensor) -> Tensor:
        """Targets [..., D] whose rotations of spherical joints are at most pi."""
        turns = command.index_select(-1, self._balls).unflatten(-1, (-1, 3))
        angle = torch.linalg.vector_norm(turns, dim=-1, keepdim=True)
        shorter = turns * (wrap_angle(angle) / angle.clamp_min(TINY_ANGLE))
        return command.index_copy(-1, self._balls, shorter.flatten(-2))


def smoothness(
    torque: Tensor, action: Tensor, action_before: Tensor, dof_vel: Tensor, force: Tensor, force_before: Tensor,
    mass: float, dt: float,
) -> Tensor:
    """The measures [..., 4] in the order of ``SMOOTHNESS``.

    ``torque`` (N m), ``action_rate`` (rad/s), ``jerk`` (rad/s^3): means over dofs of the absolute torque, of the
    change of the action per second, and of the second difference of the velocity over dt^2. ``contact_jump`` (body
    weights): how much the ground's forces on the bodies change within a control step, summed over bodies; a hard
    landing is a large one, standing still none.

    Args:
        torque, action, action_before: [..., D].
        dof_vel: [..., 3, D] rad/s, at the ends of the last three control steps, oldest first.
        force, force_before: [..., B, 3] N, of the ground on each body.
        mass: kg; dt: s.
    """
    oldest, before, now = dof_vel.unbind(dim=-2)
    jerk = (now - 2.0 * before + oldest) / dt**2
    jump = torch.linalg.vector_norm(force - force_before, dim=-1).sum(dim=-1) / (mass * GRAVITY)
    return torch.stack([
        torque.abs().mean(dim=-1), (action - action_before).abs().mean(dim=-1) / dt, jerk.abs().mean(dim=-1), jump,
    ], dim=-1)


def foot_slide(
    body_pos: Tensor, before: Tensor, touches: Tensor, touched: Tensor, dt: float
) -> tuple[Tensor, Tensor]:
    """Mean horizontal speed [...] (m/s) of the bodies that stay on the ground for a control step; whether any does.

    Args:
        body_pos, before: [..., B, 3] m, origins.
        touches, touched: [..., B] bool, :func:`on_ground` after and before the step.
    """
    stays = touches & touched
    speed = torch.linalg.vector_norm((body_pos - before)[..., :2], dim=-1) / dt
    count = stays.sum(dim=-1)
    return (speed * stays).sum(dim=-1) / count.clamp(min=1), count > 0


def on_ground(force: Tensor) -> Tensor:
    """Which bodies [...] the ground bears, by its forces on them [..., 3] (N)."""
    return (force.abs() > CONTACT_FORCE_LIMIT).any(dim=-1)


class Smoothness(Metric):
    """Means of :func:`smoothness` over the steps of a test but the first two of an episode."""

    def __init__(self, scene: Scene, mass: float) -> None:
        super().__init__(SMOOTHNESS, scene.num_envs, scene.device)
        engine = scene.engine
        self._engine, self._mass, self._dt = engine, mass, scene.dt
        self._motors = Motors(scene.character, scene.control_mode)
        self._action = torch.zeros_like(engine.command)
        self._dof_vel = torch.zeros(*engine.dof_vel.shape[:1], 3, engine.dof_vel.shape[1], device=scene.device)
        self._force = torch.zeros_like(engine.ground_contact_force)

    def measure(self, now: StepState, done: Tensor, valid: Tensor) -> None:
        engine = self._engine
        self._dof_vel.copy_(torch.cat([self._dof_vel[:, 1:], engine.dof_vel.unsqueeze(1)], dim=1))
        torque = self._motors.torque(engine.command, engine.dof_pos, engine.dof_vel)
        values = smoothness(torque, engine.command, self._action, self._dof_vel, engine.ground_contact_force,
                            self._force, self._mass, self._dt)
        self.means.add(values, valid & (now.time > 2.5 * self._dt))
        self._action.copy_(engine.command)
        self._force.copy_(engine.ground_contact_force)

    def buffers(self) -> dict[str, Tensor]:
        return {**super().buffers(), "action": self._action, "dof_vel": self._dof_vel, "force": self._force}


class FootSlide(Metric):
    """Mean of :func:`foot_slide` over the steps of a test in which a body stays on the ground."""

    def __init__(self, scene: Scene) -> None:
        super().__init__((FOOT_SLIDE,), scene.num_envs, scene.device)
        self._engine, self._dt = scene.engine, scene.dt
        self._pos = torch.zeros_like(scene.engine.body_pos)
        self._touched = torch.zeros_like(self._pos[..., 0], dtype=torch.bool)

    def measure(self, now: StepState, done: Tensor, valid: Tensor) -> None:
        touches = on_ground(self._engine.ground_contact_force)
        slide, stays = foot_slide(now.char.body_pos, self._pos, touches, self._touched, self._dt)
        self.means.add(slide.unsqueeze(-1), valid & stays & (now.time > 1.5 * self._dt))
        self._pos.copy_(now.char.body_pos)
        self._touched.copy_(touches)

    def buffers(self) -> dict[str, Tensor]:
        return {**super().buffers(), "pos": self._pos, "touched": self._touched}


def smoothness_metrics(scene: Scene) -> dict[str, Metric]:
    """The measures of a driven character."""
    return {"smoothness": Smoothness(scene, scene.engine.total_mass), "foot_slide": FootSlide(scene)}
