"""Balls in the physics: they fly, lie, hit, and what was saved goes on exactly."""

from pathlib import Path

import pytest
import torch

from mimickit.engines.engine import FreeObject, WorldSpec
from mimickit.engines.engine_config import EngineConfig
from mimickit.engines.newton_engine import NewtonEngine

pytestmark = pytest.mark.sim

ASSETS = Path(__file__).resolve().parents[2] / "data" / "assets"
MASS = 100.0 * 4.0 / 3.0 * torch.pi * 0.1**3
DT, GRAVITY = 1 / 30, 9.81


@pytest.fixture(scope="module")
def engine():
    config = EngineConfig(engine_name="newton", control_mode="pos", control_freq=30, sim_freq=240, env_spacing=5)
    ball = ASSETS / "objects" / "dodgeball.xml"
    spec = WorldSpec(ASSETS / "humanoid" / "humanoid.xml", init_root_pos=(0.0, 0.0, 0.8816),
                     free_objects=(FreeObject(ball, (10.0, 10.0, 0.1)), FreeObject(ball, (11.0, 10.0, 0.1))))
    return NewtonEngine(spec, config, 2, "cpu")


def throw(engine, world, ball, pos, vel):
    engine.object_pos[world, ball] = torch.tensor(pos)
    engine.object_vel[world, ball] = torch.tensor(vel)
    engine.object_mask[world, ball] = True


def test_balls_lie_where_they_were_put_and_press_on_the_ground(engine):
    for _ in range(30):
        engine.step()
    torch.testing.assert_close(engine.object_pos[0], torch.tensor([[10.0, 10.0, 0.1], [11.0, 10.0, 0.1]]), atol=2e-3,
                               rtol=0)
    weight = engine.object_force[:, :, 2]
    torch.testing.assert_close(weight, torch.full_like(weight, MASS * GRAVITY), atol=0.1, rtol=0)
    assert engine.body_pos.shape[1] == engine.contact_force.shape[1] == 15  # the character's alone


def test_one_ball_flies_and_all_else_goes_on(engine):
    before, root = engine.object_pos.clone(), engine.root_pos.clone()
    velocity = torch.tensor([0.5, 2.0, 3.0])
    throw(engine, 1, 0, (4.0, -3.0, 1.0), velocity.tolist())
    engine.flush()
    assert not engine.object_mask.any()
    torch.testing.assert_close(engine.object_pos[1, 0], torch.tensor([4.0, -3.0, 1.0]))
    torch.testing.assert_close(engine.root_pos, root, atol=1e-6, rtol=0)
    for _ in range(6):
        engine.step()
    time = 6 * DT
    # the velocity is updated before the position in each of 48 substeps
    fall = 0.5 * GRAVITY * time * (time + DT / 8)
    expected = torch.tensor([4.0, -3.0, 1.0]) + velocity * time - torch.tensor([0.0, 0.0, fall])
    torch.testing.assert_close(engine.object_pos[1, 0], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(engine.object_vel[1, 0], velocity - torch.tensor([0.0, 0.0, GRAVITY * time]),
                               atol=1e-3, rtol=0)
    assert (engine.object_force[1, 0] == 0.0).all()
    torch.testing.assert_close(engine.object_pos[0], before[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(engine.object_pos[1, 1], before[1, 1], atol=1e-3, rtol=0)


def test_a_ball_hits_the_character_and_both_feel_it(engine):
    engine.root_pos.copy_(torch.tensor([0.0, 0.0, 0.8816]))
    engine.root_rot.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    for state in (engine.root_vel, engine.root_ang_vel, engine.dof_pos, engine.dof_vel, engine.command):
        state.zero_()
    engine.reset_mask.fill_(True)
    engine.step()
    torso = engine.body_pos[0, 1].tolist()
    throw(engine, 0, 0, (torso[0] + 1.0, torso[1], torso[2] + 0.2), (-13.0, 0.0, 0.5))
    felt = pushed = 0.0
    for _ in range(8):
        engine.step()
        pushed = max(pushed, engine.object_force[0, 0, :2].norm().item())
        felt = max(felt, engine.contact_force[0, 1:3, 0].abs().max().item())
    assert engine.object_vel[0, 0, 0] > -6.0  # it bounced off, or stopped
    assert (engine.object_force[1] - engine.object_force[1] * torch.tensor([0.0, 0.0, 1.0])).abs().max() < 0.1
    assert pushed > 1.0 and felt > 1.0
    assert engine.overflow.tolist() == [0, 0]


def test_what_was_saved_goes_on_exactly(engine):
    throw(engine, 0, 1, (2.0, 0.0, 1.0), (-12.0, 0.0, 1.0))
    saved = engine.state_dict()
    for _ in range(5):
        engine.step()
    expected = {name: tensor.clone() for name, tensor in engine.state_dict().items()}
    engine.load_state_dict(saved)
    for _ in range(5):
        engine.step()
    for name, tensor in engine.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
