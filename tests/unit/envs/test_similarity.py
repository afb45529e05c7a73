"""Similarity to the clips that no network judges."""

import math

import pytest
import torch

from mimickit.anim.motion import LoopMode
from mimickit.envs.base import EnvMode
from mimickit.envs.disc_obs import ClipWindows
from mimickit.envs.similarity import (
    FAR,
    clip_snippets,
    frechet_distance,
    moments,
    snippet_distance,
    snippets,
    symmetric_root,
)
from mimickit.util.distributed import Distributed
from mimickit.util.rotations import quat_mul, quat_rotate, yaw_quat
from tests.unit.env_case import make_env, write_clip

DT = 1 / 30


@pytest.fixture
def env(tmp_path):
    torch.manual_seed(0)
    return make_env("amp", num_envs=3, motion_file=write_clip(tmp_path / "clip.pkl"))


def windows_of(env) -> ClipWindows:
    return env.terms.memory["history"].windows


def clip_command(env, ahead: float = DT) -> torch.Tensor:
    """Dofs of the clip at the end of the next step; the engine without physics takes them on at once."""
    return env.character.rot_to_dof(env.terms.reference.lookup(env.steps * env.dt + ahead)[0].now.joint_rot)


def test_snippets_do_not_know_place_and_heading(env):
    frames = windows_of(env).ending(torch.zeros(2, dtype=torch.int64), torch.tensor([0.5, 0.7]))
    turn, shift = yaw_quat(torch.tensor(1.3)), torch.tensor([3.0, -2.0, 0.0])
    moved = frames._replace(
        root_pos=quat_rotate(turn, frames.root_pos) + shift, root_rot=quat_mul(turn.expand(2, 10, 4), frames.root_rot),
        body_pos=quat_rotate(turn, frames.body_pos) + shift)
    torch.testing.assert_close(snippets(moved), snippets(frames), atol=1e-5, rtol=0)
    raised = frames._replace(root_pos=frames.root_pos + 0.1 * torch.tensor([0.0, 0, 1]),
                             body_pos=frames.body_pos + 0.1 * torch.tensor([0.0, 0, 1]))
    torch.testing.assert_close(snippet_distance(snippets(raised), snippets(frames)), torch.full((2,), 0.1))


@pytest.mark.parametrize(("loop", "count"), [(LoopMode.WRAP, 31), (LoopMode.CLAMP, 22)])
def test_one_snippet_a_control_step(tmp_path, loop, count):
    env = make_env("amp", num_envs=1, motion_file=write_clip(tmp_path / "clip.pkl", loop=loop))
    found, weights = clip_snippets(windows_of(env), DT)
    assert found.shape == (count, 90) and weights.tolist() == pytest.approx([1 / count] * count)
    assert 8 <= len(clip_snippets(windows_of(env), DT, most=10)[0]) <= 11


def test_frechet_distance():
    """One body (D = 6): apart by 0.3 m, standard deviations 1 and 2 m in every direction, then along one only."""
    eye, mean, other = torch.eye(6, dtype=torch.float64), torch.zeros(6).double(), torch.zeros(6).double()
    other[0] = 0.3
    distance = frechet_distance(mean, eye, other, symmetric_root(4.0 * eye))
    assert distance.item() == pytest.approx(math.sqrt((0.09 + 6.0 * (1.0 + 4.0 - 2.0 * 2.0)) / 2.0))
    flat = torch.diag(torch.tensor([4.0, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    turned = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    for covariance, root in ((flat, eye), (turned @ flat @ turned.T, symmetric_root(eye))):
        assert frechet_distance(mean, covariance, mean, root).item() == pytest.approx(math.sqrt((1.0 + 5.0) / 2.0))
    assert frechet_distance(mean, flat, mean, symmetric_root(flat)).item() == pytest.approx(0.0, abs=1e-6)


def test_moments():
    x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3.0
    mean, covariance = moments(torch.tensor(50.0).double(), x.sum(0), x.T @ x)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(covariance, x.T.cov(correction=0))
    assert not any(found.any() for found in moments(torch.zeros(()), torch.zeros(6), torch.zeros(6, 6)))


def measured(env, steps: int, command) -> dict[str, float]:
    env.reset()
    env.set_mode(EnvMode.TEST)
    for _ in range(steps):
        env.step(command(env))
    return {name: value.item() for name, value in env.metrics().items()}


def test_following_the_clip_is_near_it_and_covers_it(env):
    found = measured(env, 60, clip_command)
    assert found["motion_err"] < 0.01 and found["coverage_err"] < 0.01 and found["motion_dist"] < 0.03


def test_one_pose_of_the_clip_is_near_it_but_does_not_cover_it(env):
    pose = clip_command(env)
    found = measured(env, 60, lambda _: pose)
    moving = measured(env, 60, clip_command)
    assert found["coverage_err"] > 3 * moving["coverage_err"] and found["motion_dist"] > 3 * moving["motion_dist"]


def test_another_pose_is_far(env):
    found = measured(env, 40, lambda e: clip_command(e) + 0.8)
    assert found["motion_err"] > 0.15 and found["coverage_err"] > 0.15


def test_the_past_given_by_the_clip_does_not_count(env):
    found = measured(env, 9, clip_command)
    assert math.isnan(found["motion_err"]) and math.isnan(found["motion_dist"])
    assert found["coverage_err"] == pytest.approx(FAR)
    assert not math.isnan(measured(env, 10, clip_command)["motion_err"])


@pytest.mark.parametrize("name", ["amp", "view_motion", "deepmimic", "amp_steering", "amp_location"])
def test_every_diagnostic_is_a_mean_or_knows_how_processes_pool_it(tmp_path, name):
    env = make_env(name, num_envs=2, motion_file=write_clip(tmp_path / "clip.pkl"))
    found = measured(env, 12, lambda e: torch.zeros(2, len(e.action_low)))
    pooled = env.pooled_metrics(Distributed.single("cpu"))
    means = env.metric_sums()
    assert found and set(found) == set(pooled) | set(means) and not set(pooled) & set(means)
    assert {key: value.item() for key, value in pooled.items()} == {key: found[key] for key in pooled}
