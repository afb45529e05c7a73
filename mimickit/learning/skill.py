"""Skills (Peng et al. 2022, "ASE: Large-Scale Reusable Adversarial Skill Embeddings"): a latent that the policy obeys.

A latent is a unit vector of ``L`` numbers, drawn anew every few seconds. An encoder guesses it from the motion and
pays for being guessed right; a further loss of the actor keeps different latents apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mimickit.envs.base import VecEnv
from mimickit.learning.agent import prefixed
from mimickit.learning.buffer import MinibatchSampler, Rollout, minibatch_plan
from mimickit.learning.discriminator import AdversarialConfig, DiscModelConfig, Discriminator, mean_and_std_columns
from mimickit.learning.measures import TestMeasures
from mimickit.learning.nets import NetName, build_head, build_net
from mimickit.learning.optimizers import FlatOptimizer, OptimizerConfig
from mimickit.learning.policy_agent import PASS_SAMPLES, check_batch_sizes, join
from mimickit.learning.stats import Stat
from mimickit.learning.update import BatchLoss, NetworkUpdate
from mimickit.util.distributed import Distributed

ENC_INIT_SCALE = 0.1
MIN_NORM = 1e-12


class SkillModelConfig(DiscModelConfig):
    """Mapping ``model`` of an agent with skills."""

    enc_net: NetName
    latent_dim: int = Field(ge=1, description="numbers of a latent")


class SkillConfig(AdversarialConfig):
    """Keys of an agent with skills."""

    model: SkillModelConfig
    enc_optimizer: OptimizerConfig
    enc_epochs: int = Field(ge=1, description="passes over the rollout")
    enc_batch_size: float = Field(gt=0.0, description="samples per environment in a minibatch")
    enc_eval_batch_size: int = Field(0, ge=0, description="samples per reward pass, 0 = as is fast")
    enc_reward_weight: float
    diversity_weight: float = Field(ge=0.0)
    diversity_tar: float = Field(description="action change aimed at, relative to the change of the latent")
    latent_time_min: float = Field(ge=0.0, description="s, shortest time before a new latent")
    latent_time_max: float = Field(ge=0.0, description="s, longest time before a new latent")

    @model_validator(mode="after")
    def _times_in_order(self) -> SkillConfig:
        if self.latent_time_min > self.latent_time_max:
            raise ValueError(f"latent_time_min = {self.latent_time_min} exceeds latent_time_max = "
                             f"{self.latent_time_max}")
        return self


def random_unit_like(x: Tensor) -> Tensor:
    """Vectors like x [..., L], uniform on the unit sphere."""
    return functional.normalize(torch.randn_like(x), dim=-1, eps=MIN_NORM)


def encoder_reward(latent: Tensor, guess: Tensor) -> Tensor:
    """max(0, z . E) [...] of unit vectors [..., L]."""
    return (latent * guess).sum(-1).clamp(min=0.0)


def encoder_error(latent: Tensor, guess: Tensor) -> Tensor:
    """-z . E [...] of unit vectors [..., L]: the negative log-likelihood of a von Mises-Fisher distribution, but for
    constants."""
    return -(latent * guess).sum(-1)


def diversity_loss(mean: Tensor, other_mean: Tensor, latent: Tensor, other: Tensor, target: float) -> Tensor:
    """How far the change of the action misses ``target`` times the change of the latent, squared, [B].

    Args:
        mean, other_mean: [B, A] normalised actions' means for the latents ``latent`` and ``other`` [B, L].
    """
    action_change = functional.mse_loss(other_mean, mean, reduction="none").mean(-1)
    latent_change = 0.5 - 0.5 * (latent * other).sum(-1)
    return (target - action_change / (latent_change + 1e-5)).square()


class Encoder(nn.Module):
    """Guesses the latent from a normalised discriminator observation; parameter names are those of the model file."""

    def __init__(self, input_size: int, net: NetName, latent_dim: int) -> None:
        super().__init__()
        self._enc_layers, features = build_net(net, input_size)
        self._enc_out = build_head(features, latent_dim, ENC_INIT_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> unit vectors [..., L]."""
        return functional.normalize(self._enc_out(self._enc_layers(x)), dim=-1, eps=MIN_NORM)


class Latents:
    """Every environment's present latent; implements ``Latent``.

    New ones, each for a time drawn uniformly from [latent_time_min, latent_time_max], are drawn before the action:
    where an episode begins, and where the time is over.
    """

    def __init__(self, env: VecEnv, config: SkillConfig) -> None:
        self.size = size = config.model.latent_dim
        self.values = torch.zeros(env.num_envs, size, device=env.device)
        self._expiry = torch.zeros(env.num_envs, device=env.device)  # s since the environment's reset
        self._env = env
        self._shortest, self._span = config.latent_time_min, config.latent_time_max - config.latent_time_min
        self._rollout = Rollout(config.steps_per_iter, env.num_envs, {"latent": (size,)}, env.device)

    def refresh(self) -> None:
        steps = self._env.steps
        time = steps * self._env.dt
        due = (steps == 0) | (time >= self._expiry)
        expiry = time + self._shortest + self._span * torch.rand_like(self._expiry)
        self.values.copy_(torch.where(due.unsqueeze(-1), random_unit_like(self.values), self.values))
        self._expiry.copy_(torch.where(due, expiry, self._expiry))

    def record(self, t: int) -> None:
        self._rollout.record(t, latent=self.values)

    def recorded(self) -> Tensor:
        return self._rollout["latent"]

    def take(self, index: Tensor) -> Tensor:
        return self._rollout.take("latent", index)

    def state_tensors(self) -> dict[str, Tensor]:
        return {"values": self.values, "expiry": self._expiry}


class DiversityTerm:
    """Different latents shall give different actions; implements ``ActorTerm``."""

    column = "Diversity_Loss"

    def __init__(self, config: SkillConfig) -> None:
        self.weight = config.diversity_weight
        self._target = config.diversity_tar
        self._size = config.model.latent_dim

    def variant(self, x: Tensor) -> Tensor:
        obs, latent = x[:, :-self._size], x[:, -self._size:]
        return join(obs, random_unit_like(latent))

    def loss(self, x: Tensor, mean: Tensor, variant: Tensor, variant_mean: Tensor) -> Tensor:
        latent, other = x[:, -self._size:], variant[:, -self._size:]
        return diversity_loss(mean, variant_mean, latent, other, self._target)


class SkillReward:
    """Pays for motion from which the encoder can tell the latent, and trains the encoder; ``RewardSource``.

    Looks at what the discriminator looks at, normalised by it; comes after it in the agent's sources.
    """

    def __init__(
        self, env: VecEnv, config: SkillConfig, dist: Distributed, discriminator: Discriminator, latents: Latents
    ) -> None:
        check_batch_sizes(config, "enc")
        self._config = config
        self._dist = dist
        self._disc = discriminator
        self._latents = latents
        self._net = Encoder(discriminator.evidence.size, config.model.enc_net, config.model.latent_dim).to(env.device)
        optimizer = FlatOptimizer(dict(self._net.named_parameters()), config.enc_optimizer, dist)
        plan = minibatch_plan(config.steps_per_iter, env.num_envs, config.enc_batch_size, config.enc_epochs)
        self._update = NetworkUpdate(self._loss, ("Enc_Loss",), optimizer, *plan, dist, config.cuda_graphs)
        self.measures = TestMeasures(("test_enc_reward",), self._judge, env.num_envs, env.device, config.cuda_graphs)

    def record(self, t: int) -> None:
        """Latents and observations are recorded by their owners."""

    @torch.no_grad()
    def reward(self) -> tuple[Tensor, dict[str, Stat]]:
        seen, latent = self._disc.evidence.rollout.seen(), self._latents.recorded()
        guesses = [self._net(chunk) for chunk in seen.split(self._config.enc_eval_batch_size or PASS_SAMPLES)]
        reward = encoder_reward(latent, torch.cat(guesses).view(latent.shape))
        return self._config.enc_reward_weight * reward, mean_and_std_columns("Enc_Reward", reward, self._dist)

    def steps(self, sampler: MinibatchSampler) -> Iterator[None]:
        return self._update.steps(sampler)

    def stats(self) -> dict[str, Stat]:
        return self._update.stats()

    def _loss(self, index: Tensor) -> BatchLoss:
        guess = self._net(self._disc.evidence.rollout.take("agent", index))
        loss = encoder_error(self._latents.take(index), guess).mean()
        return BatchLoss(loss, float(index.shape[0]), loss.detach().view(1))

    def record_norm(self) -> None:
        """The normaliser is the discriminator's."""

    def fold(self) -> None:
        """As record_norm."""

    def _judge(self) -> tuple[Tensor, ...]:
        return (encoder_reward(self._latents.values, self._net(self._disc.seen_now())),)

    def model_tensors(self) -> dict[str, Tensor]:
        return prefixed("_model.", dict(self._net.named_parameters()))

    def model_loaded(self) -> None:
        self._update.optimizer.broadcast()

    def state_tensors(self) -> dict[str, Tensor]:
        return prefixed("enc_optimizer.", self._update.optimizer.state_tensors())

    def local_state(self) -> dict[str, Tensor]:
        return {}

    def load_local_state(self, state: dict[str, Tensor], where: str) -> None:
        """Latents belong to the agent."""
