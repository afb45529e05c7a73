"""What each method is composed of: :class:`PolicyAgent` with an objective, reward sources and actor terms."""

from __future__ import annotations

from mimickit.envs.base import VecEnv
from mimickit.learning.adversarial import Demonstrations, Differences, Discriminator
from mimickit.learning.agent import Agent
from mimickit.learning.ase import DiversityTerm, Latents, SkillReward
from mimickit.learning.config import (
    AdversarialConfig,
    AgentConfig,
    ASEConfig,
    AWRConfig,
    DummyConfig,
    PPOConfig,
    SMPConfig,
)
from mimickit.learning.model import hidden_dtype
from mimickit.learning.ppo import ClippedSurrogate, PolicyAgent, WeightedRegression
from mimickit.learning.smp import ScoreMatching
from mimickit.util.distributed import Distributed


def build_agent(env: VecEnv, config: AgentConfig, dist: Distributed) -> Agent:
    """The agent that a configuration describes, on the environment's device.

    Raises:
        UserError: agent and environment do not fit together.
    """
    match config:
        case ASEConfig():  # AMP whose policy obeys a latent that can be told from its motion
            disc, latents = discriminator(env, config, dist), Latents(env, config)
            sources = [disc, SkillReward(env, config, dist, disc, latents)]
            return PolicyAgent(env, config, dist, ClippedSurrogate(config), sources, config.task_reward_weight, latents,
                               [DiversityTerm(config)])
        case AdversarialConfig():
            sources = [discriminator(env, config, dist)]
            return PolicyAgent(env, config, dist, ClippedSurrogate(config), sources, config.task_reward_weight)
        case SMPConfig():  # a frozen prior in the discriminator's place
            sources = [ScoreMatching(env, config, dist)]
            return PolicyAgent(env, config, dist, ClippedSurrogate(config), sources, config.task_reward_weight)
        case PPOConfig():
            return PolicyAgent(env, config, dist, ClippedSurrogate(config))
        case AWRConfig():
            return PolicyAgent(env, config, dist, WeightedRegression(config))
        case DummyConfig():
            return Agent(env, config, dist)
    raise AssertionError(f"no recipe for {type(config).__name__}")


def discriminator(env: VecEnv, config: AdversarialConfig, dist: Distributed) -> Discriminator:
    """Rewards motion that looks like the clips' (AMP, ASE) or does not differ from the reference (ADD)."""
    data = Differences if config.agent_name == "ADD" else Demonstrations
    return Discriminator(env, config, dist, data(env, config, hidden_dtype(config, env.device)))
