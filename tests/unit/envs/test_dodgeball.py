"""Balls that are thrown at the character: throws, hits and reward by hand, and when what happens."""

import math

import pytest
import torch

from mimickit.envs.base import DoneFlag, EnvMode
from mimickit.envs.dodgeball import dodge_reward, hits, throw
from mimickit.util.failures import UserError
from mimickit.util.rotations import heading, in_heading
from tests.unit.env_case import make_env, write_clip
from tests.unit.tracking_case import S

DT = 1 / 30
BALLS = torch.tensor([[[3.0, 2.0, 1.2], [1.0, -4.0, 0.5]]])
VELOCITIES = torch.tensor([[[-10.0, 0.0, 1.0], [0.0, 12.0, 0.0]]])


def close(found, expected, atol=2e-6):
    torch.testing.assert_close(found, torch.tensor(expected), atol=atol, rtol=1e-5)


def test_throw():
    place, velocity = throw(torch.tensor([1.0, 2.0, 1.1]), torch.zeros(3), *map(torch.tensor, (9.0, 13.0, 1.0, 0.0)))
    close(place, [10.0, 2.0, 1.0])
    close(velocity, [-13.0, 0.0, 3.540214])


def test_a_thrown_ball_meets_a_moving_target():
    target, moving = torch.tensor([1.0, 2.0, 1.1]), torch.tensor([1.5, -0.5, 0.0])
    place, velocity = throw(target, moving, *map(torch.tensor, (9.0, 12.0, 2.0, 2.1)))
    flight = 9.0 / 12.0
    gravity = torch.tensor([0.0, 0.0, -0.5 * 9.81 * flight**2])
    torch.testing.assert_close(place + velocity * flight + gravity, target + moving * flight)
    assert math.hypot(*velocity[:2].tolist()) == pytest.approx(12.0)


@pytest.mark.parametrize(("ball", "after", "force", "hit"), [
    ((1.5, 2.0, 1.2), (-10.0, 0.0, 0.673), 0.0, False),
    ((1.5, 2.0, 1.2), (-8.0, 0.0, 0.673), 0.0, True),
    ((1.5, 2.0, 1.2), (-10.0, 0.0, 0.673), 0.11, True),
    ((2.5, 2.0, 1.2), (-10.0, 0.0, 0.673), 5.0, False),
])
def test_hits(ball, after, force, hit):
    found = hits(
        torch.tensor([[ball]]), torch.tensor([[after]]), torch.tensor([[[-10.0, 0.0, 1.0]]]),
        torch.tensor([[[0.0, force, 3.0]]]), torch.tensor([[[1.0, 2.0, 0.9], [1.0, 2.0, 1.5]]]), DT, 0.8, 0.1, 1.5)
    assert found.tolist() == [[hit]]


def test_reward_and_observation():
    close(dodge_reward(S.root_pos, torch.tensor([[0.3, -0.2, 1.0]]), BALLS), [0.497183])
    vectors = torch.stack([BALLS - S.root_pos.unsqueeze(1), VELOCITIES], dim=2)
    close(in_heading(vectors, heading(S.root_rot).view(-1, 1, 1)).flatten(1), [[
        1.755165, -0.958851, 0.3, -8.775826, 4.794256, 1.0, -2.876554, -5.265495, -0.4, 5.753108, 10.530991, 0.0]],
        atol=5e-6)


def dodge(tmp_path, num_envs=2, **changes):
    keys = {"motion_file": write_clip(tmp_path / "clip.pkl", speed=0.0), "num_projectiles": 2} | changes
    return make_env("smp_dodgeball", num_envs, **keys)


def hold(env):
    return env.engine.dof_pos.clone()


def test_the_environment_observes_and_rewards_so(tmp_path):
    env = dodge(tmp_path, num_envs=1)
    balls, engine = env.terms.memory["goal"], env.engine
    close(engine.object_pos, [[[10.0, 10.0, 0.1], [11.0, 10.0, 0.1]]])
    assert env.obs.shape[1] == 140 + 12
    balls.due.fill_(100.0)
    env.step(hold(env))
    expected = torch.stack([engine.object_pos - engine.root_pos.unsqueeze(1), engine.object_vel], dim=2)
    expected = in_heading(expected, heading(engine.root_rot).view(-1, 1, 1)).flatten(1)
    torch.testing.assert_close(env.next_obs[:, 140:], expected)
    torch.testing.assert_close(env.reward, dodge_reward(engine.root_pos, engine.root_vel, engine.object_pos))


def test_balls_are_thrown_when_their_time_has_come(tmp_path):
    env = dodge(tmp_path, proj_trigger_time_min=1.0, proj_trigger_time_max=1.5, proj_h_min=0.0, proj_h_max=0.05,
                proj_aim_noise_scale=0.0)
    balls, engine = env.terms.memory["goal"], env.engine
    assert ((balls.due >= 1.0) & (balls.due <= 1.5)).all()
    balls.due[:] = torch.tensor([[2.5 * DT, 100.0], [100.0, 100.0]])
    for _ in range(2):
        env.step(hold(env))
        assert not balls.thrown.any() and (engine.object_vel == 0.0).all()
    env.step(hold(env))
    assert balls.thrown.tolist() == [[True, False], [False, False]] == engine.object_mask.tolist()
    assert engine.object_pos[0, 0, 2] == pytest.approx(0.1)  # lower heights are raised to the radius
    away = engine.object_pos[0, 0, :2] - engine.body_pos[0, 1, :2]
    assert 8.0 - 1e-4 <= away.norm() <= 10.0 + 1e-4
    assert 12.0 <= engine.object_vel[0, 0, :2].norm() <= 15.0
    assert 3 * DT + 1.0 - 1e-5 <= balls.due[0, 0] <= 3 * DT + 1.5
    assert not env.done.any()  # its velocity changed, but nothing hit it


def test_a_hit_ends_the_episode_and_the_balls_lie_aside_again(tmp_path):
    env = dodge(tmp_path)
    balls, engine = env.terms.memory["goal"], env.engine
    balls.due.fill_(100.0)
    env.step(hold(env))
    engine.object_pos[0, 1] = engine.root_pos[0] + torch.tensor([0.5, 0.0, 0.0])
    balls._before[0, 1, 0] = 0.0

    class Pushed:
        """Physics in which a ball near the character loses its speed."""

        def __init__(self, step):
            self.step = step

        def __call__(self):
            self.step()
            engine.object_vel[0, 1, 0] = 3.0

    engine.step = Pushed(engine.step)
    env.step(hold(env))
    assert balls.hit.tolist() == [[False, True], [False, False]]
    assert env.done.tolist() == [DoneFlag.FAIL, DoneFlag.NULL]
    close(engine.object_pos[0], [[10.0, 10.0, 0.1], [11.0, 10.0, 0.1]])
    assert (engine.object_vel[0] == 0.0).all() and engine.object_mask.tolist() == [[True, True], [False, False]]

    engine.step = engine.step.step  # a ball that keeps its speed passes
    engine.object_pos[1, 0] = engine.root_pos[1] + torch.tensor([0.5, 0.0, 0.0])
    engine.object_vel[1, 0] = torch.tensor([-13.0, 0.0, 1.0])
    env.step(hold(env))
    assert not balls.hit.any() and not env.done.any()

    free = dodge(tmp_path, enable_early_termination=False)
    assert "hit" not in free.terms.terminations and "hit" in env.terms.terminations


def test_throws_that_hit_nobody_are_counted(tmp_path):
    env = dodge(tmp_path, num_envs=3, num_projectiles=1, enable_early_termination=False)
    metric, balls = env.terms.metrics["success_rate"], env.terms.memory["goal"]
    env.set_mode(EnvMode.TEST)
    nobody, valid = torch.zeros(3, dtype=torch.int32), torch.ones(3, dtype=torch.bool)
    now = env._state(env.terms.reference.lookup(env._time())[0])

    def step(hit, thrown, done=nobody):
        balls.hit[:, 0], balls.thrown[:, 0] = torch.tensor(hit), torch.tensor(thrown)
        metric.measure(now, done, valid)
        return metric.means.count.tolist(), metric.means.sums[:, 0].tolist()

    no = [False] * 3
    assert step([True, False, False], no)[0] == [0, 0, 0]  # what was not thrown cannot hit
    assert step(no, [True] * 3)[0] == [0, 0, 0]
    assert step([True, False, False], no) == ([1, 0, 0], [0, 0, 0])
    assert step([True, False, False], no)[0] == [1, 0, 0]  # once
    over = torch.tensor([0, 0, int(DoneFlag.TIME)], dtype=torch.int32)
    assert step(no, [True, True, False], over) == ([1, 1, 0], [0, 1, 0])
    assert step(no, [True, True, True]) == ([2, 2, 0], [1, 2, 0])  # the third's was cut off by the end of the episode


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"proj_speed_min = 16\.0 exceeds proj_speed_max = 15\.0"):
        dodge(tmp_path, proj_speed_min=16.0)
    with pytest.raises(UserError, match="key 'proj_target_body' names the body 'trunk'"):
        dodge(tmp_path, proj_target_body="trunk")
