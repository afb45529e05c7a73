"""The boxes of the vaults: hands meet them in the clip and in the simulation, and a box is not the ground."""

from pathlib import Path

import pytest
import torch

from mimickit.anim.motion_lib import MotionLib
from mimickit.engines.engine_config import load_engine_config
from mimickit.envs.env_builder import build_env, load_env_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("case, hands", [
    ("vault_humanoid", ["left_hand"]),
    ("vault_g1", ["left_rubber_hand", "right_rubber_hand", "left_wrist_yaw_link", "right_wrist_yaw_link"]),
])
def test_hands_push_on_the_box(case, hands, monkeypatch):
    """One world for each 1/30 s of the clip, started there and held for one control step."""
    monkeypatch.chdir(ROOT)
    config = load_env_config(f"data/envs/{case}_env.yaml")
    probe = MotionLib(config.motion_file, build_character(config))
    times = torch.arange(0.0, float(probe.lengths[0]), 1 / 30)
    env = build_env(config, load_engine_config("data/engines/newton_engine.yaml"), len(times), "cpu")
    engine, names = env.engine, list(env.engine.body_names)
    frame = MotionLib(config.motion_file, env.character).frame(torch.zeros(len(times), dtype=torch.int64), times)
    engine.root_pos.copy_(frame.root_pos)
    engine.root_rot.copy_(frame.root_rot)
    engine.root_vel.copy_(frame.root_vel)
    engine.root_ang_vel.copy_(frame.root_ang_vel)
    engine.dof_pos.copy_(env.character.rot_to_dof(frame.joint_rot))
    engine.dof_vel.copy_(frame.dof_vel)
    engine.command.copy_(engine.dof_pos)
    engine.reset_mask.fill_(True)
    engine.step()

    ids = [names.index(name) for name in hands if name in names]
    assert ids, names
    on_ground = engine.ground_contact_force[:, ids].norm(dim=-1)
    on_box = (engine.contact_force - engine.ground_contact_force)[:, ids].norm(dim=-1).amax(dim=-1)
    assert on_box.max() > 20.0  # N: the hand carries
    assert (on_box > 0).sum() >= 2 and (on_box > 0).float().mean() < 0.5  # for a while, not all the time
    assert on_ground.max() == 0
    assert engine.ground_contact_force[:, :, 2].sum(dim=-1).max() > 100.0  # feet on the ground before and after
    assert engine.overflow.tolist() == [0, 0] and torch.isfinite(engine.body_pos).all()
    env.close()


def build_character(config):
    from mimickit.anim.character import Character

    return Character.load(config.char_file, "cpu")
