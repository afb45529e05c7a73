"""From an agent file's content to an agent."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mimickit.config import build, load_layered, nearest
from mimickit.envs.base import VecEnv
from mimickit.learning import adversarial_agents as adversarial
from mimickit.learning import awr_agent, older_layout, ppo_agent
from mimickit.learning.agent import Agent, AgentConfig
from mimickit.learning.dummy_agent import DummyAgent, DummyConfig
from mimickit.util.checkpoint import load_model
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError
from mimickit.util.files import write_text

CONFIGS: dict[str, type[AgentConfig]] = {
    "PPO": ppo_agent.PPOConfig, "AWR": awr_agent.AWRConfig, "AMP": adversarial.AMPConfig, "ADD": adversarial.ADDConfig,
    "ASE": adversarial.ASEConfig, "Dummy": DummyConfig,
}
UNSUPPORTED = {
    "LCP": "Lipschitz-constrained policies of MimicKit are not part of this project yet",
    "SMP": "score-matching motion priors of MimicKit are not part of this project yet",
}
RECIPES: dict[type[AgentConfig], Callable[[VecEnv, Any, Distributed], Agent]] = {
    ppo_agent.PPOConfig: ppo_agent.build, awr_agent.AWRConfig: awr_agent.build,
    adversarial.AMPConfig: adversarial.build_amp, adversarial.ADDConfig: adversarial.build_add,
    adversarial.ASEConfig: adversarial.build_ase, DummyConfig: DummyAgent,
}


def parse_agent_config(data: Mapping[str, Any] | None, where: str = "agent config") -> AgentConfig:
    """Validate the content of an agent file; None is the dummy agent.

    Args:
        where: the file's path, for messages.

    Raises:
        UserError: unknown ``agent_name``; unknown, missing or wrong keys.
    """
    if data is None:
        return DummyConfig()
    present, _ = present_layout(data, where)
    return build(_config_class(present, where), present, where)


def present_layout(data: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], str | None]:
    """An agent file's content in the present layout, and a sentence that says what was mapped if it was an older one.

    Raises:
        UserError: unknown ``agent_name``, or an older key's value that cannot be mapped.
    """
    cls = _config_class(data, where)
    if not older_layout.is_older(data):
        return data, None
    networks = [name.removesuffix("_optimizer") for name in cls.model_fields if name.endswith("_optimizer")]
    networks.sort(key=("actor", "critic", "disc", "enc").index)
    present, told = older_layout.to_present(data, networks, where)
    return present, f"{where} has the layout before February 2026 and is read as: {'; '.join(told)}"


def convert_agent_file(old: Path, new: Path) -> str:
    """Write an agent file of the older layout in the present one; returns the sentence that says what was mapped.

    Raises:
        AssetMissingError, UserError: ``old`` is missing, wrong, or has the present layout; ``new`` exists.
    """
    if new.exists():
        raise UserError(f"{new} exists: name another file, or remove it")
    data, mapped = present_layout(load_layered(old), str(old))
    if mapped is None:
        raise UserError(f"{old} has the present layout: nothing to convert")
    parse_agent_config(data, str(old))
    header = textwrap.fill(mapped, 118, initial_indent="# ", subsequent_indent="# ")
    write_text(new, f"{header}\n{yaml.safe_dump(dict(data), sort_keys=False)}")
    return mapped


def _config_class(data: Mapping[str, Any], where: str) -> type[AgentConfig]:
    name = data.get("agent_name")
    if name in CONFIGS:
        return CONFIGS[name]
    if name in UNSUPPORTED:
        raise UserError(f"{where}: agent_name '{name}': {UNSUPPORTED[name]}; supported: {', '.join(CONFIGS)}")
    given = f"agent_name '{name}' is not supported" if "agent_name" in data else "missing key 'agent_name'"
    raise UserError(f"{where}: {given}{nearest(str(name), CONFIGS)}; supported: {', '.join(CONFIGS)}")


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
