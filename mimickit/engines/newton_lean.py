"""Physics steps without the kernels that do nothing for a model.

Newton's MuJoCo solver launches the same kernels for every model. Some of them compute zeros that nothing reads, or what
only a control step's end needs. Each is left out under the condition that makes the result the same to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any
from unittest import mock

import mujoco_warp as mjw
import warp as wp

from mimickit.engines.newton_solve import other_version

BODY_KINEMATICS = frozenset({"eval_articulation_fk"})  # Newton's body poses: read after the last substep alone
_CLOSURE = "__locals__kernel"


def idle_kernels(m: mjw.Model, joint_forces: bool) -> frozenset[str]:
    """Names of the kernels that do nothing for a model, whose outputs hold zeros since a first complete step.

    Args:
        joint_forces: forces are applied to joints other than the root's; to bodies and the root they never are.
    """
    if other_version():
        return frozenset()
    springs = _any(m.jnt_stiffness, m.jnt_stiffnesspoly, m.dof_damping, m.dof_dampingpoly)
    lifted = _any(m.body_gravcomp)
    conditions = {
        f"_friction_dof{_CLOSURE}": not _any(m.dof_frictionloss),
        "_spring_damper_dof_passive": not springs,
        f"_gravity_force{_CLOSURE}": not lifted,
        f"_qfrc_passive_kernel{_CLOSURE}":
            not (springs or lifted or m.ntendon or m.nflex or m.has_fluid or m.flg_adhesion),
        "_qfrc_actuator_gravcomp_limits": not (_any(m.jnt_actfrclimited) or lifted),
        "_qderiv_tendon_damping": m.ntendon == 0,
        "_next_activation": m.na == 0,
        "apply_mjc_qfrc_kernel": not joint_forces,
        "apply_mjc_body_f_kernel": True,
        "apply_mjc_free_joint_f_to_body_f_kernel": True,
        "_apply_ft": True,
    }
    return frozenset(name for name, idle in conditions.items() if idle)


@contextlib.contextmanager
def without(kernels: Collection[str]) -> Iterator[None]:
    """Kernels of these names are not launched inside."""
    if not kernels:
        yield
        return
    launch: Callable[..., Any] = wp.launch

    def filtered(kernel: wp.Kernel, *args: Any, **options: Any) -> Any:
        return None if kernel.key in kernels else launch(kernel, *args, **options)

    with mock.patch.object(wp, "launch", filtered):
        yield


def _any(*arrays: wp.array) -> bool:
    """Whether an array holds anything but zeros."""
    return any(array.numpy().any() for array in arrays)
