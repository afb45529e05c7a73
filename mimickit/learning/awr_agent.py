"""Advantage-weighted regression (Peng et al. 2019, "Advantage-Weighted Regression: Simple and Scalable Off-Policy
Reinforcement Learning"), here on-policy: every iteration learns from its own rollout only, without the paper's replay.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mimickit.envs.base import VecEnv
from mimickit.learning import ppo
from mimickit.learning.policy_agent import PolicyAgent, PolicyConfig
from mimickit.learning.stats import Stat
from mimickit.util.distributed import Distributed


class AWRConfig(PolicyConfig):
    """``agent_name: AWR``."""

    agent_name: Literal["AWR"]
    awr_temp: float = Field(gt=0.0, description="temperature: smaller prefers good actions more strongly")
    a_weight_clip: float = Field(gt=0.0, description="largest weight of a sample")


def regression_weights(
    advantage: Tensor, mean: Tensor, std: Tensor, temperature: float, clip: float
) -> Tensor:
    """min(exp(normalised advantage / temperature), clip), like advantages [...], which are not clipped themselves."""
    return (ppo.normalize_advantage(advantage, mean, std, float("inf")) / temperature).exp().clamp(max=clip)


def regression_loss(log_prob: Tensor, weight: Tensor) -> Tensor:
    """-weight * log probability, [B]. Weights are not renormalised."""
    return -weight * log_prob


class WeightedRegression:
    """AWR's objective; implements ``Objective``."""

    columns = ("Actor_Loss",)

    def __init__(self, config: AWRConfig) -> None:
        self._temperature = config.awr_temp
        self._clip = config.a_weight_clip

    def weigh(self, advantage: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, dict[str, Stat]]:
        weight = regression_weights(advantage, mean, std, self._temperature, self._clip)
        low, high = torch.aminmax(weight)
        return weight, {
            "A_Weight_Mean": Stat(weight.mean()), "A_Weight_Min": Stat(low, "min"), "A_Weight_Max": Stat(high, "max"),
        }

    def loss(self, log_prob: Tensor, log_ratio: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (regression_loss(log_prob, weight),)


def build(env: VecEnv, config: AWRConfig, dist: Distributed) -> PolicyAgent:
    """Advantage-weighted regression."""
    return PolicyAgent(env, config, dist, WeightedRegression(config))
