"""Skills (Peng et al. 2022, "ASE: Large-Scale Reusable Adversarial Skill Embeddings"): a latent that the policy obeys.

A latent is a unit vector of ``L`` numbers, drawn anew every few seconds. An encoder predicts it from the motion, and
the policy is rewarded when the prediction is right; a further loss of the actor keeps different latents apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from mimickit.envs.base import VecEnv
from mimickit.learning.adversarial import Discriminator, reward_metrics
from mimickit.learning.config import ASEConfig, NetName, minibatch_plan
from mimickit.learning.metrics import Metric, TestMetrics
from mimickit.learning.model import PASS_SAMPLES, build_head, build_net, join
from mimickit.learning.optim import BatchLoss, FlatOptimizer, NetworkUpdate
from mimickit.learning.ppo import RewardSource
from mimickit.learning.rollout import Rollout
from mimickit.util.checkpoint import fill_tensors
from mimickit.util.distributed import Distributed

ENC_INIT_SCALE = 0.1
MIN_NORM = 1e-12


def random_unit_like(x: Tensor) -> Tensor:
    """Vectors like x [..., L], uniform on the unit sphere."""
    return functional.normalize(torch.randn_like(x), dim=-1, eps=MIN_NORM)


def encoder_reward(latent: Tensor, prediction: Tensor) -> Tensor:
    """max(0, z . E) [...] of unit vectors [..., L]."""
    return (latent * prediction).sum(-1).clamp(min=0.0)


def encoder_error(latent: Tensor, prediction: Tensor) -> Tensor:
    """-z . E [...] of unit vectors [..., L]: the negative log-likelihood of a von Mises-Fisher distribution, but for
    constants."""
    return -(latent * prediction).sum(-1)


def diversity_loss(mean: Tensor, other_mean: Tensor, latent: Tensor, other: Tensor, target: float) -> Tensor:
    """How far the change of the action misses ``target`` times the change of the latent, squared, [B].

    Args:
        mean, other_mean: [B, A] normalized actions' means for the latents ``latent`` and ``other`` [B, L].
    """
    action_change = functional.mse_loss(other_mean, mean, reduction="none").mean(-1)
    latent_change = 0.5 - 0.5 * (latent * other).sum(-1)
    return (target - action_change / (latent_change + 1e-5)).square()


class Encoder(nn.Module):
    """Predicts the latent from a normalized discriminator observation; parameter names are those of the model file."""

    def __init__(self, input_size: int, net: NetName, latent_dim: int) -> None:
        super().__init__()
        self._enc_layers, features = build_net(net, input_size)
        self._enc_out = build_head(features, latent_dim, ENC_INIT_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> unit vectors [..., L]."""
        return functional.normalize(self._enc_out(self._enc_layers(x)), dim=-1, eps=MIN_NORM)


class Latents:
    """Every environment's present latent; a ``LatentInput``.

    New ones, each for a time drawn uniformly from [latent_time_min, latent_time_max], are drawn before the action:
    where an episode begins, and where the time is over.
    """

    def __init__(self, env: VecEnv, config: ASEConfig) -> None:
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
        """Latents [T, N, L] of the rollout."""
        return self._rollout["latent"]

    def take(self, index: Tensor) -> Tensor:
        """Latents [B, L] of the rollout by flat index [B]."""
        return self._rollout.take("latent", index)

    def state(self) -> dict[str, Tensor]:
        return {"values": self.values, "expiry": self._expiry}

    def load(self, state: Mapping[str, Tensor], where: str) -> None:
        fill_tensors(self.state(), state, where)


class DiversityTerm:
    """Different latents should give different actions; an ``ActorTerm``."""

    name = "Diversity_Loss"

    def __init__(self, config: ASEConfig) -> None:
        self.weight = config.diversity_weight
        self._target = config.diversity_tar
        self._size = config.model.latent_dim

    def variant(self, x: Tensor) -> Tensor:
        obs, latent = x[:, :-self._size], x[:, -self._size:]
        return join(obs, random_unit_like(latent))

    def loss(self, x: Tensor, mean: Tensor, variant: Tensor, variant_mean: Tensor) -> Tensor:
        latent, other = x[:, -self._size:], variant[:, -self._size:]
        return diversity_loss(mean, variant_mean, latent, other, self._target)


class SkillReward(RewardSource):
    """Rewards motion from which the encoder can tell the latent, and trains the encoder.

    Looks at what the discriminator looks at, recorded and normalized by it; comes after it in the agent's sources.
    """

    def __init__(
        self, env: VecEnv, config: ASEConfig, dist: Distributed, discriminator: Discriminator, latents: Latents
    ) -> None:
        self._config, self._dist = config, dist
        self._disc, self._latents = discriminator, latents
        self.net = Encoder(discriminator.data.size, config.model.enc_net, config.model.latent_dim).to(env.device)
        optimizer = FlatOptimizer(dict(self.net.named_parameters()), config.enc_optimizer, dist)
        plan = minibatch_plan(config.steps_per_iter, env.num_envs, config.enc_batch_size, config.enc_epochs)
        self.update = NetworkUpdate(self._loss, optimizer, *plan, dist, config.cuda_graphs)
        self.modules = {"enc_optimizer": optimizer}
        self.test_metrics = TestMetrics(
            ("test_enc_reward", "test_enc_similarity"), self._test_values, env.num_envs, env.device, config.cuda_graphs)

    @torch.no_grad()
    def reward(self) -> tuple[Tensor, dict[str, Metric]]:
        inputs, latent = self._disc.buffer.normalized(), self._latents.recorded()
        predictions = [self.net(part) for part in inputs.split(self._config.enc_eval_batch_size or PASS_SAMPLES)]
        reward = encoder_reward(latent, torch.cat(predictions).view(latent.shape))
        return self._config.enc_reward_weight * reward, reward_metrics("Enc_Reward", reward, self._dist)

    def _loss(self, index: Tensor) -> BatchLoss:
        prediction = self.net(self._disc.buffer.take("agent", index))
        loss = encoder_error(self._latents.take(index), prediction).mean()
        return BatchLoss(loss, float(index.shape[0]), ("Enc_Loss",), loss.detach().view(1))

    def _test_values(self) -> tuple[Tensor, ...]:
        latent, prediction = self._latents.values, self.net(self._disc.input_now())
        return encoder_reward(latent, prediction), -encoder_error(latent, prediction)
