"""Why episodes end: each condition at its border."""

import pytest
import torch

from mimickit.envs.env import steps_of
from mimickit.envs.termination import contact_failure, pose_failure
from mimickit.util.rotations import quat_mul, quat_rotate
from tests.unit.tracking_case import S, T, rot, shifted

UNLISTED, LISTED = 0, 1
FORBIDDEN = torch.tensor([True, False])


def force(body: int, value: float) -> torch.Tensor:
    forces = torch.zeros(1, 2, 3)
    forces[0, body, 1] = value
    return forces


@pytest.mark.parametrize(("body", "value", "fails"), [
    (UNLISTED, 0.11, True), (UNLISTED, -0.11, True), (UNLISTED, 0.1, False), (LISTED, 500.0, False),
])
def test_contact(body, value, fails):
    assert contact_failure(force(body, value), FORBIDDEN).item() is fails


@pytest.mark.parametrize(("track_root", "global_obs", "shift", "fails"), [
    (True, True, 1.01, True), (True, True, 1.0, False), (False, True, 1.01, False), (False, False, 1.01, False),
])
def test_pose(track_root, global_obs, shift, fails):
    at_origin = S._replace(root_pos=torch.zeros(1, 3), body_pos=torch.zeros(1, 2, 3))
    assert pose_failure(at_origin, shifted(at_origin, shift), 1.0, track_root, global_obs).item() is fails


def test_relative_pose_ignores_own_rotation_only_without_global_obs():
    turn = quat_mul(rot("z", 2.0), rot("x", 0.7))  # more than a heading: the full rotation must be taken out
    offset = S.body_pos - S.root_pos.unsqueeze(1)
    turned = S._replace(
        root_rot=quat_mul(turn, S.root_rot), body_pos=S.root_pos.unsqueeze(1) + quat_rotate(turn, offset)
    )
    assert pose_failure(turned, S, 0.1, track_root=False, global_obs=True).item()
    assert not pose_failure(turned, S, 0.1, track_root=False, global_obs=False).item()


def test_one_body_suffices():
    lost = T._replace(body_pos=T.body_pos + torch.tensor([[[0.0, 0, 0], [0, 0.6, 0]]]))
    assert pose_failure(lost, T, 0.5, track_root=False, global_obs=True).item()
    assert not pose_failure(lost, T, 0.7, track_root=False, global_obs=True).item()


@pytest.mark.parametrize(("seconds", "dt", "steps"), [(10.0, 1 / 30, 300), (20.0, 1 / 30, 600), (0.05, 1 / 30, 2),
                                                      (float("inf"), 1 / 30, None), (112.0, 1 / 30, 3360)])
def test_episode_length_in_steps(seconds, dt, steps):
    assert steps_of(seconds, dt) == steps
