"""Policies that learned nothing, of every agent, exported from environments on the fake engine."""

from __future__ import annotations

from pathlib import Path

import torch

from mimickit.anim.motion import LoopMode
from mimickit.config import load_layered
from mimickit.deploy.export import Source, export_policy
from mimickit.envs.env_builder import build_env, make_env_config
from mimickit.learning.config import parse_agent_config
from mimickit.learning.methods import build_agent
from mimickit.util.checkpoint import save_model
from mimickit.util.distributed import Distributed
from tests.unit.env_case import ROOT, settings, write_clip
from tests.unit.fake_engine import FakeEngine, engine_config

CASES = {  # by name: environment, agent file
    "PPO": ("deepmimic", "deepmimic_humanoid_ppo"), "AWR": ("deepmimic", "deepmimic_humanoid_awr"),
    "AMP": ("amp", "amp_humanoid"), "ADD": ("add", "add_humanoid"), "ASE": ("ase", "ase_humanoid"),
    "location": ("amp_location", "amp_task_humanoid"), "steering": ("amp_steering", "amp_task_humanoid"),
}


def make(name: str, folder: Path, num_envs: int = 4, clip: Path | None = None, **changes):
    """Environment, agent and exported policy of a case, with normalizers that do something."""
    environment, file = CASES[name]
    clip = clip or write_clip(folder / "clip.pkl", loop=LoopMode.WRAP)
    env_config = make_env_config(settings(environment, motion_file=clip, **changes), f"{environment}_env.yaml")
    agent_data = load_layered(ROOT / f"data/agents/{file}_agent.yaml")
    agent_config = parse_agent_config(agent_data, file)
    torch.manual_seed(3)
    env = build_env(env_config, engine_config(), num_envs, "cpu", make_engine=FakeEngine)
    agent = build_agent(env, agent_config, Distributed(0, 1, 0, torch.device("cpu")))
    with torch.no_grad():
        agent._obs_norm.mean.normal_()
        agent._obs_norm.std.uniform_(0.2, 2.0)
        agent._model._action_dist._mean_net.weight.normal_(std=0.05)
    save_model(folder / "model.pt", agent.model_tensors())
    policy = export_policy(Source(env_config, engine_config(), agent_config, folder / "model.pt", "0" * 40),
                           folder / "policy")
    return env, agent, policy
