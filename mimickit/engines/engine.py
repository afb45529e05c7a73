"""The contract between environments and a physics engine.

An engine simulates ``N`` identical worlds. It owns static torch buffers (shapes fixed for its life time, never
reallocated) that environments read and write in place; nothing here ever waits for the device.

Life of a control step, as the environment drives it::

    engine.command.copy_(action)     # targets, see EngineConfig.control_mode
    engine.step()                    # 1. apply pending resets  2. substeps  3. sensors  4. read-out into the buffers
    ...                              # environment reads the buffers: observation, reward, done
    engine.root_pos.copy_(torch.where(mask, new, old)); ...    # environment overwrites the state of finished worlds
    engine.reset_mask.copy_(mask)    # and marks them; the next step() starts them from the written state

All quantities are SI, Z up, quaternions (x, y, z, w), float32, each world in its own frame (no grid offset). Linear
velocities are of body *origins*, never of centres of mass. Dofs are packed in joint order (depth first): a hinge has
1 number (rad), a spherical joint 3 (exponential map of the child's rotation relative to rest; velocity = angular
velocity in the child's own frame).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch


@dataclass(frozen=True)
class StaticObject:
    """A fixed, colliding object: file (MJCF), pose in the world, colour RGB in [0, 1]."""

    file: Path
    pos: tuple[float, float, float]
    rot: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    color: tuple[float, float, float] = (0.3, 0.3, 0.3)


@dataclass(frozen=True)
class FreeObject:
    """A body that moves by physics: file (MJCF of one body), where it lies at first, colour RGB in [0, 1]."""

    file: Path
    pos: tuple[float, float, float]
    color: tuple[float, float, float] = (0.3, 0.3, 0.3)


@dataclass(frozen=True)
class WorldSpec:
    """What stands in every world.

    Attributes:
        char_file: MJCF of the one articulated character.
        init_root_pos: [3] m; init_root_rot: [4] xyzw; init_dof_pos: [D] spawn pose. Empty dof tuple means zeros.
        fixed_root: weld the root to its spawn pose (dof test).
        self_collision: bodies of the character collide with each other (parent and child never do).
        motors: False leaves every joint without control force (view_motion).
        objects: fixed colliding objects.
        free_objects: K objects that move.
        color: colour of the character.
        varied: worlds differ, see :class:`Engine`; ``control_mode`` pos only.
        roughness: m; how deep the holes of an uneven ground are; 0: a plane. Needs ``varied``.
    """

    char_file: Path
    init_root_pos: tuple[float, float, float] = (0.0, 0.0, 0.0)
    init_root_rot: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    init_dof_pos: tuple[float, ...] = ()
    fixed_root: bool = False
    self_collision: bool = True
    motors: bool = True
    objects: tuple[StaticObject, ...] = field(default_factory=tuple)
    free_objects: tuple[FreeObject, ...] = field(default_factory=tuple)
    color: tuple[float, float, float] = (0.35, 0.45, 0.7)
    varied: bool = False
    roughness: float = 0.0


class Engine(Protocol):
    """A batch of simulated worlds. ``N`` worlds, ``B`` bodies of the character, ``D`` dofs, ``K`` free objects."""

    device: torch.device
    num_envs: int
    control_dt: float  # s, one call of step()
    sim_dt: float  # s, one substep
    body_names: tuple[str, ...]  # depth first, root first; B names
    num_dofs: int
    total_mass: float  # kg

    # input
    command: torch.Tensor  # [N, D] target positions (pos, pd_explicit), velocities (vel) or torques (torque)
    reset_mask: torch.Tensor  # [N] bool: worlds that restart from the state buffers at the next step() or flush()

    # state, written by step(), overwritten by the environment for worlds in reset_mask
    root_pos: torch.Tensor  # [N, 3] m
    root_rot: torch.Tensor  # [N, 4] xyzw
    root_vel: torch.Tensor  # [N, 3] m/s, of the root body's origin, world axes
    root_ang_vel: torch.Tensor  # [N, 3] rad/s, world axes
    dof_pos: torch.Tensor  # [N, D]
    dof_vel: torch.Tensor  # [N, D]

    # output of step() only; for worlds in reset_mask the environment writes body poses from its own kinematics
    body_pos: torch.Tensor  # [N, B, 3] m, body origins
    body_rot: torch.Tensor  # [N, B, 4] xyzw
    body_vel: torch.Tensor  # [N, B, 3] m/s, of body origins, world axes
    body_ang_vel: torch.Tensor  # [N, B, 3] rad/s, world axes
    contact_force: torch.Tensor  # [N, B, 3] N, total on each body, world axes
    ground_contact_force: torch.Tensor  # [N, B, 3] N, from the ground plane only

    # free objects: written by step() and flush(), overwritten by the environment for those in object_mask
    object_mask: torch.Tensor  # [N, K] bool: objects that go on from the next two, not turned and without spin
    object_pos: torch.Tensor  # [N, K, 3] m, body origins
    object_vel: torch.Tensor  # [N, K, 3] m/s, of body origins
    object_force: torch.Tensor  # [N, K, 3] N, total contact force; output of step() only

    # what differs between worlds, with WorldSpec.varied: written by the environment, taken over with reset_mask
    friction: torch.Tensor  # [N] factor of sliding friction, of all contacts
    stiffness: torch.Tensor  # [N, D] factor of kp
    damping: torch.Tensor  # [N, D] factor of kd
    strength: torch.Tensor  # [N] factor of the motors' torques and of their limits
    delay: torch.Tensor  # [N] int32, substeps by which a command comes late, one control step at most
    previous_command: torch.Tensor  # [N, D] what holds until then; step() writes it too
    ground_shift: torch.Tensor  # [N, 2] m, where the uneven ground lies
    mass: torch.Tensor  # [N, B] factor of masses and inertias; this and com are taken over by set_masses() alone
    com: torch.Tensor  # [N, 3] m, by which the root's centre of mass is off

    # health, accumulated on the device since clear_overflow(): worlds x control steps in which the solver dropped
    # contacts [0] or constraint rows [1]
    overflow: torch.Tensor  # [2] int64

    def step(self) -> None:
        """Advance all worlds by one control step: one captured graph on CUDA and on CPU; no host synchronisation.

        Work is queued on torch's current stream of the device.
        """

    def flush(self) -> None:
        """Apply pending resets now (state, kinematics, solver warm start), clear reset_mask; for the viewer."""

    def set_masses(self) -> None:
        """Take over ``mass`` and ``com`` of all worlds. May wait for the device: not for a step."""

    def clear_overflow(self) -> None:
        """Zero the overflow counters."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything needed to continue the simulation exactly (on the same kind of device)."""

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what :meth:`state_dict` returned. Raises UserError when shapes do not fit."""

    def close(self) -> None:
        """Release device memory."""
