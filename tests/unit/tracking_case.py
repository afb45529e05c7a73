"""A simulated state S and a reference T, small enough to compute by hand: 2 bodies {root, key}."""

from __future__ import annotations

import torch

from mimickit.envs.terms import CharState
from mimickit.util.rotations import axis_angle_to_quat, exp_map_to_quat, quat_mul

KEY = torch.tensor([1])


def rot(axis: str, angle: float) -> torch.Tensor:
    unit = torch.zeros(3)
    unit["xyz".index(axis)] = 1.0
    return axis_angle_to_quat(unit, torch.tensor(angle))


def state(root_pos, root_rot, key, vel=(0, 0, 0), ang_vel=(0, 0, 0), joints=(), dof_vel=(0, 0, 0, 0)) -> CharState:
    """Joints: exponential maps. The key body's rotation is the first joint's."""
    def numbers(*values):
        return torch.tensor(values, dtype=torch.float32)

    joint_rot = torch.stack([exp_map_to_quat(numbers(*e)) for e in joints])
    parts = CharState(
        numbers(*root_pos), root_rot, numbers(*vel), numbers(*ang_vel), joint_rot, numbers(*dof_vel),
        torch.stack([numbers(*root_pos), numbers(*key)]), torch.stack([root_rot, joint_rot[0]]),
    )
    return CharState(*(x.unsqueeze(0) for x in parts))


S = state(
    (1, 2, 0.9), quat_mul(rot("z", 0.5), rot("y", 0.1)), (1.3, 2.1, 0.4), (1, 0, 0), (0, 0, 0.5),
    [(0.1, 0.2, 0.3), (0, 0.5, 0)], (0.1, 0.2, 0.3, 1),
)
T = state(
    (1.05, 1.98, 0.92), quat_mul(rot("z", 0.7), rot("y", -0.1)), (1.38, 2.02, 0.45), (1.2, 0.1, 0), (0.1, 0, 0.2),
    [(0.2, 0.2, 0.1), (0, 0.8, 0)], (0.5, 0.2, 0, 2),
)


def shifted(state: CharState, x: float) -> CharState:
    """The same state, x m farther along the world's X."""
    offset = torch.tensor([x, 0.0, 0.0])
    return state._replace(root_pos=state.root_pos + offset, body_pos=state.body_pos + offset)
