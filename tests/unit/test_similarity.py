"""Similarity to the clips that no network judges."""

import math

import pytest
import torch

from mimickit.anim.motion import LoopMode
from mimickit.envs.base import EnvMode
from mimickit.envs.disc_obs import ClipWindows
from mimickit.envs.similarity import FAR, clip_snippets, snippet_distance, snippets
from mimickit.util.rotations import quat_mul, quat_rotate, yaw_quat
from tests.unit.env_case import make_env, write_clip

DT = 1 / 30


@pytest.fixture
def env(tmp_path):
    torch.manual_seed(0)
    return make_env("amp", num_envs=3, motion_file=write_clip(tmp_path / "clip.pkl"))


def windows_of(env) -> ClipWindows:
    return next(part for part in env.parts if hasattr(part, "frames"))._windows


def clip_command(env, ahead: float = DT) -> torch.Tensor:
    """Dofs of the clip at the end of the next step; the engine without physics takes them on at once."""
    return env.character.rot_to_dof(env.source.look(env.steps * env.dt + ahead)[0].now.joint_rot)


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
    assert clip_snippets(windows_of(env), DT).shape == (count, 90)
    assert 8 <= len(clip_snippets(windows_of(env), DT, most=10)) <= 11


def measured(env, steps: int, command) -> dict[str, float]:
    env.reset()
    env.set_mode(EnvMode.TEST)
    for _ in range(steps):
        env.step(command(env))
    return {name: value.item() for name, value in env.diagnostics().items()}


def test_following_the_clip_is_near_it_and_covers_it(env):
    found = measured(env, 60, clip_command)
    assert found["motion_err"] < 0.01 and found["coverage_err"] < 0.01


def test_one_pose_of_the_clip_is_near_it_but_does_not_cover_it(env):
    pose = clip_command(env)
    found = measured(env, 60, lambda _: pose)
    moving = measured(env, 60, clip_command)
    assert found["coverage_err"] > 3 * moving["coverage_err"]


def test_another_pose_is_far(env):
    found = measured(env, 40, lambda e: clip_command(e) + 0.8)
    assert found["motion_err"] > 0.15 and found["coverage_err"] > 0.15


def test_the_past_given_by_the_clip_does_not_count(env):
    found = measured(env, 9, clip_command)
    assert math.isnan(found["motion_err"]) and found["coverage_err"] == pytest.approx(FAR)
    assert not math.isnan(measured(env, 10, clip_command)["motion_err"])
