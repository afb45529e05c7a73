"""A still environment and a small agent configuration to build parts of methods on."""

from __future__ import annotations

import torch

from mimickit.learning.config import parse_agent_config
from tests.contract.toy_style_env import agent_config


class StillEnv:
    """What agents read of an environment, set by hand."""

    dt = 0.1
    fail_reward = succ_reward = 0.0
    device = torch.device("cpu")

    def __init__(self, num_envs: int, disc_size: int = 2, **info: torch.Tensor) -> None:
        self.num_envs = num_envs
        self.action_low, self.action_high = -torch.ones(2), torch.ones(2)
        self.obs, self.next_obs = torch.zeros(num_envs, 3), torch.zeros(num_envs, 3)
        self.reward, self.done = torch.zeros(num_envs), torch.zeros(num_envs, dtype=torch.int32)
        self.steps = torch.zeros(num_envs, dtype=torch.int32)
        names = ("disc_obs", "disc_demo", "disc_obs_demo")
        self.info = {name: torch.zeros(num_envs, disc_size) for name in names} | info


class Linear(torch.nn.Module):
    """D(x) = 0.5 x1 - x2 + 0.1."""

    def __init__(self) -> None:
        super().__init__()
        self._disc_logits = torch.nn.Linear(2, 1)
        with torch.no_grad():
            self._disc_logits.weight.copy_(torch.tensor([[0.5, -1.0]]))
            self._disc_logits.bias.fill_(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._disc_logits(x).squeeze(-1)


def config(method: str, **changes):
    return parse_agent_config(agent_config(method, **changes))
