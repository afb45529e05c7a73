"""Physics steps with fewer launches, the same to the bit.

Newton's MuJoCo solver launches the same kernels for every model. Some of them compute zeros that nothing reads, or what
only a control step's end needs: each is left out under the condition that makes it idle. Sums over subtrees, a launch a
level of the body tree there, are one launch here, in the order of a single thread; so is the factorisation of a large
sparse inertia (newton_factor.py). What a step clears is cleared by one launch, and its temporary arrays are allocated
once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import mujoco_warp as mjw
import numpy as np
import warp as wp
from mujoco_warp._src import smooth, types

from mimickit.engines.newton_factor import Factorization, fits
from mimickit.engines.newton_solve import other_version

_CLOSURE = "__locals__kernel"
_TEMPORARY_COUNTS = 256  # integers a step may ask for as cleared temporaries, besides one a world


@wp.kernel(enable_backward=False)
def _subtree_com(
    order: wp.array[int],
    parent: wp.array[int],
    mass: wp.array2d[float],
    subtree_mass: wp.array2d[float],
    position: wp.array3d[float],
    com: wp.array3d[float],
):
    """Centres of mass of subtrees; one thread a world and axis."""
    w, k = wp.tid()
    for b in range(com.shape[1]):
        com[w, b, k] = position[w, b, k] * mass[w % mass.shape[0], b]
    for i in range(order.shape[0]):
        b = order[i]
        com[w, parent[b], k] = com[w, parent[b], k] + com[w, b, k]
    for b in range(com.shape[1]):
        m = subtree_mass[w % subtree_mass.shape[0], b]
        if m != 0.0:
            com[w, b, k] = com[w, b, k] / m


@wp.kernel(enable_backward=False)
def _composite_inertia(
    order: wp.array[int], parent: wp.array[int], inertia: wp.array3d[float], composite: wp.array3d[float]
):
    """Inertias of subtrees that do not hang on the world; one thread a world and element."""
    w, k = wp.tid()
    for b in range(composite.shape[1]):
        composite[w, b, k] = inertia[w, b, k]
    for i in range(order.shape[0]):
        b = order[i]
        if parent[b] != 0:
            composite[w, parent[b], k] = composite[w, parent[b], k] + composite[w, b, k]


@wp.kernel(enable_backward=False)
def _subtree_force(order: wp.array[int], parent: wp.array[int], force: wp.array3d[float]):
    """Forces on bodies become those on their subtrees; one thread a world and element."""
    w, k = wp.tid()
    for i in range(order.shape[0]):
        b = order[i]
        force[w, parent[b], k] = force[w, parent[b], k] + force[w, b, k]


@wp.kernel(enable_backward=False)
def _clear(
    inertia: wp.array2d[float],
    actuation: wp.array2d[float],
    collisions: wp.array[int],
    contacts: wp.array[int],
    counts: wp.array[int],
):
    """What every substep adds to; one thread a world and element of its inertia (no fewer than dofs)."""
    w, k = wp.tid()
    inertia[w, k] = 0.0
    if k < actuation.shape[1]:
        actuation[w, k] = 0.0
    if k == 0:
        counts[w] = 0
        if w == 0:
            collisions[0] = 0
            contacts[0] = 0
            for i in range(inertia.shape[0], counts.shape[0]):
                counts[i] = 0


def idle_kernels(m: mjw.Model, joint_forces: bool) -> frozenset[str]:
    """Names of the kernels whose outputs do not change after a first complete step.

    Args:
        joint_forces: forces are applied to joints other than the root's; to bodies and the root they never are.
    """
    springs = _any(m.jnt_stiffness, m.jnt_stiffnesspoly, m.dof_damping, m.dof_dampingpoly)
    conditions = {
        f"_friction_dof{_CLOSURE}": not _any(m.dof_frictionloss),
        "_spring_damper_dof_passive": not springs,
        f"_gravity_force{_CLOSURE}": not _lifted(m),
        f"_qfrc_passive_kernel{_CLOSURE}":
            not (springs or _lifted(m) or m.ntendon or m.nflex or m.has_fluid or m.flg_adhesion),
        "_qfrc_actuator_gravcomp_limits": not (_any(m.jnt_actfrclimited) or _lifted(m)),
        "_qderiv_tendon_damping": m.ntendon == 0,
        "_next_activation": m.na == 0,
        "_comvel_root": True,
        "_cacc_world": True,
        "apply_mjc_qfrc_kernel": not joint_forces,
        "apply_mjc_body_f_kernel": True,
        "apply_mjc_free_joint_f_to_body_f_kernel": True,
        "_apply_ft": True,
    }
    return frozenset(name for name, idle in conditions.items() if idle)


class LeanSteps:
    """Makes the substeps of a control step lean; the first of all is complete but for its sums and temporaries.

    Args:
        m, d: model and data of the solver package, whose arrays stay where they are.
        joint_forces: see :func:`idle_kernels`; without them targets of a control step stay what they are.
    """

    def __init__(self, m: mjw.Model, d: mjw.Data, joint_forces: bool) -> None:
        self.m, self.d = m, d
        self._idle = idle_kernels(m, joint_forces)
        self._idle_later = frozenset() if joint_forces else frozenset({"apply_mjc_control_kernel"})
        self._cleared_once = _pointers(
            m.opt.timestep, None if _lifted(m) else d.qfrc_gravcomp, None if m.flg_adhesion else d.qfrc_adhesion,
            None if m.opt.enableflags & types.EnableBit.ENERGY else d.energy)
        self._cleared_here = _pointers(d.M, d.qfrc_actuator, d.ncollision, d.nacon)
        levels = [level.numpy() for level in reversed(m.body_tree)]
        self._order = wp.array(np.concatenate(levels)[:-1], dtype=int, device=d.qpos.device)  # the world is last
        self._factor_i_sparse = Factorization(m, d.qpos.device) if fits(m) else smooth._factor_i_sparse
        self._temporaries: list[tuple[tuple, wp.array]] = []
        self._asked = self._counts_given = 0
        self._counts = wp.zeros(d.nworld + _TEMPORARY_COUNTS, dtype=int, device=d.qpos.device)
        self._complete = False

    @contextlib.contextmanager
    def substep(self, first: bool, last: bool) -> Iterator[None]:
        """Around one substep of the first and last of a control step, or one between."""
        launch: Callable[..., Any] = wp.launch
        zero, fill = wp.array.zero_, wp.array.fill_
        idle, kept = frozenset(), self._cleared_here
        if self._complete:
            idle, kept = self._idle, kept | self._cleared_once
            if not first:
                idle |= self._idle_later
                kept |= _pointers(self.d.overflow)  # flags add up
            if not last:
                idle |= {"eval_articulation_fk"}  # Newton's body poses
        self._asked = self._counts_given = 0

        def filtered(kernel: wp.Kernel, *args: Any, **options: Any) -> Any:
            return None if kernel.key in idle else launch(kernel, *args, **options)

        def unless_kept(function: Callable[..., None]) -> Callable[..., None]:
            return lambda array, *args: None if array.ptr in kept else function(array, *args)

        d = self.d
        wp.launch(_clear, dim=d.M.shape, inputs=[d.M, d.qfrc_actuator, d.ncollision, d.nacon, self._counts],
                  device=d.M.device)
        with (mock.patch.object(wp, "launch", filtered), mock.patch.object(wp, "empty", self._empty),
              mock.patch.object(wp, "zeros", self._zeros), mock.patch.object(wp.array, "zero_", unless_kept(zero)),
              mock.patch.object(wp.array, "fill_", unless_kept(fill)),
              mock.patch.object(smooth, "com_pos", self._com_pos), mock.patch.object(smooth, "crb", self._crb),
              mock.patch.object(smooth, "_rne_cfrc_backward", self._rne_cfrc_backward),
              mock.patch.object(smooth, "_factor_i_sparse", self._factor_i_sparse)):
            yield
        self._complete = True

    # --- temporary arrays: the n-th of every substep is the same

    def _empty(self, shape: int | tuple[int, ...], dtype: type = float, **options: Any) -> wp.array:
        index, self._asked = self._asked, self._asked + 1
        if index == len(self._temporaries):
            self._temporaries.append(((shape, dtype), wp.array(shape=shape, dtype=dtype, device=self.d.qpos.device)))
        wanted, array = self._temporaries[index]
        return array if wanted == (shape, dtype) else wp.array(shape=shape, dtype=dtype, device=self.d.qpos.device)

    def _zeros(self, shape: int | tuple[int, ...], dtype: type = float, **options: Any) -> wp.array:
        begin, (size, *more) = self._counts_given, shape if isinstance(shape, tuple) else (shape,)
        if dtype is not int or more or begin + size > len(self._counts):
            array = self._empty(shape, dtype)
            array.zero_()
            return array
        self._counts_given += size
        return self._counts[begin:begin + size]

    # --- in place of the package's functions of these names

    def _com_pos(self, m: mjw.Model, d: mjw.Data) -> None:
        com = _floats(d.subtree_com)
        wp.launch(_subtree_com, dim=(d.nworld, 3), inputs=[
            self._order, m.body_parentid, m.body_mass, m.body_subtreemass, _floats(d.xipos), com])
        wp.launch(smooth._cinert, dim=(d.nworld, m.nbody), inputs=[
            m.body_rootid, m.body_mass, m.body_inertia, d.xipos, d.ximat, d.subtree_com], outputs=[d.cinert])
        wp.launch(smooth._cdof, dim=(d.nworld, m.njnt), inputs=[
            m.body_rootid, m.jnt_type, m.jnt_dofadr, m.jnt_bodyid, d.xmat, d.xanchor, d.xaxis, d.subtree_com,
        ], outputs=[d.cdof])

    def _crb(self, m: mjw.Model, d: mjw.Data) -> None:
        wp.launch(_composite_inertia, dim=(d.nworld, 10), inputs=[
            self._order, m.body_parentid, _floats(d.cinert), _floats(d.crb)])
        wp.launch(smooth._M, dim=(d.nworld, m.nv), inputs=[
            m.dof_bodyid, m.dof_parentid, m.dof_armature, m.M_rownnz, m.M_rowadr, d.cdof, d.crb], outputs=[d.M])

    def _rne_cfrc_backward(self, m: mjw.Model, d: mjw.Data) -> None:
        wp.launch(_subtree_force, dim=(d.nworld, 6), inputs=[self._order, m.body_parentid, _floats(d.cfrc_int)])


def lean_steps(m: mjw.Model, d: mjw.Data, joint_forces: bool) -> LeanSteps | None:
    """None for another version of the solver package, or one told to add in a fixed order."""
    return None if other_version() or m.opt.deterministic else LeanSteps(m, d, joint_forces)


def _floats(array: wp.array) -> wp.array:
    """[N, B] of vectors as [N, B, elements] of the same memory."""
    return wp.array(ptr=array.ptr, dtype=float, shape=(*array.shape, array.dtype._length_),
                    strides=(*array.strides, 4), device=array.device)


def _pointers(*arrays: wp.array | None) -> frozenset[int]:
    return frozenset(array.ptr for array in arrays if array is not None and array.ptr)


def _lifted(m: mjw.Model) -> bool:
    return _any(m.body_gravcomp)


def _any(*arrays: wp.array) -> bool:
    """Whether an array holds anything but zeros."""
    return any(array.numpy().any() for array in arrays)
