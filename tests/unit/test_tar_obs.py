"""Phase and target observations against numbers computed by hand."""

import math

import pytest
import torch

from mimickit.envs.observations import phase_observation, target_observation
from mimickit.envs.terms import CharState
from mimickit.util.rotations import quat_mul
from tests.unit.tracking_case import KEY, S, T, rot


def targets() -> CharState:
    """T, and T moved by (0.1, 0.05, 0.01), turned by 0.1 rad about Z, its key body moved by (0.1, 0, 0.02)."""
    one_joint = T._replace(joint_rot=T.joint_rot[:, :1])
    root_pos = T.root_pos + torch.tensor([0.1, 0.05, 0.01])
    second = one_joint._replace(
        root_pos=root_pos, root_rot=quat_mul(rot("z", 0.1), T.root_rot),
        body_pos=torch.stack([root_pos, T.body_pos[:, 1] + torch.tensor([0.1, 0.0, 0.02])], dim=1),
    )
    return CharState(*(torch.stack([a, b], dim=1) for a, b in zip(one_joint, second, strict=True)))


JOINT = [0.975187, 0.118357, -0.187088, 0.206939, -0.187088, 0.960299]
EXPECTED = {
    True: [
        [0.05, -0.02, 0.92, 0.761021, 0.640999, 0.099833, -0.076357, -0.064314, 0.995004, *JOINT, 0.33, 0.04, -0.47],
        [0.15, 0.03, 0.93, 0.693226, 0.713772, 0.099834, -0.069555, -0.071616, 0.995004, *JOINT, 0.33, -0.01, -0.46],
    ],
    False: [
        [0, 0, 0.92, 0.995004, 0, 0.099833, -0.099833, 0, 0.995004, *JOINT, 0.278167, -0.181998, -0.47],
        [0.108695, -0.02618, 0.93, 0.990033, 0.099335, 0.099833, -0.099335, -0.009967, 0.995004, *JOINT, 0.245956,
         -0.22024, -0.46],
    ],
}


@pytest.mark.parametrize("global_obs", [True, False])
@pytest.mark.parametrize("height", [True, False])
def test_worked_numbers(global_obs, height):
    obs = target_observation(S.root_pos, targets(), KEY, global_obs, height)
    expected = torch.tensor(EXPECTED[global_obs])
    if not height:
        expected = torch.cat([expected[:, :2], expected[:, 3:]], dim=1)
    torch.testing.assert_close(obs, expected.flatten().unsqueeze(0), atol=1e-5, rtol=0)


def test_local_targets_do_not_tell_the_own_horizontal_error():
    far = S.root_pos + torch.tensor([5.0, 3.0, 0.0])
    near, away = (target_observation(p, targets(), KEY, False, True) for p in (S.root_pos, far))
    torch.testing.assert_close(near, away, rtol=0, atol=0)


def test_phase():
    frequencies = torch.tensor([2 * math.pi, 4 * math.pi])
    obs = phase_observation(torch.tensor([0.3, 0.0]), frequencies)
    expected = torch.tensor([[0.3, 0.951056, -0.587786, -0.309017, -0.809017], [0, 0, 0, 1, 1]])
    torch.testing.assert_close(obs, expected, atol=1e-5, rtol=0)


def test_phase_without_encoding():
    assert phase_observation(torch.tensor([0.3]), torch.zeros(0)).tolist() == [[pytest.approx(0.3)]]
