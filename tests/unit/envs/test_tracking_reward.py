"""Reward and measures of motion tracking against numbers computed by hand."""

import math

import pytest
import torch

from mimickit.envs.tracking_reward import MEASURES, position_error, reward_errors, tracking_errors, tracking_reward
from mimickit.util.means import Means
from mimickit.util.rotations import quat_diff_angle
from tests.unit.tracking_case import KEY, S, T, shifted

WEIGHTS = torch.tensor([0.5, 0.1, 0.15, 0.1, 0.15])
SCALES = torch.tensor([0.25, 0.01, 5, 1, 10])
JOINT_W = torch.tensor([1.0, 0.6])
DOF_W = torch.tensor([1.0, 1.0, 1.0, 0.6])

TABLE = [  # track_root, height, pose, vel, root pose, root vel, key, reward
    (True, True, 0.974426, 0.991536, 0.94513, 0.941765, 0.947432, 0.964427),
    (True, False, 0.974426, 0.991536, 0.947022, 0.941765, 0.947432, 0.964711),
    (False, True, 0.974426, 0.991536, 0.97824, 0.934161, 0.836521, 0.951997),
    (False, False, 0.974426, 0.991536, 0.980199, 0.934161, 0.836521, 0.952291),
]


def reward_of(char, ref, key=KEY, track_root=True, height=True):
    errors = reward_errors(char, ref, key, JOINT_W, DOF_W, track_root, height)
    return tracking_reward(errors, WEIGHTS, SCALES).item()


@pytest.mark.parametrize("row", TABLE)
def test_worked_numbers(row):
    track_root, height, *terms, reward = row
    errors = reward_errors(S, T, KEY, JOINT_W, DOF_W, track_root, height)
    torch.testing.assert_close(torch.exp(-SCALES * errors), torch.tensor([terms]), atol=2e-6, rtol=0)
    assert reward_of(S, T, KEY, track_root, height) == pytest.approx(reward, abs=2e-6)


def test_angles_of_the_case():
    assert quat_diff_angle(S.joint_rot, T.joint_rot)[0].tolist() == pytest.approx([0.222768, 0.3], abs=1e-5)
    assert quat_diff_angle(S.root_rot, T.root_rot).item() == pytest.approx(0.282607, abs=1e-5)


def test_perfect_tracking_earns_one():
    assert reward_of(S, S) == pytest.approx(1.0, abs=1e-6)


def test_horizontal_place_counts_only_when_the_root_is_tracked():
    assert reward_of(shifted(S, 1.0), T, track_root=False) == pytest.approx(reward_of(S, T, track_root=False), abs=1e-6)
    assert reward_of(shifted(S, 1.0), T) < reward_of(S, T) - 0.1


def test_without_key_bodies_the_term_is_constant():
    none = torch.zeros(0, dtype=torch.int64)
    errors = reward_errors(S, T, none, JOINT_W, DOF_W, True, True)
    assert errors[0, 4] == 0.0
    assert reward_of(S, S, none) == pytest.approx(1.0, abs=1e-6)


def test_tracking_errors():
    expected = [0.057446, 0.282607, 0.036742, 0.252688, 0.425, 0.1, 0.133333]
    assert tracking_errors(S, T)[0].tolist() == pytest.approx(expected, abs=2e-6)
    assert len(expected) == len(MEASURES)


def test_means_leave_invalid_samples_out():
    means = Means(("a", "b"), 2, torch.device("cpu"))
    means.add(torch.tensor([[1.0, 2.0], [math.nan, math.inf]]), torch.tensor([True, False]))
    means.add(torch.tensor([[3.0, 4.0], [5.0, 9.0]]), torch.tensor([True, True]))
    assert {k: v.item() for k, v in means.means().items()} == {"a": 3.0, "b": 5.0}
    total, count = means.per_env()["b"]
    assert total.tolist() == [6.0, 9.0] and count.tolist() == [2.0, 1.0]
    means.clear()
    assert all(math.isnan(v.item()) for v in means.means().values())


def test_position_error():
    """Of one joint: offset (0.03, -0.06, 0.03) m from the root, and of the root itself (0.05, -0.02, 0.02) m."""
    assert position_error(S, T).tolist() == pytest.approx([(math.sqrt(0.0054) + math.sqrt(0.0033)) / 2], abs=1e-6)
    root, body = tracking_errors(S, T)[0, [0, 2]].tolist()
    assert position_error(S, T).item() == pytest.approx(body + root / 2, abs=1e-6), "two bodies"
