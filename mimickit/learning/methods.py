"""What each method is composed of: :class:`PolicyAgent` with an objective, reward sources and actor terms."""

from __future__ import annotations

from mimickit.envs.base import VecEnv
from mimickit.learning.adversarial import Demonstrations, Differences, Discriminator
from mimickit.learning.agent import Agent
from mimickit.learning.ase import DiversityTerm, Latents, SkillReward
from mimickit.learning.config import AdversarialConfig, AgentConfig, ASEConfig, AWRConfig, DummyConfig, PPOConfig
from mimickit.learning.ppo import ClippedSurrogate, PolicyAgent, WeightedRegression
from mimickit.util.distributed import Distributed


def build_agent(env: VecEnv, config: AgentConfig, dist: Distributed) -> Agent:
    """The agent that a configuration describes, on the environment's device.

    Raises:
        UserError: agent and environment do not fit together.
    """
    match config:
        case ASEConfig():  # AMP whose policy obeys a latent that can be told from its motion
            disc = Discriminator(env, config, dist, Demonstrations(env, config))
            latents = Latents(env, config)
            return PolicyAgent(
                env, config, dist, ClippedSurrogate(config), [disc, SkillReward(env, config, dist, disc, latents)],
                config.task_reward_weight, latents, [DiversityTerm(config)])
        case AdversarialConfig():  # rewarded for moving like the clips (AMP), for not differing from them (ADD)
            data = Demonstrations if config.agent_name == "AMP" else Differences
            disc = Discriminator(env, config, dist, data(env, config))
            return PolicyAgent(env, config, dist, ClippedSurrogate(config), [disc], config.task_reward_weight)
        case PPOConfig():
            return PolicyAgent(env, config, dist, ClippedSurrogate(config))
        case AWRConfig():
            return PolicyAgent(env, config, dist, WeightedRegression(config))
        case DummyConfig():
            return Agent(env, config, dist)
    raise AssertionError(f"no recipe for {type(config).__name__}")
