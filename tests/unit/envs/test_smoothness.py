"""Measures of torque and smoothness against numbers computed by hand."""

import math

import pytest
import torch

from mimickit.anim.character import Character
from mimickit.envs.base import EnvMode
from mimickit.envs.smoothness import SMOOTHNESS, Motors, foot_slide, on_ground, smoothness
from tests.unit.env_case import CHAR_FILE, make_env, write_clip

HUMANOID = Character.load(CHAR_FILE)
ELBOW = 9


def test_torque_is_that_of_the_controller():
    command, dof_pos, dof_vel = torch.zeros(2, 28), torch.zeros(2, 28), torch.zeros(2, 28)
    command[0, ELBOW], dof_pos[0, ELBOW], dof_vel[0, ELBOW] = 0.5, 0.4, 0.5
    command[1, 1] = 3.5  # the abdomen by the shorter way: 3.5 - 2 pi
    torque = Motors(HUMANOID, "pos").torque(command, dof_pos, dof_vel)
    assert torque[0, ELBOW] == pytest.approx(300 * 0.1 - 30 * 0.5, abs=1e-4)
    assert torque[1, 1] == -200.0, "limited by actuatorfrcrange"
    assert Motors(HUMANOID, "pos").short_way(command)[1, 1] == pytest.approx(3.5 - 2 * math.pi, abs=1e-5)
    assert torque.count_nonzero() == 2
    assert Motors(HUMANOID, "vel").torque(command, dof_pos, 0.4 * dof_vel)[0, ELBOW] == pytest.approx(9.0)
    assert Motors(HUMANOID, "torque").torque(100 * command, dof_pos, dof_vel)[0, ELBOW] == 50.0


def test_smoothness_by_hand():
    dof_vel = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]]])
    force, before = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    force[0, 0, 2], before[0, 1, 2] = 98.1, 196.2
    found = smoothness(torch.tensor([[2.0, -4.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]]), dof_vel,
                       force, before, mass=10.0, dt=0.5)
    assert dict(zip(SMOOTHNESS, found[0].tolist())) == pytest.approx({
        "torque": 3.0, "action_rate": 1.0, "jerk": 0.5 * (4 - 2 + 0) / 0.25, "contact_jump": 3.0})


def test_only_bodies_that_stay_on_the_ground_slide():
    before = torch.zeros(3, 3, 3)
    now = torch.tensor([0.3, 0.4, 7.0]).expand(3, 3, 3)
    force = torch.zeros(3, 3, 3)
    force[0, 0, 2] = force[1, 1, 2] = 5.0  # environment 0: body 0 stays; 1: body 1 just landed; 2: nothing
    earlier = torch.zeros(3, 3, 3)
    earlier[0, :2, 2] = 5.0
    slide, stays = foot_slide(now, before, on_ground(force), on_ground(earlier), dt=0.5)
    assert stays.tolist() == [True, False, False] and slide[0] == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["deepmimic", "add", "amp", "ase", "amp_steering"])
def test_every_test_measures_it(name, tmp_path):
    """The fake engine's dofs jump to the command, and nothing touches anything."""
    env = make_env(name, 3, motion_file=write_clip(tmp_path / "clip.pkl"), enable_early_termination=False)
    env.set_mode(EnvMode.TEST)
    env.reset()
    action = torch.zeros(3, 28)
    for step in range(6):
        action[:, ELBOW] = 0.1 * step
        env.step(action)
    found = env.metrics()
    dt = env.dt
    assert float(found["action_rate"]) == pytest.approx(0.1 / 28 / dt, rel=1e-4)
    assert float(found["contact_jump"]) == 0.0 and float(found["torque"]) >= 0.0
    assert math.isnan(float(found["foot_slide"])), "no body is on the ground"
    _, count = env.metric_sums()["jerk"]
    assert count.tolist() == [4.0] * 3, "all steps but the first two"
