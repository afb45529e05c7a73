"""A world that disturbs the loop: the disturbances of :mod:`mimickit.envs.disturbances` in plain MuJoCo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from mimickit.deploy.loop import World
from mimickit.deploy.observation import State
from mimickit.engines.ground import BASE, HALF, POINTS, SHIFT, heights

if TYPE_CHECKING:
    from mimickit.deploy.loop import Loop

VARIED = ("geom_friction", "geom_pos", "body_mass", "body_inertia", "body_ipos", "actuator_gainprm", "actuator_biasprm",
          "actuator_forcerange", "jnt_actfrcrange")
GROUND = "ground"


class DisturbedWorld(World):
    """Everything is drawn anew for each episode.

    Args:
        settings: :class:`~mimickit.envs.disturbances.Disturbances`.
    """

    def __init__(self, settings: Any) -> None:
        self._settings = settings

    def load(self, file: str) -> mujoco.MjModel:
        rough = self._settings.roughness
        if rough == 0.0:
            return super().load(file)
        spec = mujoco.MjSpec.from_file(file)
        spec.add_hfield(name=GROUND, nrow=POINTS, ncol=POINTS, size=[HALF, HALF, rough, BASE],
                        userdata=(heights() + 1.0).ravel())
        ground = spec.geom(GROUND)
        ground.type, ground.hfieldname, ground.pos = mujoco.mjtGeom.mjGEOM_HFIELD, GROUND, [0.0, 0.0, -rough]
        return spec.compile()

    def begin(self, loop: Loop, rng: np.random.Generator) -> None:
        settings, model = self._settings, loop.model
        if not hasattr(self, "_nominal"):
            self._nominal = {name: getattr(model, name).copy() for name in VARIED}
            self._sensed = mujoco.MjData(model)
        self._loop, self._rng = loop, rng
        for name, value in self._nominal.items():
            getattr(model, name)[:] = value
        dofs, bodies = len(loop.policy.dofs), loop.character.bodies

        def factor(pair: tuple[float, float] | None, size: int | None = None) -> Any:
            return 1.0 if pair is None else rng.uniform(*pair, size)

        model.geom_friction[:, 0] *= factor(settings.friction)
        mass = np.broadcast_to(factor(settings.mass, len(bodies)), len(bodies))
        model.body_mass[bodies] *= mass
        model.body_inertia[bodies] *= mass[:, None]
        model.body_ipos[bodies[0]] += self._error(settings.com, 3)
        strength = factor(settings.motor_strength)
        stiffness, damping = (strength * factor(pair, dofs) for pair in (settings.stiffness, settings.damping))
        model.actuator_gainprm[:, 0] *= stiffness
        model.actuator_biasprm[:, 1] *= stiffness
        model.actuator_biasprm[:, 2] *= damping
        model.actuator_forcerange *= strength
        model.jnt_actfrcrange *= strength
        if settings.roughness:
            model.geom_pos[model.geom(GROUND).id, :2] += rng.uniform(-SHIFT, SHIFT, 2)
        mujoco.mj_setConst(model, self._sensed)
        self._offset = self._error(settings.joint_offset, dofs)
        self._offset[loop.balls] = 0.0
        latency = 0.0 if settings.latency is None else rng.uniform(*settings.latency)
        self._delay = round(latency / model.opt.timestep)
        self._before: np.ndarray | None = None
        self._until = np.inf if settings.push_interval is None else rng.uniform(*settings.push_interval)

    def sense(self, now: State) -> State:
        """Errors are added in the tangent space; bodies are where the joints, as measured, have them."""
        settings, loop, sensed = self._settings, self._loop, self._sensed
        dofs = len(self._offset)
        position, velocity = np.zeros(loop.model.nv), np.zeros(loop.model.nv)
        position[:3] = self._error(settings.noise_root_position, 3)
        position[3:6] = self._error(settings.noise_root_rotation, 3)
        position[6:6 + dofs] = self._error(settings.noise_joint_position, dofs) + self._offset
        velocity[:3] = self._error(settings.noise_root_velocity, 3)
        velocity[3:6] = self._error(settings.noise_root_angular_velocity, 3)
        velocity[6:6 + dofs] = self._error(settings.noise_joint_velocity, dofs)
        sensed.qpos[:] = loop.data.qpos
        mujoco.mj_integratePos(loop.model, sensed.qpos, position, 1.0)
        mujoco.mj_kinematics(loop.model, sensed)
        return loop.character.state(sensed)._replace(
            root_vel=now.root_vel + velocity[:3], root_ang_vel=now.root_ang_vel + velocity[3:6],
            dof_vel=now.dof_vel + velocity[6:6 + dofs])

    def drive(self, data: mujoco.MjData, controls: np.ndarray, substep: int) -> None:
        if substep == 0:
            self._controls = controls - self._offset
            if self._before is None:  # the pose in which the episode begins holds until the first command arrives
                mujoco.mj_forward(self._loop.model, data)
                self._before = data.actuator_length.copy()
            self._push(data)
        data.ctrl[:] = self._before if substep < self._delay else self._controls
        if substep == self._loop.policy.substeps - 1:
            self._before = self._controls

    def _push(self, data: mujoco.MjData) -> None:
        settings = self._settings
        if self._until < 0.5 * self._loop.dt:
            data.qvel[:2] += self._error(settings.push_velocity, 2)
            data.qvel[3:6] += self._error(settings.push_angular_velocity, 3)
            self._until = self._rng.uniform(*settings.push_interval)
        self._until -= self._loop.dt

    def _error(self, amount: float, size: int) -> np.ndarray:
        return self._rng.uniform(-amount, amount, size) if amount else np.zeros(size)
