"""The dof test: which dof is driven where to, and whether the measure notices a joint that does not follow."""

import pytest
import torch

from mimickit.envs.base import DoneFlag, EnvMode
from mimickit.envs.dof_test import dof_command
from tests.unit.env_case import make_env

LOW, HIGH = torch.tensor([-0.5, -1.0, -0.2]), torch.tensor([1.0, 2.0, 0.4])


@pytest.mark.parametrize(("time", "env", "dof", "value"), [
    (1.0, 0, 0, 1.0), (3.0, 0, 0, -0.5), (5.0, 0, 1, 2.0), (4.5, 1, 2, 0.282843), (11.0, 2, 1, -1.0),
])
def test_worked_numbers(time, env, dof, value):
    expected = torch.zeros(1, 3)
    expected[0, dof] = value
    command = dof_command(torch.tensor([time]), torch.tensor([env]), LOW, HIGH)
    torch.testing.assert_close(command, expected, atol=1e-5, rtol=0)


def test_environment():
    env = make_env("dof_test")
    env.set_mode(EnvMode.TEST)
    assert env.obs.shape == (4, 125) and "episodes 3360 steps" in env.describe()
    assert env.engine.spec.fixed_root and not env.engine.spec.self_collision
    assert env.engine.root_pos[0].tolist() == pytest.approx([0, 0, 1.2])
    assert env.reference_pose() is None
    for _ in range(31):
        env.step(torch.ones(4, 28))  # whatever the agent wants
    driven = env.engine.command.nonzero()
    assert driven[:, 0].tolist() == [0, 1, 2, 3] and driven[:, 1].tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(env.engine.command.diagonal(), env.action_high[:4], atol=1e-4, rtol=0)
    assert (env.reward == 1).all() and (env.done == DoneFlag.NULL).all()
    assert env.metrics()["pose_err"] < 1e-3  # the fake engine obeys at once
    assert env.metrics()["command_size"] > 0.5


def test_a_joint_that_does_not_move_is_noticed():
    env = make_env("dof_test")
    env.set_mode(EnvMode.TEST)
    env.engine.spec = type(env.engine.spec)(env.engine.spec.char_file, fixed_root=True, motors=False)
    for _ in range(60):
        env.step(torch.zeros(4, 28))
    measures = env.metrics()
    assert measures["pose_err"].item() == pytest.approx(measures["command_size"].item())
    assert measures["pose_err"] > 0.5


def test_hinges_are_asked_for_no_more_than_their_limits():
    env = make_env("dof_test", num_envs=28)
    env.set_mode(EnvMode.TEST)
    model = env.character.model
    hinges = [s.start for s in model.dof_slices if s.stop - s.start == 1]
    knee = hinges[2]
    obey = env.engine.step

    def limited():
        obey()
        for dof in hinges:
            env.engine.dof_pos[:, dof].clamp_(model.dof_low[dof], model.dof_high[dof])

    env.engine.step = limited
    for _ in range(31):
        env.step(torch.zeros(28, 28))
    assert env.engine.command[knee, knee] > model.dof_high[knee] + 0.1, "the action box is wider than the limits"
    assert env.metrics()["pose_err"] < 1e-3
