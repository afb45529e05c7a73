"""Playing clips: poses, ends, untouched engine settings, and a measure that notices wrong kinematics."""

import pytest
import torch

from mimickit.anim.motion import LoopMode
from mimickit.envs.base import DoneFlag
from mimickit.envs.view_motion import playback_engine_config
from tests.unit.env_case import make_env, write_clip
from tests.unit.fake_engine import engine_config

REST = torch.zeros(4, 28)


@pytest.fixture
def dataset(tmp_path):
    loop = write_clip(tmp_path / "loop.pkl", frames=7)  # 0.2 s
    stop = write_clip(tmp_path / "stop.pkl", frames=16, loop=LoopMode.CLAMP, speed=1.0)  # 0.5 s
    path = tmp_path / "set.yaml"
    path.write_text(f"motions:\n- {{file: {loop}, weight: 1}}\n- {{file: {stop}, weight: 1}}\n")
    return path


def test_shows_the_clips_from_their_beginning(dataset):
    env = make_env("view_motion", motion_file=dataset)
    assert env.obs.shape == (4, 140)
    for step in range(1, 6):
        env.step(torch.ones(4, 28))
        x = torch.tensor([0.5, 1.0, 0.5, 1.0]) * step / 30
        torch.testing.assert_close(env.engine.root_pos[:, 0], x, atol=1e-5, rtol=0)
        assert not env.engine.root_vel.any() and not env.engine.dof_vel.any()
        assert env.engine.calls[-2:] == ["step", "flush"] and env.engine.started[-1] == [0, 1, 2, 3]
        assert (env.reward == 1).all()


def test_ends(dataset):
    env = make_env("view_motion", motion_file=dataset)
    ends = {0: [], 1: []}
    for step in range(1, 33):
        env.step(REST)
        for clip in (0, 1):
            flags = env.done[[clip, clip + 2]].tolist()
            assert flags[0] == flags[1]
            if flags[0] != DoneFlag.NULL:
                assert flags[0] == DoneFlag.TIME
                ends[clip].append(step)
    assert abs(ends[0][0] - 30) <= 1  # five times 0.2 s; float32 clocks may pass an instant one step later
    assert abs(ends[1][0] - 15) <= 1


def test_engine_settings_of_others_stay():
    shared = engine_config()
    own = playback_engine_config(shared)
    assert (own.sim_freq, shared.sim_freq) == (30, 240)


def test_world(dataset):
    spec = make_env("view_motion", motion_file=dataset).engine.spec
    assert not spec.motors and not spec.self_collision and spec.color == (0.3, 0.5, 0.1)


def test_a_looped_clip_may_accumulate_its_yaw(dataset):
    assert [make_env("view_motion", motion_file=dataset, **keys).scene.motions.accumulate_yaw
            for keys in ({}, {"accumulate_yaw": True})] == [False, True]


def test_engine_and_kinematics_agree(dataset):
    env = make_env("view_motion", motion_file=dataset)
    for _ in range(10):
        env.step(REST)
    assert 0 <= env.metrics()["pose_err"].item() < 1e-5


def test_wrong_kinematics_are_noticed(dataset):
    env = make_env("view_motion", motion_file=dataset)
    right = env.engine._kinematics

    def wrong():
        right()
        env.engine.body_pos[1, 7, 2] += 0.05

    env.engine._kinematics = wrong
    for _ in range(3):
        env.step(REST)
    assert env.metrics()["pose_err"].item() == pytest.approx(0.05, abs=1e-4)


def test_an_engine_that_answers_nothing_is_noticed(dataset):
    env = make_env("view_motion", motion_file=dataset)
    env.engine._kinematics = lambda: None
    env.step(REST)
    assert env.metrics()["pose_err"].item() > 0.5


def test_red_crosses_at_the_key_bodies(dataset):
    env = make_env("view_motion", motion_file=dataset, key_bodies=["head", "left_hand"])
    env.step(REST)
    (crosses,) = env.lines()
    assert crosses.begin.shape == crosses.end.shape == (6, 3) and crosses.color == (0.8, 0.0, 0.0)
    ids = [env.engine.body_names.index(name) for name in ("head", "left_hand")]
    centers = env.engine.body_pos[0, ids].repeat_interleave(3, dim=0)
    torch.testing.assert_close((crosses.begin + crosses.end) / 2, centers)
    torch.testing.assert_close(crosses.end - crosses.begin, 0.4 * torch.eye(3).repeat(2, 1))


def test_no_key_bodies_no_crosses(dataset):
    env = make_env("view_motion", motion_file=dataset, key_bodies=[])
    assert [len(lines.begin) for lines in env.lines()] == [0]
