"""The character's observation against numbers computed by hand."""

from pathlib import Path

import pytest
import torch

from mimickit.anim.character import Character
from mimickit.envs.observations import char_observation
from mimickit.envs.terms import CharState
from mimickit.util.rotations import exp_map_to_quat

ROOT = Path(__file__).resolve().parents[2]
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
    from mimickit.util.rotations import axis_angle_to_quat, quat_mul, quat_rotate

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
