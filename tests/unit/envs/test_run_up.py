"""A vault counts from its run-up: episodes that start with the box behind them prove nothing."""

import pytest
import torch

from mimickit.anim.motion import LoopMode
from mimickit.engines.engine import StaticObject
from mimickit.envs.base import EnvMode
from mimickit.envs.deepmimic import footprint, reaching_times
from tests.unit.env_case import ROOT, make_env, write_clip

BOX = ROOT / "data/assets/objects/vault_box.xml"


def vault(tmp_path, **changes):
    """The clip glides from x = 0 to 3 m in 1 s; the box fills 2.0 to 2.4 m."""
    clip = write_clip(tmp_path / "clip.pkl", speed=3.0, loop=LoopMode.CLAMP)
    return make_env("vault", num_envs=3, motion_file=clip, **changes)


def test_footprint():
    assert footprint(StaticObject(BOX, (0.0, 0.0, 0.0))) == [0.2, 1.0]


@pytest.mark.parametrize(("rot", "edge", "width"), [
    ([0.0, 0.0, 0.0, 1.0], 2.0, 1.0),
    ([0.0, 0.0, 0.5**0.5, 0.5**0.5], 1.2, 0.2),  # turned, the box is 2 m long and 0.4 m wide
])
def test_the_box_is_reached_when_the_foremost_body_is_above_its_edge(rot, edge, width, tmp_path):
    env = vault(tmp_path, objects=[{"file": str(BOX), "pos": [2.2, 0.0, 0.3], "rot": rot}])
    env.terms.reference.start.zero_()
    time = reaching_times(env.scene)

    def front(at):
        pos, _ = env.terms.reference.pose_of(0, at)
        return pos[pos[:, 1].abs() <= width, 0].max().item()

    assert front(time) >= edge > front(time - 1 / 30) > edge - 0.2


def test_a_box_beside_the_way_is_never_reached(tmp_path):
    env = vault(tmp_path, objects=[{"file": str(BOX), "pos": [2.2, 5.0, 0.3]}])
    assert reaching_times(env.scene).tolist() == [torch.inf]


def test_success_from_the_run_up(tmp_path):
    """One starts before the box and falls, two behind it and reach the end of the clip."""
    env = vault(tmp_path)
    env.terms.reference.start.copy_(torch.tensor([0.1, 0.9, 0.9]))
    env.set_mode(EnvMode.TEST)
    env.engine.step = lambda step=env.engine.step: (step(), env.engine.ground_contact_force[0, 0].fill_(100.0))
    for _ in range(4):
        ref = env.terms.reference.lookup(env._time() + env.dt)[0]
        env.engine.root_pos.copy_(ref.now.root_pos)
        env.step(env.character.rot_to_dof(ref.now.joint_rot))
        env.terms.reference.start[0] = 0.1
    found = env.metrics()
    assert found["run_up_success_rate"].item() == 0.0
    assert found["success_rate"].item() > 0.2
