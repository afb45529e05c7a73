"""Disturbances: worlds that differ, noisy sensors, late commands, pushes ("domain randomisation", Tobin et al. 2017).

Off unless the settings ask for them. Values of a world are drawn on the device when its episode begins; masses and
centres of mass once, when the environment is built, since the solver's constants follow from them. What physics knows
is written into the engine's buffers (:class:`~mimickit.engines.engine.Engine`), the rest is done here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.anim.mjcf import JointKind
from mimickit.engines.engine import Engine
from mimickit.engines.ground import SHIFT
from mimickit.envs.disturbance_config import Disturbances
from mimickit.envs.terms import CharState, Memory, StepState, overwrite
from mimickit.util.failures import UserError
from mimickit.util.graphs import Graphed
from mimickit.util.rotations import exp_map_to_quat, quat_mul


def uniform(shape: tuple[int, ...], pair: tuple[float, float], device: torch.device) -> Tensor:
    """Numbers drawn uniformly from a range."""
    return pair[0] + (pair[1] - pair[0]) * torch.rand(shape, device=device)


def measured(char: CharState, errors: Tensor, offset: Tensor, character: Character) -> CharState:
    """What sensors say of characters [N, ...] and what a robot computes from that: body poses follow from the joints.

    Args:
        errors: [N, 12 + 2 D]: of the root's position (m), rotation (rad, in its own axes), velocity (m/s) and angular
            velocity (rad/s); of dofs (rad) and their velocities (rad/s).
        offset: [N, D] rad, zeros of the encoders: a joint at q reads q + offset.
    """
    root, turn, vel, ang_vel, rest = errors.split([3, 3, 3, 3, errors.shape[1] - 12], dim=1)
    dof, dof_vel = rest.chunk(2, dim=1)
    root_pos, root_rot = char.root_pos + root, quat_mul(char.root_rot, exp_map_to_quat(turn))
    joint_rot = quat_mul(char.joint_rot, character.dof_to_rot(dof + offset))
    body_pos, body_rot = character.forward_kinematics(root_pos, root_rot, joint_rot)
    return CharState(root_pos, root_rot, char.root_vel + vel, char.root_ang_vel + ang_vel, joint_rot,
                     char.dof_vel + dof_vel, body_pos, body_rot)


class Disturbed(Memory):
    """What disturbs the characters of an engine.

    Args:
        settings: at least one of them is on; :func:`check` found nothing wrong.
    """

    def __init__(self, settings: Disturbances, engine: Engine, character: Character) -> None:
        self._settings, self._engine, self._character = settings, engine, character
        device, n, d = engine.device, engine.num_envs, engine.num_dofs
        self._draws = {  # of an episode, by the engine's buffer
            name: (shape, pair) for name, shape, pair in (
                ("friction", (n,), settings.friction), ("stiffness", (n, d), settings.stiffness),
                ("damping", (n, d), settings.damping), ("strength", (n,), settings.motor_strength),
                ("delay", (n,), settings.latency),
                ("ground_shift", (n, 2), (-SHIFT, SHIFT) if settings.roughness else None)) if pair is not None}
        self._offset = torch.zeros(n, d, device=device)
        joints = zip(character.model.joint_kinds, character.model.dof_slices, strict=True)
        zeros = [settings.joint_offset * (kind is JointKind.HINGE) for kind, span in joints
                 for _ in range(span.stop - span.start)]
        self._encoders = torch.tensor(zeros).to(device)  # ball joints have none
        self._until = torch.zeros(n, device=device)  # s, to the next push
        sizes = (3, 3, 3, 3, d, d)
        amplitudes = [x for x, size in zip(settings.noise, sizes, strict=True) for _ in range(size)]
        kick = [settings.push_velocity] * 2 + [0.0] + [settings.push_angular_velocity] * 3
        self._amplitudes, self._kick = (torch.tensor(values).to(device) for values in (amplitudes, kick))
        self._pictured = torch.arange(n, device=device).view(n, 1) == 0
        self._act = Graphed(self._disturb, device, state=[
            engine.command, engine.root_vel, engine.root_ang_vel, engine.reset_mask, self._until])
        if settings.mass is not None:
            engine.mass.copy_(uniform(engine.mass.shape, settings.mass, device))
        if settings.com:
            engine.com.copy_(uniform((n, 3), (-settings.com, settings.com), device))
        if settings.mass is not None or settings.com:
            engine.set_masses()

    @property
    def senses(self) -> bool:
        """Whether sensors err."""
        return any(self._settings.noise) or self._settings.joint_offset > 0.0

    def sense(self, char: CharState) -> CharState:
        """What the policy observes instead of the characters' true state."""
        shape = len(self._until), len(self._amplitudes)
        errors = self._amplitudes * uniform(shape, (-1.0, 1.0), self._until.device)
        return measured(char, errors, self._offset, self._character)

    def before_physics(self) -> None:
        if self._settings.joint_offset or self._settings.push_interval is not None:
            self._act()

    def reset(self, mask: Tensor, start: StepState) -> None:
        engine, settings = self._engine, self._settings
        for name, (shape, pair) in self._draws.items():
            drawn = uniform(shape, pair, engine.device)
            if name == "delay":
                drawn = torch.round(drawn / engine.sim_dt).to(torch.int32)
            elif name == "ground_shift":
                drawn = drawn.masked_fill(self._pictured, 0.0)
            overwrite(mask, drawn, getattr(engine, name))
        if settings.latency is not None:
            overwrite(mask, self._character.rot_to_dof(start.char.joint_rot), engine.previous_command)
        if settings.joint_offset:
            drawn = uniform(self._offset.shape, (-1.0, 1.0), engine.device)
            overwrite(mask, self._encoders * drawn, self._offset)
        if settings.push_interval is not None:
            overwrite(mask, uniform(self._until.shape, settings.push_interval, engine.device), self._until)

    def buffers(self) -> dict[str, Tensor]:
        return {"offset": self._offset, "until_push": self._until}

    def written(self) -> list[Tensor]:
        """The engine's buffers that episodes begin with."""
        names = [*self._draws, *(["previous_command"] if self._settings.latency is not None else [])]
        return [getattr(self._engine, name) for name in names]

    def _disturb(self) -> None:
        """Commands as the motors understand them, and pushes; runs as a CUDA graph."""
        engine, settings = self._engine, self._settings
        if settings.joint_offset:
            engine.command.sub_(self._offset)
        if settings.push_interval is None:
            return
        due = self._until < 0.5 * engine.control_dt
        kick = self._kick * uniform((len(due), 6), (-1.0, 1.0), due.device) * due.unsqueeze(-1)
        engine.root_vel.add_(kick[:, :3])
        engine.root_ang_vel.add_(kick[:, 3:])
        engine.reset_mask.logical_or_(due)  # physics goes on from the state in the engine's buffers
        pause = uniform(due.shape, settings.push_interval, due.device)
        self._until.copy_(torch.where(due, pause, self._until) - engine.control_dt)


def check(settings: Disturbances, control_mode: str, dt: float, where: str) -> None:
    """Raises UserError for settings that do not fit the engine.

    Args:
        dt: s, a control step.
        where: the settings came from, for messages.
    """
    key = f"{where}: key 'disturbances"
    if (settings.varies or settings.joint_offset) and control_mode != "pos":
        raise UserError(f"{key}' needs control_mode 'pos', this one is '{control_mode}'; with others only noise and "
                        "pushes are possible")
    if settings.latency is not None and settings.latency[1] > dt + 1e-9:
        raise UserError(f"{key}.latency' = {list(settings.latency)}: at most one control step, {dt:.4g} s")
