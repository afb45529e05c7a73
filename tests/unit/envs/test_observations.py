"""Observations of character, phase and targets against numbers computed by hand."""

import math
from pathlib import Path

import pytest
import torch

from mimickit.anim.character import Character
from mimickit.envs.observations import char_observation, phase_observation, target_observation
from mimickit.envs.terms import CharState
from mimickit.util.rotations import axis_angle_to_quat, exp_map_to_quat, quat_mul, quat_rotate
from tests.unit.tracking_case import KEY, S, T, rot

ROOT = Path(__file__).resolve().parents[3]
KEY_BODIES = ("head", "right_hand", "left_hand", "right_foot", "left_foot")


@pytest.fixture(scope="module")
def humanoid():
    return Character.load(ROOT / "data/assets/humanoid/humanoid.xml")


@pytest.fixture(scope="module")
def state(humanoid):
    """A twisted pose with known velocities."""
    values = {
        "torso": (0.1, 0.2, -0.3), "head": (0, -0.4, 0.1), "right_upper_arm": (0.5, 0.2, 1.0),
        "right_lower_arm": (1.1,), "left_lower_arm": (-0.6,), "right_thigh": (-0.3, -0.5, 0.2), "right_shin": (0.8,),
        "right_foot": (0.1, -0.2, 0.05), "left_shin": (0.3,),
    }
    dof = torch.zeros(28)
    for body, angles in values.items():
        dof[humanoid.model.dof_slices[humanoid.body_names.index(body)]] = torch.tensor(angles, dtype=torch.float32)
    root_pos = torch.tensor([1.0, 2.0, 0.9])
    root_rot = exp_map_to_quat(torch.tensor([0.1, -0.2, 0.7]))
    joint_rot = humanoid.dof_to_rot(dof)
    body_pos, body_rot = humanoid.forward_kinematics(root_pos, root_rot, joint_rot)
    state = CharState(
        root_pos, root_rot, torch.tensor([1, 0.5, -0.2]), torch.tensor([0.1, 0.2, 0.3]), joint_rot,
        0.1 * torch.arange(28), body_pos, body_rot,
    )
    return CharState(*(x.unsqueeze(0) for x in state))


EXPECTED = {
    True: {
        0: [0.9, 0.746712, 0.629121, 0.215933, -0.149027, -0.158146, 0.976105, 1, 0.5, -0.2, 0.1, 0.2, 0.3],
        125: [-0.01907, -0.068146, 0.451687],
        137: [-0.024297, 0.116991, -0.81777],
    },
    False: {
        0: [0.9, 0.976408, 0, 0.215933, -0.215866, -0.024922, 0.976105, 1.086915, -0.261945, -0.2, 0.20534, 0.088519,
            0.3],
        125: [-0.058492, -0.039828, 0.451687],
        137: [0.056798, 0.105125, -0.81777],
    },
}


@pytest.mark.parametrize("global_obs", [True, False])
def test_worked_numbers(humanoid, state, global_obs):
    key_ids = torch.tensor([humanoid.body_names.index(name) for name in KEY_BODIES])
    obs = char_observation(state, key_ids, global_obs, root_height_obs=True)
    assert obs.shape == (1, 140)
    blocks = EXPECTED[global_obs] | {13: [0.935755, -0.283165, -0.210192, 0.18054, -0.127335, 0.97529]}
    for start, numbers in blocks.items():
        torch.testing.assert_close(obs[0, start : start + len(numbers)], torch.tensor(numbers), atol=1e-5, rtol=0)
    torch.testing.assert_close(obs[0, 97:125], 0.1 * torch.arange(28), atol=1e-6, rtol=0)


def test_without_height_and_key_bodies(state):
    none = torch.zeros(0, dtype=torch.int64)
    full = char_observation(state, none, global_obs=True, root_height_obs=True)
    low = char_observation(state, none, global_obs=True, root_height_obs=False)
    assert full.shape == (1, 125)  # the dof test of the humanoid
    torch.testing.assert_close(low, full[:, 1:])


def test_heading_frame_does_not_see_heading_or_place(humanoid, state):
    turn = axis_angle_to_quat(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(2.1)).unsqueeze(0)
    key_ids = torch.tensor([humanoid.body_names.index(name) for name in KEY_BODIES])
    moved = state._replace(
        root_pos=quat_rotate(turn, state.root_pos) + torch.tensor([3.0, -7.0, 0.0]),
        root_rot=quat_mul(turn, state.root_rot), root_vel=quat_rotate(turn, state.root_vel),
        root_ang_vel=quat_rotate(turn, state.root_ang_vel),
        body_pos=quat_rotate(turn.unsqueeze(1), state.body_pos) + torch.tensor([3.0, -7.0, 0.0]),
    )
    same = [char_observation(s, key_ids, False, True) for s in (state, moved)]
    torch.testing.assert_close(*same, atol=1e-5, rtol=0)
    other = [char_observation(s, key_ids, True, True) for s in (state, moved)]
    assert (other[0] - other[1]).abs().max() > 0.1


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
TARGETS = {
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
def test_worked_numbers_of_targets(global_obs, height):
    obs = target_observation(S.root_pos, targets(), KEY, global_obs, height)
    expected = torch.tensor(TARGETS[global_obs])
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
