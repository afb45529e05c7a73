"""From an agent file's content to an agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mimickit.config import build, nearest
from mimickit.envs.base import VecEnv
from mimickit.learning import adversarial_agents as adversarial
from mimickit.learning import awr_agent, ppo_agent
from mimickit.learning.agent import Agent, AgentConfig
from mimickit.learning.dummy_agent import DummyAgent, DummyConfig
from mimickit.util.checkpoint import load_model
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError

CONFIGS: dict[str, type[AgentConfig]] = {
    "PPO": ppo_agent.PPOConfig, "AWR": awr_agent.AWRConfig, "AMP": adversarial.AMPConfig, "ADD": adversarial.ADDConfig,
    "ASE": adversarial.ASEConfig, "Dummy": DummyConfig,
}
RECIPES: dict[type[AgentConfig], Callable[[VecEnv, Any, Distributed], Agent]] = {
    ppo_agent.PPOConfig: ppo_agent.build, awr_agent.AWRConfig: awr_agent.build,
    adversarial.AMPConfig: adversarial.build_amp, adversarial.ADDConfig: adversarial.build_add,
    adversarial.ASEConfig: adversarial.build_ase, DummyConfig: DummyAgent,
}

OLDER_KEYS = {
    "optimizer": "actor_optimizer and critic_optimizer (disc_optimizer, enc_optimizer), one mapping per network",
    "update_epochs": "actor_epochs and critic_epochs (disc_epochs, enc_epochs)",
    "batch_size": "actor_batch_size and critic_batch_size (disc_batch_size, enc_batch_size)",
    "critic_loss_weight": "critic_optimizer.learning_rate (losses are no longer summed)",
    "disc_loss_weight": "disc_optimizer.learning_rate (losses are no longer summed)",
    "enc_loss_weight": "enc_optimizer.learning_rate (losses are no longer summed)",
    "disc_weight_decay": "disc_optimizer.weight_decay",
}


def parse_agent_config(data: Mapping[str, Any] | None, where: str = "agent config") -> AgentConfig:
    """Validate the content of an agent file; None is the dummy agent.

    Args:
        where: the file's path, for messages.

    Raises:
        UserError: unknown ``agent_name``; unknown, missing or wrong keys; keys of the layout with one optimizer.
    """
    if data is None:
        return DummyConfig()
    name = data.get("agent_name")
    if name not in CONFIGS:
        given = f"agent_name '{name}' is not supported" if "agent_name" in data else "missing key 'agent_name'"
        raise UserError(f"{where}: {given}{nearest(str(name), CONFIGS)}; supported: {', '.join(CONFIGS)}")
    older = [key for key in OLDER_KEYS if key in data]
    if older:
        renamed = "; ".join(f"'{key}' became {OLDER_KEYS[key]}" for key in older)
        raise UserError(f"{where} uses keys of an older layout: {renamed}")
    return build(CONFIGS[name], data, where)


def build_agent(env: VecEnv, config: AgentConfig, dist: Distributed) -> Agent:
    """The agent that a configuration describes, on the environment's device."""
    return RECIPES[type(config)](env, config, dist)


def load_agent_model(agent: Agent, path: Path | str) -> None:
    """Warm start: fill networks and normalisers from a model file; counters and optimisers stay as they are.

    Raises:
        AssetMissingError, UserError: no such file, or it belongs to another agent or environment.
    """
    load_model(Path(path), agent.model_tensors())
    agent.model_loaded()
