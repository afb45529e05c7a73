"""AMP, ADD and ASE: PPO with an adversarial reward; each is a matter of composition."""

from __future__ import annotations

from typing import Literal

from mimickit.envs.base import VecEnv
from mimickit.learning.discriminator import AdversarialConfig, Demonstrations, Differences, Discriminator
from mimickit.learning.policy_agent import PolicyAgent
from mimickit.learning.ppo_agent import ClippedSurrogate
from mimickit.learning.skill import DiversityTerm, Latents, SkillConfig, SkillReward
from mimickit.util.distributed import Distributed


class AMPConfig(AdversarialConfig):
    """``agent_name: AMP``."""

    agent_name: Literal["AMP"]


class ADDConfig(AdversarialConfig):
    """``agent_name: ADD``."""

    agent_name: Literal["ADD"]


class ASEConfig(SkillConfig):
    """``agent_name: ASE``."""

    agent_name: Literal["ASE"]


def build_amp(env: VecEnv, config: AMPConfig, dist: Distributed) -> PolicyAgent:
    """PPO, paid for moving like the clips (and for the task)."""
    disc = Discriminator(env, config, dist, Demonstrations(env, config.steps_per_iter, config.hidden_dtype(env.device)))
    return PolicyAgent(env, config, dist, ClippedSurrogate(config), [disc], config.task_reward_weight)


def build_add(env: VecEnv, config: ADDConfig, dist: Distributed) -> PolicyAgent:
    """PPO, paid for not differing from the reference."""
    disc = Discriminator(env, config, dist, Differences(env, config.steps_per_iter, config.hidden_dtype(env.device)))
    return PolicyAgent(env, config, dist, ClippedSurrogate(config), [disc], config.task_reward_weight)


def build_ase(env: VecEnv, config: ASEConfig, dist: Distributed) -> PolicyAgent:
    """AMP whose policy obeys a latent that can be told from its motion."""
    disc = Discriminator(env, config, dist, Demonstrations(env, config.steps_per_iter, config.hidden_dtype(env.device)))
    latents = Latents(env, config)
    skill = SkillReward(env, config, dist, disc, latents)
    return PolicyAgent(
        env, config, dist, ClippedSurrogate(config), [disc, skill], config.task_reward_weight, latents,
        [DiversityTerm(config)],
    )
