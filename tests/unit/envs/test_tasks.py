"""Goals: rewards against hand-computed numbers, when goals change, what is measured."""

import itertools
import math

import pytest
import torch

from mimickit.envs.base import DoneFlag, EnvMode
from mimickit.envs.tasks import location_reward, steering_reward, to_heading, unit
from mimickit.util.failures import UserError
from tests.unit.env_case import make_env, write_clip
from tests.unit.tracking_case import S

DT = 1 / 30


def velocity(before: tuple[float, float]) -> torch.Tensor:
    """Of a root that was ``before`` (m, relative to where it is now) one control step ago."""
    return -torch.tensor([before]) / DT


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("target", "before", "expected"), [
    ((4, -1), (-0.02, 0.01), 0.263933),
    ((4, -1), (0.02, -0.01), 0.028216),
    ((1.5, 2.4), (-0.02, 0.01), 0.907324),
    ((2, 2), (-0.05, 0.0), 0.791024),
])
def test_location_reward(target, before, expected):
    found = location_reward(
        S.root_pos, S.root_rot, velocity(before), torch.tensor([target], dtype=torch.float32), 1.0, 0.5, (0.5, 4.0),
        (0.5, 0.4, 0.1))
    close(found, [expected])


def test_location_observation():
    close(to_heading(S.root_rot, torch.tensor([[4.0, -1.0]]) - S.root_pos[:, :2]), [[1.194471, -4.071024]])


@pytest.mark.parametrize(("before", "scale", "expected"), [
    ((-0.03, -0.05), 0.5, 0.821075),
    ((-0.03, -0.05), 2.0, 0.75716),
    ((0.03, 0.05), 0.5, 0.143828),
])
def test_steering_reward(before, scale, expected):
    direction = unit(torch.tensor([1.0]))
    found = steering_reward(
        S.root_rot, velocity(before), direction, torch.tensor([2.0]), torch.tensor([[0.0, 1.0]]), scale, (0.7, 0.3))
    close(found, [expected])


def test_steering_observation():
    direction = to_heading(S.root_rot, unit(torch.tensor([1.0])))
    face = to_heading(S.root_rot, torch.tensor([[0.0, 1.0]]))
    close(direction, [[0.877583, 0.479426]])
    close(face, [[0.479426, 0.877583]])


# --- in the environment, on an engine without physics -----------------------------------------------------------------


def location(tmp_path, num_envs=2, **changes):
    torch.manual_seed(0)
    return make_env("amp_location", num_envs, motion_file=write_clip(tmp_path / "clip.pkl"), **changes)


def steering(tmp_path, num_envs=2, **changes):
    torch.manual_seed(0)
    return make_env("amp_steering", num_envs, motion_file=write_clip(tmp_path / "clip.pkl"), **changes)


def goal_of(env):
    return env.terms.memory["goal"]


def hold(env):
    return env.engine.dof_pos.clone()


def test_targets_lie_around_the_root_at_every_distance(tmp_path):
    env = location(tmp_path, num_envs=2000, tar_dist_min=2.0, tar_dist_max=6.0)
    offset = goal_of(env).target - env.engine.root_pos[:, :2]
    distance = offset.norm(dim=-1)
    assert distance.min() >= 2.0 and distance.max() <= 6.0
    assert distance.mean().item() == pytest.approx(4.0, abs=0.1)
    assert (offset / distance[:, None]).mean(dim=0).abs().max() < 0.05
    torch.testing.assert_close(env.obs[:, -2:].norm(dim=-1), distance, atol=1e-4, rtol=0)


def test_targets_change_when_their_time_is_over_and_with_episodes(tmp_path):
    env = location(tmp_path, tar_change_time_min=0.1, tar_change_time_max=0.1)  # three steps
    goal = goal_of(env)
    targets = []
    for _ in range(7):
        env.step(hold(env))
        targets.append(goal.target.clone())
    new = [not torch.equal(a, b) for a, b in itertools.pairwise(targets)]
    assert new == [False, True, False, False, True, False]  # with steps 3 and 6
    kept = goal.target[0].clone()
    env.steps[1] = 10_000
    goal.change[:] = 1e6
    env.step(hold(env))
    assert env.done.tolist() == [0, DoneFlag.TIME]
    assert torch.equal(goal.target[0], kept) and not torch.equal(goal.target[1], targets[-1][1])


def test_reward_uses_the_root_velocity_of_the_step(tmp_path):
    env = location(tmp_path, tar_change_time_min=100.0, tar_change_time_max=100.0)
    goal = goal_of(env)
    goal.target.copy_(env.engine.root_pos[:, :2] + torch.tensor([50.0, 0.0]))  # ahead, where the clip glides to
    env.step(hold(env))
    expected = 0.4 * math.exp(-4.0 * 0.5**2) + 0.1
    torch.testing.assert_close(env.reward, torch.full((2,), expected), atol=1e-4, rtol=0)


def test_location_measures(tmp_path):
    env = location(tmp_path, num_envs=4, tar_change_time_min=100.0, tar_change_time_max=100.0)
    goal = goal_of(env)
    env.set_mode(EnvMode.TEST)
    place = env.engine.root_pos[:, :2].clone()
    goal.target.copy_(place + torch.tensor([[0.0, 0.3], [0.0, 0.3], [0.0, 8.0], [0.0, 8.0]]))
    env.step(hold(env))
    found = env.metrics()
    assert found["goal_err"].item() == pytest.approx((0.3 + 8.0) / 2, abs=0.02)
    assert found["task_reward"].item() == pytest.approx(env.reward.mean().item(), rel=1e-5)
    assert math.isnan(found["success_rate"])  # no target is over yet
    goal.change[:3] = 0.0  # three targets change: two were reached
    env.step(hold(env))
    assert env.metrics()["success_rate"].item() == pytest.approx(2 / 3)
    env.set_mode(EnvMode.TEST)
    assert math.isnan(env.metrics()["goal_err"])


def test_a_fall_misses_the_target_and_a_time_out_does_not_count(tmp_path):
    env = location(tmp_path, num_envs=2, tar_change_time_min=1e4, tar_change_time_max=1e4, tar_dist_min=5.0)
    env.set_mode(EnvMode.TEST)
    env.steps[1] = 10_000
    env.engine.step = lambda step=env.engine.step: (step(), env.engine.ground_contact_force[0, 0].fill_(100.0))
    env.step(hold(env))
    assert env.done.tolist() == [DoneFlag.FAIL, DoneFlag.TIME]
    found = env.metrics()
    assert found["success_rate"] == 0.0  # of one target
    assert env.terms.metrics["success_rate"].means.count.sum() == 1
    assert found["fall_rate"] == 0.5


def test_threshold_in_metres_is_an_option(tmp_path):
    assert goal_of(location(tmp_path)).config.squared_threshold == 0.5
    assert goal_of(location(tmp_path, dist_threshold_m=0.5)).config.squared_threshold == 0.25


def test_steering_goals(tmp_path):
    env = steering(tmp_path, num_envs=2000)
    goal = goal_of(env)
    assert torch.equal(goal.face, goal.direction)  # rand_face_dir is off
    assert goal.direction.mean(dim=0).abs().max() < 0.05
    assert goal.speed.min() >= 0.5 and goal.speed.max() <= 5.0
    assert goal.speed.mean().item() == pytest.approx(2.75, abs=0.1)
    assert torch.equal(env.obs[:, -3], goal.speed)
    straight = goal_of(steering(tmp_path, num_envs=50, rand_tar_dir=False, rand_face_dir=True))
    assert torch.equal(straight.direction, torch.tensor([[1.0, 0.0]]).expand(50, 2))
    assert straight.face.std(dim=0).min() > 0.4


def test_steering_measures(tmp_path):
    env = steering(tmp_path, num_envs=2, tar_change_time_min=100.0, tar_change_time_max=100.0)
    env.set_mode(EnvMode.TEST)
    goal = goal_of(env)
    goal.direction.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    goal.speed.copy_(torch.tensor([0.8, 2.5]))  # the clip glides at 0.5 m/s: errors of 0.3 and 2 m/s
    env.step(hold(env))
    found = env.metrics()
    assert found["vel_err"].item() == pytest.approx(1.15, abs=1e-3)
    thirds = {name: found[name].item() for name in found if name.startswith(("vel_err_", "success_rate_"))}
    assert thirds == pytest.approx({  # of 0.5 to 5 m/s
        "vel_err_slow": 0.3, "success_rate_slow": 1.0, "vel_err_medium": 2.0, "success_rate_medium": 0.0,
        "vel_err_fast": math.nan, "success_rate_fast": math.nan}, abs=1e-3, nan_ok=True)
    assert found["success_rate"].item() == 0.5
    assert found["task_reward"].item() == pytest.approx(env.reward.mean().item(), rel=1e-5)


def test_markers(tmp_path):
    env = location(tmp_path)
    (marker,) = env.markers()
    torch.testing.assert_close(marker.pos, torch.cat([goal_of(env).target[0], torch.zeros(1)]))
    assert marker.rot.tolist() == [0, 0, 0, 1] and marker.file.name == "location_marker.xml"

    env = steering(tmp_path)
    goal = goal_of(env)
    goal.direction[0], goal.face[0], goal.speed[0] = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), 2.75
    target, face = env.markers()
    root = env.engine.root_pos[0, :2]
    torch.testing.assert_close(target.pos[:2], root + torch.tensor([0.0, 1.25]))
    torch.testing.assert_close(target.rot, torch.tensor([0, 0, 0.5**0.5, 0.5**0.5]))
    torch.testing.assert_close(face.pos, torch.cat([root + torch.tensor([1.0, 0.0]), torch.tensor([0.01])]))
    env = steering(tmp_path, tar_speed_min=1.0, tar_speed_max=1.0)
    assert (env.markers()[0].pos[:2] - env.engine.root_pos[0, :2]).norm().item() == pytest.approx(1.0, abs=1e-5)
    assert make_env("amp", motion_file=write_clip(tmp_path / "clip.pkl")).markers() == []


def test_a_red_line_leads_from_the_root_to_the_target(tmp_path):
    env = location(tmp_path)
    env.step(hold(env))
    goal_of(env).target[0] = torch.tensor([3.0, -4.0])
    (line,) = env.lines()
    torch.testing.assert_close(line.begin, env.engine.root_pos[:1])
    assert line.end.tolist() == [[3.0, -4.0, 0.0]] and line.color == (0.8, 0.0, 0.0)
    assert steering(tmp_path).lines() == []


def test_wrong_ranges(tmp_path):
    with pytest.raises(UserError, match=r"tar_dist_min = 20\.0 exceeds tar_dist_max = 10\.0"):
        location(tmp_path, tar_dist_min=20)
    with pytest.raises(UserError, match=r"tar_speed_min = 9\.0 exceeds tar_speed_max = 5\.0"):
        steering(tmp_path, tar_speed_min=9)
    with pytest.raises(UserError, match=r"tar_change_time_min = 11\.0 exceeds tar_change_time_max = 10\.0"):
        location(tmp_path, tar_change_time_min=11)


def test_facing_is_measured_in_degrees(tmp_path):
    env = steering(tmp_path, num_envs=3, tar_change_time_min=100.0, tar_change_time_max=100.0)
    env.set_mode(EnvMode.TEST)
    goal_of(env).face.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]]))  # the clip looks along X
    env.step(hold(env))
    assert env.metrics()["facing_err"].item() == pytest.approx((0 + 90 + 180) / 3, abs=0.1)
