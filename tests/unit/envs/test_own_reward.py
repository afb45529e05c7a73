"""The reward that docs/own_learner.md shows how to write."""

import re

import pytest
import torch
import yaml

from mimickit.config import load_layered
from mimickit.envs.env_builder import ENVS
from mimickit.util.rotations import exp_map_to_quat
from tests.unit.env_case import ROOT, make_env, write_clip


@pytest.fixture
def example(monkeypatch):
    """Runs the page's program, and takes its environment off the list afterwards."""
    page = (ROOT / "docs/own_learner.md").read_text().split("## Write a reward of your own")[1]
    program, settings = re.findall(r"```(?:python|yaml)\n(.*?)```", page, re.S)[:2]
    assert len(program.splitlines()) <= 30
    monkeypatch.setitem(ENVS, "upright", None)  # put back as it was
    exec(program, {"__name__": "upright"})
    return yaml.safe_load(settings)


def test_the_reward_is_added_to_the_others(tmp_path, example):
    clip = write_clip(tmp_path / "clip.pkl")
    rewards = []
    for weight in (0.0, 0.3):
        torch.manual_seed(0)
        env = make_env("deepmimic", motion_file=clip, env_name="upright", reward_upright_w=weight)
        env.engine.root_rot.copy_(exp_map_to_quat(torch.tensor([0.0, 1.2, 0.5])))
        env.step(torch.zeros(4, 28))
        rewards.append(env.reward.clone())
    height = 1.0 - 2.0 * env.engine.root_rot[:, :2].square().sum(dim=-1)  # of a unit vector along the root's own z
    assert 0.2 < height.min() < 0.9
    torch.testing.assert_close(rewards[1] - rewards[0], 0.3 * height)
    assert "rewards: tracking, upright" in env.describe()


def test_the_settings_are_differences(tmp_path, example):
    (tmp_path / "upright.yaml").write_text(yaml.safe_dump(example))
    shipped = load_layered(ROOT / "data/envs/deepmimic_humanoid_env.yaml")
    assert load_layered(tmp_path / "upright.yaml") == {**shipped, "env_name": "upright", "reward_upright_w": 0.3}
