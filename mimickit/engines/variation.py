"""What differs between worlds: friction, masses, gains, motor strength, latency, where the uneven ground lies.

The one place that writes such values into the solver's model, whose arrays have a row for each world
(:class:`~mimickit.engines.engine.Engine` has the meaning of the buffers). Everything but :meth:`Variation.write_masses`
is launched inside the graph of a control step.
"""

from __future__ import annotations

import numpy as np
import torch
import warp as wp
from newton import Model, ModelFlags
from newton.solvers import SolverMuJoCo
from torch import Tensor

_vec10 = wp.types.vector(length=10, dtype=wp.float32)  # MuJoCo's parameters of a gain or bias


@wp.kernel(enable_backward=False)
def _write_friction(
    mask: wp.array[wp.bool],
    factor: wp.array[float],
    nominal: wp.array2d[wp.vec3],
    friction: wp.array2d[wp.vec3],
):
    """Sliding friction of masked worlds; one thread a world and geom."""
    w, g = wp.tid()
    if mask[w]:
        f = nominal[w, g]
        friction[w, g] = wp.vec3(factor[w] * f[0], f[1], f[2])


@wp.kernel(enable_backward=False)
def _write_gains(
    mask: wp.array[wp.bool],
    dof: wp.array[int],
    stiffness: wp.array2d[float],
    damping: wp.array2d[float],
    strength: wp.array[float],
    nominal_gain: wp.array2d[_vec10],
    nominal_bias: wp.array2d[_vec10],
    nominal_range: wp.array2d[wp.vec2],
    gain: wp.array2d[_vec10],
    bias: wp.array2d[_vec10],
    force_range: wp.array2d[wp.vec2],
):
    """Position controllers of masked worlds, force = kp (target - q) - kd q'; one thread a world and actuator."""
    w, a = wp.tid()
    if mask[w]:
        d = dof[a]
        g = nominal_gain[w, a]
        b = nominal_bias[w, a]
        g[0] = strength[w] * stiffness[w, d] * g[0]
        b[1] = strength[w] * stiffness[w, d] * b[1]
        b[2] = strength[w] * damping[w, d] * b[2]
        gain[w, a] = g
        bias[w, a] = b
        force_range[w, a] = strength[w] * nominal_range[w, a]


@wp.kernel(enable_backward=False)
def _write_joint_limits(
    mask: wp.array[wp.bool],
    strength: wp.array[float],
    nominal_range: wp.array2d[wp.vec2],
    force_range: wp.array2d[wp.vec2],
):
    """Torque limits of masked worlds' hinges; one thread a world and joint."""
    w, j = wp.tid()
    if mask[w]:
        force_range[w, j] = strength[w] * nominal_range[w, j]


@wp.kernel(enable_backward=False)
def _write_ground(
    mask: wp.array[wp.bool],
    ground: int,
    shift: wp.array2d[float],
    geom_xpos: wp.array2d[wp.vec3],
):
    """Place of masked worlds' ground, which the solver's kinematics leave where it is; one thread a world."""
    w = wp.tid()
    if mask[w]:
        geom_xpos[w, ground] = wp.vec3(shift[w, 0], shift[w, 1], geom_xpos[w, ground][2])


@wp.kernel(enable_backward=False)
def _delay(
    substep: int,
    delay: wp.array[int],
    before: wp.array2d[float],
    command: wp.array2d[float],
    applied: wp.array2d[float],
):
    """The command that has arrived in a substep; one thread a world and dof."""
    w, d = wp.tid()
    applied[w, d] = wp.where(substep < delay[w], before[w, d], command[w, d])


class Variation:
    """Buffers of what differs between worlds, all nominal at first, and the way into the solver's model.

    Args:
        actuator_dofs: [nu] dof that each of the solver's actuators drives.
        ground: geom of the uneven ground; None: the ground is flat.
        num_bodies: B, of the character, which come first in a world.
    """

    def __init__(self, model: Model, solver: SolverMuJoCo, actuator_dofs: np.ndarray, ground: int | None,
                 num_envs: int, num_bodies: int, num_dofs: int, device: torch.device) -> None:
        self._model, self._solver, self._ground = model, solver, ground
        n, b, d = num_envs, num_bodies, num_dofs
        self.buffers: dict[str, Tensor] = {
            **{name: torch.ones(shape, device=device) for name, shape in (
                ("friction", (n,)), ("stiffness", (n, d)), ("damping", (n, d)), ("strength", (n,)), ("mass", (n, b)))},
            **{name: torch.zeros(shape, device=device) for name, shape in (
                ("com", (n, 3)), ("ground_shift", (n, 2)), ("previous_command", (n, d)))},
            "delay": torch.zeros(n, dtype=torch.int32, device=device),
        }
        self._wp = {name: wp.from_torch(tensor) for name, tensor in self.buffers.items() if name not in ("mass", "com")}
        self.applied = wp.zeros((n, d), dtype=float, device=str(device))
        self._dofs = wp.array(actuator_dofs, dtype=int, device=str(device))
        m = solver.mjw_model
        self._varied = {name: getattr(m, name) for name in (
            "geom_friction", "actuator_gainprm", "actuator_biasprm", "actuator_forcerange", "jnt_actfrcrange")}
        assert all(array.shape[0] == n for array in self._varied.values()), "one row for each world"
        self._nominal = {name: wp.clone(array) for name, array in self._varied.items()}
        self._bodies = {name: wp.to_torch(getattr(model, name)).view(n, -1, *size)[:, :b] for name, size in (
            ("body_mass", ()), ("body_inertia", (3, 3)), ("body_com", (3,)))}
        self._nominal_bodies = {name: tensor.clone() for name, tensor in self._bodies.items()}

    def write(self, mask: wp.array) -> None:
        """Take over the buffers of masked worlds [N + 1], masses excepted."""
        b, old, new = self._wp, self._nominal, self._varied
        for kernel, columns, inputs in (
            (_write_friction, new["geom_friction"].shape[1], [
                b["friction"], old["geom_friction"], new["geom_friction"]]),
            (_write_gains, len(self._dofs), [
                self._dofs, b["stiffness"], b["damping"], b["strength"], old["actuator_gainprm"],
                old["actuator_biasprm"], old["actuator_forcerange"], new["actuator_gainprm"], new["actuator_biasprm"],
                new["actuator_forcerange"]]),
            (_write_joint_limits, new["jnt_actfrcrange"].shape[1], [
                b["strength"], old["jnt_actfrcrange"], new["jnt_actfrcrange"]]),
        ):
            wp.launch(kernel, dim=(len(self.buffers["friction"]), columns), inputs=[mask, *inputs],
                      device=self.applied.device)
        if self._ground is not None:
            wp.launch(_write_ground, dim=len(self.buffers["friction"]), device=self.applied.device,
                      inputs=[mask, self._ground, b["ground_shift"], self._solver.mjw_data.geom_xpos])

    def write_masses(self) -> None:
        """Take over ``mass`` and ``com`` of all worlds. Too slow for a step: the solver's constants are found anew."""
        mass, nominal = self.buffers["mass"], self._nominal_bodies
        self._bodies["body_mass"].copy_(mass * nominal["body_mass"])
        self._bodies["body_inertia"].copy_(mass[..., None, None] * nominal["body_inertia"])
        self._bodies["body_com"][:, 0] = nominal["body_com"][:, 0] + self.buffers["com"]
        self._solver.notify_model_changed(ModelFlags.BODY_INERTIAL_PROPERTIES)

    def delay(self, substep: int, command: wp.array) -> None:
        """Fill ``applied`` with the command that has arrived in a substep."""
        wp.launch(_delay, dim=self.applied.shape, device=self.applied.device,
                  inputs=[substep, self._wp["delay"], self._wp["previous_command"], command, self.applied])

    def end_step(self, command: wp.array) -> None:
        """The command becomes the previous one."""
        wp.copy(self._wp["previous_command"], command)
