"""Proximal policy optimisation (Schulman et al. 2017), the base of the imitation methods."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from mimickit.envs.base import VecEnv
from mimickit.learning import ppo
from mimickit.learning.policy_agent import PolicyAgent, PolicyConfig
from mimickit.learning.stats import Stat
from mimickit.util.distributed import Distributed


class PPOKeys(PolicyConfig):
    """Keys of PPO and of the methods built on it."""

    ppo_clip_ratio: float = Field(gt=0.0)
    norm_adv_clip: float = Field(gt=0.0, description="deviations")


class PPOConfig(PPOKeys):
    """``agent_name: PPO``."""

    agent_name: Literal["PPO"]


class ClippedSurrogate:
    """PPO's objective (eq. 7) on normalised, clipped advantages; implements ``Objective``."""

    columns = ("Actor_Loss", "Clip_Frac", "Imp_Ratio")

    def __init__(self, config: PPOKeys) -> None:
        self._clip_ratio = config.ppo_clip_ratio
        self._adv_clip = config.norm_adv_clip

    def weigh(self, advantage: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, dict[str, Stat]]:
        return ppo.normalize_advantage(advantage, mean, std, self._adv_clip), {}

    def loss(self, log_prob: Tensor, log_ratio: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        found = ppo.surrogate_loss(log_ratio, weight, self._clip_ratio)
        return found.loss, found.clipped, found.ratio


def build(env: VecEnv, config: PPOConfig, dist: Distributed) -> PolicyAgent:
    """Plain PPO."""
    return PolicyAgent(env, config, dist, ClippedSurrogate(config))
