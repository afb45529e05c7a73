"""Half-skilled bodies do what their names say: everything but the one thing."""

import math

import pytest
import torch

from mimickit.anim.motion import LoopMode, MotionClip, save_motion
from mimickit.envs.base import DoneFlag, EnvMode
from mimickit.envs.puppets import PuppetEnv, ignored_latent, one_clip, puppets, turn_of
from mimickit.envs.still_engine import StillEngine
from mimickit.learning.agent import Agent
from mimickit.learning.config import DummyConfig
from mimickit.learning.evaluation import run_test
from tests.unit import env_case
from tests.unit.env_case import write_clip
from tests.unit.learning.test_metrics import ALONE

FEW = {"episode_length": 1.0}


def make_env(name, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(env_case, "FakeEngine", StillEngine)
        return env_case.make_env(name, **options)


def measured(env, name):
    """Measures of the first puppet of a name."""
    torch.manual_seed(1)
    moved = PuppetEnv(env.scene, env.terms, next(puppet for found, puppet in puppets(env) if found == name))
    agent = Agent(moved, DummyConfig(), ALONE)
    result = run_test(moved, agent, ALONE, env.num_envs, None, env.num_envs)
    return {**result.measures, "return": result.test_return, "length": result.test_episode_length}


def turning_clip(path, loop=LoopMode.WRAP):
    """Goes round at 1 rad/s for 3 s, its elbow swinging."""
    import numpy as np
    time = np.arange(91) / 30
    frames = np.zeros((91, 34), dtype=np.float32)
    frames[:, 2], frames[:, 5], frames[:, 15] = 0.9, time, 0.5 + 0.4 * np.sin(2 * np.pi * time)
    save_motion(path, MotionClip(loop, 30.0, frames))
    return path


def test_frozen_pose_follows_with_its_root_alone(tmp_path):
    """The elbow swings by 0.4 sin: its mean pose is 0.5, its mean distance from that 0.4 * 2 / pi rad of 15 bodies."""
    env = make_env("deepmimic", num_envs=30, motion_file=write_clip(tmp_path / "clip.pkl"), **FEW)
    found = measured(env, "frozen_pose")
    assert found["root_pos_err"] == pytest.approx(0.0, abs=1e-6)
    turned = found["body_rot_err"] * 15 / (0.4 * 2 / math.pi)  # bodies below the elbow
    assert turned == pytest.approx(round(turned), abs=0.1) and turned > 0.5
    assert 0.0 < found["body_pos_err"] == pytest.approx(found["pos_err"], rel=0.2)
    assert found["success_rate"] == 1.0, "time was over before it was lost"


def test_no_turn_keeps_the_heading(tmp_path):
    still = make_env("deepmimic", motion_file=write_clip(tmp_path / "still.pkl"), **FEW)
    assert turn_of(still.scene) < 0.01 and "no_turn" not in dict(puppets(still))
    env = make_env("deepmimic", num_envs=50, motion_file=turning_clip(tmp_path / "clip.pkl"), **FEW)
    assert turn_of(env.scene) == pytest.approx(3.0, abs=0.05)
    found = measured(env, "no_turn")
    assert found["root_rot_err"] == pytest.approx(0.5 * 31 / 30, abs=0.03), "1 s at 1 rad/s; it starts in step"
    assert found["root_pos_err"] == pytest.approx(0.0, abs=1e-5)
    assert found["time_warped_err"] == pytest.approx(0.0, abs=1e-5), "in its own heading nothing is wrong"


def test_statue_stands_and_faces_the_right_way(tmp_path):
    env = make_env("amp_steering", num_envs=64, motion_file=write_clip(tmp_path / "clip.pkl"), **FEW)
    found = measured(env, "statue")
    assert found["vel_err"] == pytest.approx(2.75, abs=0.5), "the mean of 0.5 to 5 m/s"
    assert found["facing_err"] == pytest.approx(0.0, abs=0.1) and found["success_rate"] == 0.0
    glide = 0.5 * 9 / 30 * math.sqrt(0.5)  # m, root mean square over two frames of which one is the same
    assert found["motion_err"] == pytest.approx(glide, rel=0.1)


def test_walkers_ignore_speed_or_facing(tmp_path):
    env = make_env("amp_steering", num_envs=8, motion_file=write_clip(tmp_path / "clip.pkl"),
                   tar_change_time_min=100.0, tar_change_time_max=100.0, **FEW)
    speeds = [puppet for name, puppet in puppets(env) if name == "constant_speed"]
    assert len(speeds) == 8
    found = measured(env, "wrong_facing")
    assert (found["vel_err"], found["success_rate"]) == (pytest.approx(0.0, abs=1e-3), 1.0)
    assert found["facing_err"] == pytest.approx(90.0, abs=0.1)
    moved = PuppetEnv(env.scene, env.terms, speeds[0])
    moved.set_mode(EnvMode.TEST)
    goal = env.terms.memory["goal"]
    goal.speed.fill_(2.0)
    moved.step(torch.zeros(8, 28))
    assert moved.metrics()["vel_err"].item() == pytest.approx(2.0 - (0.5 + 4.5 / 16), abs=1e-3)
    assert moved.metrics()["facing_err"].item() == pytest.approx(0.0, abs=0.1)


def test_who_starts_behind_the_box_fails_before_it(tmp_path):
    clip = write_clip(tmp_path / "clip.pkl", speed=3.0, loop=LoopMode.CLAMP)
    env = make_env("vault", num_envs=64, motion_file=clip)
    found = measured(env, "starts_behind_the_box")
    assert found["run_up_success_rate"] < found["success_rate"] < 1.0
    behind = PuppetEnv(env.scene, env.terms, dict(puppets(env))["starts_behind_the_box"])
    env.terms.reference.start.fill_(0.9)
    for _ in range(3):
        behind.step(torch.zeros(64, 28))
    assert set(behind.done.tolist()) == {DoneFlag.SUCC}


def test_one_clip_of_several(tmp_path):
    """Two equal clips are covered by either; of two that differ one leaves the other out."""
    def style(first, second):
        dataset = tmp_path / "both.yaml"
        dataset.write_text(f"motions:\n  - {{file: {first}}}\n  - {{file: {second}}}\n")
        return one_clip(make_env("amp", num_envs=2, motion_file=dataset))

    slow, fast = write_clip(tmp_path / "a.pkl"), write_clip(tmp_path / "b.pkl", speed=3.0)
    same, other = style(slow, slow), style(slow, fast)
    assert same["coverage_err"] == pytest.approx(0.0, abs=1e-5) and same["motion_dist"] == pytest.approx(0.0, abs=0.01)
    offset = (3.0 - 0.5) * 9 / 30 * math.sqrt(0.5)  # m, between snippets of the two
    assert other["coverage_err"] == pytest.approx(offset / 2, rel=0.1)
    assert other["motion_dist"] == pytest.approx(math.hypot(offset / 2, offset / 2), rel=0.1), "mean and spread"


def test_an_ignored_latent_is_guessed_by_chance():
    found = ignored_latent(64)
    z = torch.nn.functional.normalize(torch.randn(200_000, 64), dim=-1)[:, 0]
    assert found["test_enc_reward"] == pytest.approx(z.clamp(min=0.0).mean().item(), abs=5e-4)
    assert ignored_latent(2)["test_enc_reward"] == pytest.approx(1 / math.pi)
    assert found["test_enc_similarity"] == 0.0
