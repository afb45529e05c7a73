"""The physics engine: Newton with its MuJoCo solver, one captured graph per control step.

Frames. Newton keeps the free root's velocity as (velocity of the centre of mass, angular velocity), both in world
axes, a ball joint's rotation and velocity in the parent's anchor frame, and body velocities at centres of mass. This
project speaks of body origins and of ball velocities in the child's own frame. The kernels below convert at this border
and nowhere else:

    v_origin = v_com - w x R c,    w_child = conj(r) w_parent
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mujoco
import numpy as np
import torch
import warp as wp
from newton import Contacts, eval_fk
from newton.sensors import SensorContact
from newton.solvers import SolverMuJoCo

from mimickit.engines.engine import WorldSpec
from mimickit.engines.engine_config import EngineConfig, contact_capacity, load_engine_config, make_engine_config
from mimickit.engines.kernel_cache import cache_key, compile_lock, warp_cache_dir
from mimickit.engines.newton_lean import lean_steps
from mimickit.engines.newton_model import GROUND_LABEL, SPHERICAL, JointLayout, build_world, dof_indices, replicate
from mimickit.engines.newton_solve import fused_solve
from mimickit.engines.variation import Variation
from mimickit.util.failures import UserError

__all__ = ["EngineConfig", "NewtonEngine", "load_engine_config", "make_engine_config"]

_SPHERICAL = wp.constant(SPHERICAL)

# What drive_joints() computes before every substep. Position targets need nothing: the solver holds them.
_DRIVE_NONE = wp.constant(0)
_DRIVE_VELOCITY = wp.constant(1)
_DRIVE_TORQUE = wp.constant(2)
_DRIVE_PD = wp.constant(3)
_DRIVES = {"none": 0, "pos": 0, "vel": 1, "torque": 2, "pd_explicit": 3}

_PUBLIC = {  # the buffers of the contract, and what their last dimension is to a kernel; None: plain numbers
    "command": None, "reset_mask": None, "root_pos": wp.vec3, "root_rot": wp.quat, "root_vel": wp.vec3,
    "root_ang_vel": wp.vec3, "dof_pos": None, "dof_vel": None, "body_pos": wp.vec3, "body_rot": wp.quat,
    "body_vel": wp.vec3, "body_ang_vel": wp.vec3, "contact_force": wp.vec3, "ground_contact_force": wp.vec3,
    "overflow": None,
}
_OF_OBJECTS = {"object_mask": None, "object_pos": wp.vec3, "object_vel": wp.vec3, "object_force": wp.vec3}
_OBJECT_CONTACTS, _OBJECT_ROWS = 4, 16  # further capacity for each free object
_HEIGHTS = int(mujoco.mjtGeom.mjGEOM_HFIELD)
_UNEVEN = 2  # times the capacity on uneven ground

# Bits of mujoco_warp.OverflowType that mean dropped contacts (broad phase, narrow phase, convex pairs, height field)
# or dropped constraint rows (rows, non-zeros). The iteration-limit bits mean neither.
_CONTACT_BITS = wp.constant((1 << 2) | (1 << 3) | (1 << 4) | (1 << 5))
_CONSTRAINT_BITS = wp.constant((1 << 0) | (1 << 1))


@wp.struct
class _Joints:
    """The moving joints of the character (:class:`JointLayout`), and gains and limits of its dofs."""

    kind: wp.array[int]
    q: wp.array[int]
    qd: wp.array[int]
    dof: wp.array[int]
    coords_per_world: int
    velocities_per_world: int
    stiffness: wp.array[float]
    damping: wp.array[float]
    effort: wp.array[float]
    lower: wp.array[float]
    upper: wp.array[float]


@wp.func
def _positive(q: wp.quat):
    """The same rotation with w >= 0."""
    return wp.where(q[3] < 0.0, wp.quat(-q[0], -q[1], -q[2], -q[3]), q)


@wp.func
def _exp_map_to_quat(e: wp.vec3):
    """Rotation by |e| about e; identity where the angle, wrapped to (-pi, pi], is below 1e-5."""
    length = wp.length(e)
    angle = wp.atan2(wp.sin(length), wp.cos(length))
    if wp.abs(angle) <= 1.0e-5:
        return wp.quat_identity()
    axis = (wp.sin(0.5 * angle) / length) * e
    return wp.quat(axis[0], axis[1], axis[2], wp.cos(0.5 * angle))


@wp.func
def _quat_to_exp_map(q_in: wp.quat):
    """Exponential map of a rotation, norm at most pi; zero where the vector part is below 1e-5."""
    q = _positive(q_in)
    u = wp.vec3(q[0], q[1], q[2])
    length = wp.length(u)
    if length <= 1.0e-5:
        return wp.vec3()
    return (2.0 * wp.atan2(length, q[3]) / length) * u


@wp.func
def _quat_at(values: wp.array[float], i: int):
    return wp.quat(values[i], values[i + 1], values[i + 2], values[i + 3])


@wp.func
def _vec3_at(values: wp.array[float], i: int):
    return wp.vec3(values[i], values[i + 1], values[i + 2])


@wp.kernel(enable_backward=False)
def _reset_root(
    mask: wp.array[wp.bool],
    root_pos: wp.array[wp.vec3],
    root_rot: wp.array[wp.quat],
    root_vel: wp.array[wp.vec3],
    root_ang_vel: wp.array[wp.vec3],
    body_com: wp.array[wp.vec3],
    bodies_per_world: int,
    joints: _Joints,
    joint_q: wp.array[float],
    joint_qd: wp.array[float],
):
    """State of the free root of masked worlds; one thread a world."""
    w = wp.tid()
    if not mask[w]:
        return
    p = root_pos[w]
    r = wp.normalize(root_rot[w])
    omega = root_ang_vel[w]
    v_com = root_vel[w] + wp.cross(omega, wp.quat_rotate(r, body_com[w * bodies_per_world]))
    q = w * joints.coords_per_world
    qd = w * joints.velocities_per_world
    for i in range(3):
        joint_q[q + i] = p[i]
        joint_qd[qd + i] = v_com[i]
        joint_qd[qd + 3 + i] = omega[i]
    for i in range(4):
        joint_q[q + 3 + i] = r[i]


@wp.kernel(enable_backward=False)
def _reset_joints(
    mask: wp.array[wp.bool],
    dof_pos: wp.array2d[float],
    dof_vel: wp.array2d[float],
    joints: _Joints,
    joint_q: wp.array[float],
    joint_qd: wp.array[float],
):
    """State of the joints of masked worlds; one thread a world and joint."""
    w, j = wp.tid()
    if not mask[w]:
        return
    q = w * joints.coords_per_world + joints.q[j]
    qd = w * joints.velocities_per_world + joints.qd[j]
    d = joints.dof[j]
    if joints.kind[j] == _SPHERICAL:
        r = _exp_map_to_quat(wp.vec3(dof_pos[w, d], dof_pos[w, d + 1], dof_pos[w, d + 2]))
        omega = wp.quat_rotate(r, wp.vec3(dof_vel[w, d], dof_vel[w, d + 1], dof_vel[w, d + 2]))
        for i in range(4):
            joint_q[q + i] = r[i]
        for i in range(3):
            joint_qd[qd + i] = omega[i]
    else:
        joint_q[q] = dof_pos[w, d]
        joint_qd[qd] = dof_vel[w, d]


@wp.kernel(enable_backward=False)
def _clear_contacts(
    mask: wp.array[wp.bool], contact_force: wp.array2d[wp.vec3], ground_contact_force: wp.array2d[wp.vec3]
):
    """Contact forces of masked worlds become zero; one thread a world and body."""
    w, b = wp.tid()
    if mask[w]:
        contact_force[w, b] = wp.vec3()
        ground_contact_force[w, b] = wp.vec3()


@wp.kernel(enable_backward=False)
def _write_targets(
    command: wp.array2d[float],
    joints: _Joints,
    joint_target_q: wp.array[float],
):
    """Position targets in coordinate layout; one thread a world and joint."""
    w, j = wp.tid()
    q = w * joints.coords_per_world + joints.q[j]
    d = joints.dof[j]
    if joints.kind[j] == _SPHERICAL:
        r = _exp_map_to_quat(wp.vec3(command[w, d], command[w, d + 1], command[w, d + 2]))
        for i in range(4):
            joint_target_q[q + i] = r[i]
    else:
        joint_target_q[q] = command[w, d]


@wp.kernel(enable_backward=False)
def _drive_joints(
    drive: int,
    spherical_limits: int,
    command: wp.array2d[float],
    joints: _Joints,
    joint_q: wp.array[float],
    joint_qd: wp.array[float],
    joint_target_qd: wp.array[float],
    joint_f: wp.array[float],
):
    """Velocity targets or joint torques from the current state, before a substep; one thread a world and joint."""
    w, j = wp.tid()
    q = w * joints.coords_per_world + joints.q[j]
    qd = w * joints.velocities_per_world + joints.qd[j]
    d = joints.dof[j]
    if joints.kind[j] == _SPHERICAL:
        r = _quat_at(joint_q, q)
        value = wp.vec3(command[w, d], command[w, d + 1], command[w, d + 2])
        torque = wp.vec3()
        if drive == _DRIVE_VELOCITY:
            target = wp.quat_rotate(r, value)
            for i in range(3):
                joint_target_qd[qd + i] = target[i]
        if drive == _DRIVE_TORQUE:
            for i in range(3):
                torque[i] = wp.clamp(value[i], -joints.effort[d + i], joints.effort[d + i])
        if spherical_limits != 0:
            e = _quat_to_exp_map(r)
            for i in range(3):
                torque[i] += joints.stiffness[d + i] * (wp.clamp(e[i], joints.lower[d + i], joints.upper[d + i]) - e[i])
        torque = wp.quat_rotate(r, torque)
        for i in range(3):
            joint_f[qd + i] = torque[i]
    else:
        if drive == _DRIVE_VELOCITY:
            joint_target_qd[qd] = command[w, d]
        if drive == _DRIVE_TORQUE:
            joint_f[qd] = wp.clamp(command[w, d], -joints.effort[d], joints.effort[d])
        if drive == _DRIVE_PD:
            torque_pd = joints.stiffness[d] * (command[w, d] - joint_q[q]) - joints.damping[d] * joint_qd[qd]
            joint_f[qd] = wp.clamp(torque_pd, -joints.effort[d], joints.effort[d])


@wp.kernel(enable_backward=False)
def _collect_overflow(solver_overflow: wp.array[int], overflow_bits: wp.array[int]):
    """The solver forgets its flags at every substep; keep them until the control step ends."""
    w = wp.tid()
    overflow_bits[w] = overflow_bits[w] | solver_overflow[w]


@wp.kernel(enable_backward=False)
def _count_overflow(overflow_bits: wp.array[int], overflow: wp.array[wp.int64]):
    w = wp.tid()
    if (overflow_bits[w] & _CONTACT_BITS) != 0:
        wp.atomic_add(overflow, 0, wp.int64(1))
    if (overflow_bits[w] & _CONSTRAINT_BITS) != 0:
        wp.atomic_add(overflow, 1, wp.int64(1))
    overflow_bits[w] = 0


@wp.kernel(enable_backward=False)
def _read_bodies(
    body_q: wp.array[wp.transform],
    body_qd: wp.array[wp.spatial_vector],
    body_com: wp.array[wp.vec3],
    bodies_per_world: int,
    body_pos: wp.array2d[wp.vec3],
    body_rot: wp.array2d[wp.quat],
    body_vel: wp.array2d[wp.vec3],
    body_ang_vel: wp.array2d[wp.vec3],
    root_pos: wp.array[wp.vec3],
    root_rot: wp.array[wp.quat],
    root_vel: wp.array[wp.vec3],
    root_ang_vel: wp.array[wp.vec3],
):
    """Body poses and origin velocities; one thread a world and body."""
    w, b = wp.tid()
    i = w * bodies_per_world + b
    p = wp.transform_get_translation(body_q[i])
    r = wp.transform_get_rotation(body_q[i])
    omega = wp.spatial_bottom(body_qd[i])
    v = wp.spatial_top(body_qd[i]) - wp.cross(omega, wp.quat_rotate(r, body_com[i]))
    body_pos[w, b] = p
    body_rot[w, b] = r
    body_vel[w, b] = v
    body_ang_vel[w, b] = omega
    if b == 0:
        root_pos[w] = p
        root_rot[w] = r
        root_vel[w] = v
        root_ang_vel[w] = omega


@wp.kernel(enable_backward=False)
def _read_joints(
    joint_q: wp.array[float],
    joint_qd: wp.array[float],
    joints: _Joints,
    dof_pos: wp.array2d[float],
    dof_vel: wp.array2d[float],
):
    """Dof positions and velocities; one thread a world and joint."""
    w, j = wp.tid()
    q = w * joints.coords_per_world + joints.q[j]
    qd = w * joints.velocities_per_world + joints.qd[j]
    d = joints.dof[j]
    if joints.kind[j] == _SPHERICAL:
        r = _quat_at(joint_q, q)
        e = _quat_to_exp_map(r)
        omega = wp.quat_rotate_inv(r, _vec3_at(joint_qd, qd))
        for i in range(3):
            dof_pos[w, d + i] = e[i]
            dof_vel[w, d + i] = omega[i]
    else:
        dof_pos[w, d] = joint_q[q]
        dof_vel[w, d] = joint_qd[qd]


@wp.kernel(enable_backward=False)
def _reset_objects(
    mask: wp.array2d[wp.bool],
    object_pos: wp.array2d[wp.vec3],
    object_vel: wp.array2d[wp.vec3],
    q: wp.array[int],
    qd: wp.array[int],
    joints: _Joints,
    joint_q: wp.array[float],
    joint_qd: wp.array[float],
):
    """State of masked free objects; one thread a world and object."""
    w, k = wp.tid()
    if not mask[w, k]:
        return
    i = w * joints.coords_per_world + q[k]
    j = w * joints.velocities_per_world + qd[k]
    for axis in range(3):
        joint_q[i + axis] = object_pos[w, k][axis]
        joint_q[i + 3 + axis] = 0.0
        joint_qd[j + axis] = object_vel[w, k][axis]
        joint_qd[j + 3 + axis] = 0.0
    joint_q[i + 6] = 1.0
    mask[w, k] = False


@wp.kernel(enable_backward=False)
def _read_objects(
    body_q: wp.array[wp.transform],
    body_qd: wp.array[wp.spatial_vector],
    body_com: wp.array[wp.vec3],
    bodies_per_world: int,
    bodies: wp.array[int],
    object_pos: wp.array2d[wp.vec3],
    object_vel: wp.array2d[wp.vec3],
):
    """Positions and origin velocities of free objects; one thread a world and object."""
    w, k = wp.tid()
    i = w * bodies_per_world + bodies[k]
    r = wp.transform_get_rotation(body_q[i])
    object_pos[w, k] = wp.transform_get_translation(body_q[i])
    object_vel[w, k] = wp.spatial_top(body_qd[i]) - wp.cross(
        wp.spatial_bottom(body_qd[i]), wp.quat_rotate(r, body_com[i]))


class NewtonEngine:
    """Implements :class:`mimickit.engines.engine.Engine`; see there for shapes, units and frames.

    Args:
        spec: what stands in every world.
        config: see :class:`EngineConfig`.
        num_envs: number of worlds, N.
        device: ``cpu`` or ``cuda:<i>``; becomes the current device of torch and Warp in this process.

    Raises:
        AssetMissingError: a model file does not exist.
        UserError: the files or settings do not fit together.
    """

    def __init__(self, spec: WorldSpec, config: EngineConfig, num_envs: int, device: str | torch.device) -> None:
        if num_envs < 1:
            raise UserError(f"num_envs must be at least 1, got {num_envs}")
        started = time.perf_counter()
        cache_dir = warp_cache_dir()
        self.device = _select_device(torch.device(device))
        self.config = config
        self.spec = spec
        self.num_envs = num_envs
        self.control_dt = 1.0 / config.control_freq
        self.sim_dt = 1.0 / config.sim_freq
        capacity, measured = contact_capacity(spec.char_file, config)
        room = _UNEVEN if spec.roughness > 0.0 else 1
        if not measured:
            print(
                f"contact capacity of {Path(spec.char_file).stem} was never measured: reserving {capacity.njmax} "
                f"constraint rows and {capacity.nconmax} contacts per world (data/engines/contact_capacity.yaml)"
            )
        world, facts = build_world(spec, config)
        _check_control(config, facts.layout, spec)
        self._facts = facts
        self.body_names = facts.body_names
        self.num_dofs = facts.layout.num_dofs
        self.total_mass = facts.total_mass
        with _no_garbage_collection(), compile_lock(engine_key(spec, config, num_envs, self._wp_device), cache_dir):
            self.model = replicate(world, num_envs, self._wp_device, spec.roughness)
            try:
                self.solver = SolverMuJoCo(
                    self.model, solver="newton", integrator="implicitfast", cone="pyramidal", use_mujoco_contacts=True,
                    njmax=room * capacity.njmax + _OBJECT_ROWS * self._num_objects,
                    nconmax=room * capacity.nconmax + _OBJECT_CONTACTS * self._num_objects,
                    iterations=config.solver_iterations, ls_iterations=config.solver_ls_iterations,
                    impratio=config.impratio, tolerance=1e-8, jacobian=config.jacobian,
                    kinematic_switchable_roots=False,
                )
            except ValueError as error:  # MuJoCo's compiler, which names the body
                raise UserError(f"{spec.char_file}: the solver refuses it: {' '.join(str(error).split())}") from error
            self.solver.mjw_model.opt.warn_overflow = 0  # iteration limits would print from the device by the thousand
            self._allocate()
            self._synchronize()
            self._control_step(substeps=1)  # loads every kernel: nothing may be loaded while a graph is captured
            self._graph = self._capture(lambda: self._control_step(config.substeps))
            self._flush_graph = self._capture(self._flush)
            if self.device.type == "cuda":  # the first launch instantiates a graph
                self._synchronize()
                self.step()
                self.flush()
        self._restart()
        self.startup_s = time.perf_counter() - started

    @property
    def _wp_device(self) -> str:
        return str(self.device)

    @property
    def _num_objects(self) -> int:
        """K."""
        return len(self.spec.free_objects)

    @property
    def _each_joint(self) -> tuple[int, int]:
        """A thread for each world and joint."""
        return self.num_envs, len(self._facts.layout.kind)

    def _allocate(self) -> None:
        """The public buffers, and what the graphs read and write besides."""
        n, b, d = self.num_envs, len(self.body_names), self.num_dofs

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self.command = zeros(n, d)
        self._reset_mask = zeros(n + 1, dtype=torch.bool)  # Newton's last entry stands for what belongs to no world
        self.reset_mask = self._reset_mask[:n]
        self.root_pos, self.root_rot = zeros(n, 3), zeros(n, 4)
        self.root_vel, self.root_ang_vel = zeros(n, 3), zeros(n, 3)
        self.dof_pos, self.dof_vel = zeros(n, d), zeros(n, d)
        self.body_pos, self.body_rot = zeros(n, b, 3), zeros(n, b, 4)
        self.body_vel, self.body_ang_vel = zeros(n, b, 3), zeros(n, b, 3)
        self.object_mask = zeros(n, self._num_objects, dtype=torch.bool)
        self.object_pos, self.object_vel = zeros(n, self._num_objects, 3), zeros(n, self._num_objects, 3)
        self.overflow = zeros(2, dtype=torch.int64)
        self.state = self.model.state()
        self.control = self.model.control()
        self._overflow_bits = wp.zeros(n, dtype=int, device=self._wp_device)
        self._streams: dict[int, wp.Stream] = {}
        self._allocate_contacts()
        self._joints = self._make_joints()
        mode = self.config.control_mode if self.spec.motors else "none"
        self._has_targets = mode == "pos"
        self._drive = _DRIVES[mode]
        self._drives = self._drive != 0 or self.config.spherical_limits
        self._variation = self._make_variation() if self.spec.varied else None
        if self._variation is not None:
            vars(self).update(self._variation.buffers)
        self._lean = (lean_steps(self.solver.mjw_model, self.solver.mjw_data, self._drives)
                      if self.config.lean_steps and self._variation is None else None)
        public = _PUBLIC | (_OF_OBJECTS if self._num_objects else {})
        self._public = {name: getattr(self, name) for name in public}
        self._wp = {"mask": wp.from_torch(self._reset_mask),
                    **{name: wp.from_torch(self._public[name], dtype=dtype) for name, dtype in public.items()}}
        self._free_bodies, self._free_q, self._free_qd = (
            wp.array(getattr(self._facts, name), dtype=int, device=self._wp_device)
            for name in ("free_bodies", "free_q", "free_qd"))
        # everything besides the public buffers that a step reads and writes
        self._persistent = {
            "joint_q": wp.to_torch(self.state.joint_q),
            "joint_qd": wp.to_torch(self.state.joint_qd),
            "qacc_warmstart": wp.to_torch(self.solver.mjw_data.qacc_warmstart),
            **(self._variation.buffers if self._variation is not None else {}),
        }

    def _allocate_contacts(self) -> None:
        """The contact sensor, whose own arrays are the public buffers of forces."""
        n, b, stride = self.num_envs, len(self.body_names), self._facts.bodies_per_world
        sensing = [*range(b), *self._facts.free_bodies.tolist()]
        self._sensor = SensorContact(
            self.model, sensing_bodies=[w * stride + i for w in range(n) for i in sensing],
            counterpart_shapes=[self._ground_shape()], request_contact_attributes=False,
        )
        self._contacts = Contacts(self.solver.get_max_contact_count(), 0, device=self._wp_device)
        self._observables = self.solver.observables(
            kinds=self._sensor.solver_observable_kinds, contacts=self._contacts
        )
        total = wp.to_torch(self._sensor.total_force).view(n, len(sensing), 3)
        self.contact_force, self.object_force = total[:, :b], total[:, b:]
        self.ground_contact_force = wp.to_torch(self._sensor.force_matrix).view(n, len(sensing), 3)[:, :b]

    def _make_joints(self) -> _Joints:
        joints, layout, facts = _Joints(), self._facts.layout, self._facts
        for name in ("kind", "q", "qd", "dof"):
            setattr(joints, name, wp.array(getattr(layout, name), dtype=int, device=self._wp_device))
        for name in ("stiffness", "damping", "effort", "lower", "upper"):
            setattr(joints, name, wp.array(getattr(facts, name), dtype=float, device=self._wp_device))
        joints.coords_per_world, joints.velocities_per_world = layout.coords_per_world, layout.velocities_per_world
        return joints

    def _make_variation(self) -> Variation:
        dof_of = {int(place): dof for dof, place in enumerate(dof_indices(self._facts.layout))}
        dofs = np.array([dof_of[place] for place in self.solver.mjc_actuator_to_newton_idx.numpy().tolist()], np.int32)
        ground = int(np.flatnonzero(self.solver.mj_model.geom_type == _HEIGHTS)[0]) if self.spec.roughness else None
        return Variation(self.model, self.solver, dofs, ground, self.num_envs, len(self.body_names), self.num_dofs,
                         self.device)

    def _ground_shape(self) -> int:
        return next(i for i, label in enumerate(self.model.shape_label) if label.rsplit("/", 1)[-1] == GROUND_LABEL)

    # --- what the graphs contain ----------------------------------------------------------------------------------

    def _launch(self, kernel: wp.Kernel, dim: int | tuple[int, ...], inputs: list) -> None:
        wp.launch(kernel, dim=dim, inputs=inputs, device=self._wp_device)

    def _control_step(self, substeps: int) -> None:
        self._apply_resets()
        if self._has_targets and self._variation is None:
            self._write_targets(self._wp["command"])
        for i in range(substeps):
            if self._variation is not None:
                self._variation.delay(i, self._wp["command"])
                self._write_targets(self._variation.applied)
            if self._drives:
                self._drive_joints()
            last = i == substeps - 1
            with self._solving(), self._leanly(i == 0, last):
                self.solver.step(
                    self.state, self.state, self.control, self._contacts if last else None, self.sim_dt,
                    observables=self._observables if last else None,
                )
            if last or self._lean is None:
                self._launch(_collect_overflow, self.num_envs, [self.solver.mjw_data.overflow, self._overflow_bits])
        if self._variation is not None:
            self._variation.end_step(self._wp["command"])
        self._sensor.update(None, self._contacts, observables=self._observables)
        self._launch(_count_overflow, self.num_envs, [self._overflow_bits, self._wp["overflow"]])
        self._read_out()

    def _solving(self) -> contextlib.AbstractContextManager[None]:
        if not self.config.fused_solve:
            return contextlib.nullcontext()
        return fused_solve(self.solver.mjw_model, self.solver.mjw_data)

    def _leanly(self, first: bool, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._lean is None else self._lean.substep(first, last)

    def _flush(self) -> None:
        self._apply_resets()
        eval_fk(self.model, self.state.joint_q, self.state.joint_qd, self.state)
        self._read_out()

    def _apply_resets(self) -> None:
        b = self._wp
        if not self.spec.fixed_root:
            self._launch(_reset_root, self.num_envs, [
                b["mask"], b["root_pos"], b["root_rot"], b["root_vel"], b["root_ang_vel"], self.model.body_com,
                self._facts.bodies_per_world, self._joints, self.state.joint_q, self.state.joint_qd,
            ])
        self._launch(_reset_joints, self._each_joint, [
            b["mask"], b["dof_pos"], b["dof_vel"], self._joints, self.state.joint_q, self.state.joint_qd,
        ])
        if self._num_objects:
            self._launch(_reset_objects, (self.num_envs, self._num_objects), [
                b["object_mask"], b["object_pos"], b["object_vel"], self._free_q, self._free_qd, self._joints,
                self.state.joint_q, self.state.joint_qd,
            ])
        self._launch(_clear_contacts, (self.num_envs, len(self.body_names)), [
            b["mask"], b["contact_force"], b["ground_contact_force"],
        ])
        if self._variation is not None:
            self._variation.write(b["mask"])
        self.solver.reset(self.state, b["mask"], flags=0)
        b["mask"].zero_()

    def _write_targets(self, command: wp.array) -> None:
        self._launch(_write_targets, self._each_joint, [command, self._joints, self.control.joint_target_q])

    def _drive_joints(self) -> None:
        self._launch(_drive_joints, self._each_joint, [
            self._drive, int(self.config.spherical_limits), self._wp["command"], self._joints, self.state.joint_q,
            self.state.joint_qd, self.control.joint_target_qd, self.control.joint_f,
        ])

    def _read_out(self) -> None:
        b = self._wp
        self._launch(_read_bodies, (self.num_envs, len(self.body_names)), [
            self.state.body_q, self.state.body_qd, self.model.body_com, self._facts.bodies_per_world,
            b["body_pos"], b["body_rot"], b["body_vel"], b["body_ang_vel"],
            b["root_pos"], b["root_rot"], b["root_vel"], b["root_ang_vel"],
        ])
        self._launch(_read_joints, self._each_joint, [
            self.state.joint_q, self.state.joint_qd, self._joints, b["dof_pos"], b["dof_vel"],
        ])
        if self._num_objects:
            self._launch(_read_objects, (self.num_envs, self._num_objects), [
                self.state.body_q, self.state.body_qd, self.model.body_com, self._facts.bodies_per_world,
                self._free_bodies, b["object_pos"], b["object_vel"],
            ])

    def _capture(self, function: Callable[[], None]) -> wp.Graph:
        with wp.ScopedCapture(device=self._wp_device, force_module_load=False) as capture:
            function()
        return capture.graph

    def _restart(self) -> None:
        """Forget the step that loaded the kernels: spawn pose, at rest, nothing pending."""
        self._synchronize()
        self.contact_force.zero_()
        self.ground_contact_force.zero_()
        self.overflow.zero_()
        self.state.joint_q.assign(self.model.joint_q)
        self.state.joint_qd.zero_()
        self.solver.reset(self.state, flags=0)
        self._flush()
        self._synchronize()

    def _synchronize(self) -> None:
        """Wait for torch's and Warp's streams; only while building and closing."""
        wp.synchronize_device(self._wp_device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # --- the contract ---------------------------------------------------------------------------------------------

    def step(self) -> None:
        """See :meth:`mimickit.engines.engine.Engine.step`."""
        wp.capture_launch(self._graph, stream=self._stream())

    def flush(self) -> None:
        """See :meth:`mimickit.engines.engine.Engine.flush`."""
        wp.capture_launch(self._flush_graph, stream=self._stream())

    def set_masses(self) -> None:
        """See :meth:`mimickit.engines.engine.Engine.set_masses`."""
        self._synchronize()
        self._variation.write_masses()
        self._synchronize()

    def clear_overflow(self) -> None:
        """Zero the overflow counters."""
        self.overflow.zero_()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of all buffers a step reads or writes."""
        return {name: tensor.clone() for name, tensor in {**self._public, **self._persistent}.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            UserError: names or shapes do not fit (another character or number of worlds).
        """
        own = {**self._public, **self._persistent}
        if set(state) != set(own):
            raise UserError(f"engine state has {sorted(state)}, this engine needs {sorted(own)}")
        wrong = [f"{k}: {tuple(state[k].shape)} instead of {tuple(own[k].shape)}" for k in own
                 if state[k].shape != own[k].shape]
        if wrong:
            raise UserError(
                f"engine state of another character or number of worlds (this engine has {self.num_envs}): "
                + "; ".join(wrong)
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])
        if self._variation is not None:
            self._synchronize()
            self._variation.write(wp.ones(self.num_envs + 1, dtype=wp.bool, device=self._wp_device))
            self.set_masses()

    def close(self) -> None:
        """Release graphs and device memory."""
        self._synchronize()
        self._graph = self._flush_graph = None
        self._streams.clear()
        self.solver = self.model = self.state = self.control = self._lean = None
        self._sensor = self._contacts = self._observables = None

    def _stream(self) -> wp.Stream | None:
        """Warp's handle of torch's current stream; None on the CPU."""
        if self.device.type != "cuda":
            return None
        current = torch.cuda.current_stream(self.device)
        if current.cuda_stream not in self._streams:
            self._streams[current.cuda_stream] = wp.stream_from_torch(current)
        return self._streams[current.cuda_stream]


def _select_device(device: torch.device) -> torch.device:
    """Make ``device`` current in torch and Warp, so that nothing of this process lands on device 0."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device '{device}' was asked for, but torch finds no CUDA device here; use 'cpu'")
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(f"device '{device}' was asked for, this machine has {torch.cuda.device_count()}")
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UserError(f"device '{device}' is not supported; use 'cpu' or 'cuda:<index>'")
    wp.set_device(str(device))
    return device


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Building makes a million objects that live on: collecting among them costs a third of the start-up time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_control(config: EngineConfig, layout: JointLayout, spec: WorldSpec) -> None:
    if config.control_mode == "pd_explicit" and (layout.kind == SPHERICAL).any():
        raise UserError(
            f"control_mode 'pd_explicit' works for characters with hinges only; {spec.char_file} has spherical "
            "joints (three hinges on one body). Use control_mode 'pos'"
        )
    if spec.varied and (config.control_mode != "pos" or not spec.motors):
        raise UserError(f"worlds that differ (disturbances) need control_mode 'pos', not '{config.control_mode}'")


def engine_key(spec: WorldSpec, config: EngineConfig, num_envs: int, device: str) -> str:
    """Kernels depend on the model's sizes, on the settings, on the kind of device, and on one world or several."""
    files = [Path(f).read_bytes() for f in (spec.char_file, *(o.file for o in (*spec.objects, *spec.free_objects)))]
    architecture = "cpu" if device == "cpu" else f"sm_{wp.get_device(device).arch}"
    return cache_key(files, spec.fixed_root, spec.self_collision, spec.motors, config, num_envs == 1, architecture,
                     *((spec.varied, spec.roughness > 0.0) if spec.varied else ()))
