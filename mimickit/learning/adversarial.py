"""Adversarial reward: a discriminator tells the policy's motion from the reference; the policy is rewarded for fooling
it.

AMP and ASE (Peng et al. 2021, "AMP: Adversarial Motion Priors for Stylized Physics-Based Character Control"; Peng et
al. 2022, "ASE") compare what the policy does with independent :class:`Demonstrations`. ADD (Zhang et al. 2025,
"Physics-Based Motion Imitation with Adversarial Differential Discriminators") judges :class:`Differences` between
reference and policy, whose only real example is zero. ``n`` size of what is judged; "real" is what the discriminator
should accept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mimickit.envs.base import VecEnv
from mimickit.learning import rl_math
from mimickit.learning.config import AdversarialConfig, NetName, check_replay, minibatch_plan
from mimickit.learning.metrics import Metric, TestMetrics
from mimickit.learning.model import PASS_SAMPLES, build_head, build_net
from mimickit.learning.normalizer import MeanAbsNormalizer, MeanStdNormalizer
from mimickit.learning.optim import BatchLoss, FlatOptimizer, NetworkUpdate
from mimickit.learning.ppo import RewardSource
from mimickit.learning.relu_layers import aligned, aligned_size, penalized_entropy
from mimickit.learning.rollout import MinibatchSampler, ReplayBuffer, Rollout
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError

MAX_SOFTPLUS = -math.log(1e-4)  # 9.21034: 1 - probability counts as at least 1e-4
DISC_OBS_CLIP = 10.0
LOGIT_INIT_SCALE = 1.0


# --- mathematics ------------------------------------------------------------------------------------------------------


def style_reward(logit: Tensor, scale: float) -> Tensor:
    """-scale ln(max(1 - sigmoid(logit), 1e-4)), like logit [...]: 0 for what is surely the policy's, 9.21 scale for
    what is surely real. Computed as softplus, which loses no digits."""
    return scale * functional.softplus(logit).clamp(max=MAX_SOFTPLUS)


def discriminator_loss(
    net: nn.Module, x: Tensor, count: int, grad_penalty: float, logit_reg: float
) -> dict[str, Tensor]:
    """Loss of a discriminator, and what to log (without gradient); all 0-d.

    Half the cross entropy of both sides, plus the penalty (half the mean squared gradient of the logit with respect to
    the input, of both sides; differentiated through), plus the squared weights of the last layer.

    Args:
        net: linear layers with a ReLU after each but the last, ``_disc_logits``; [B, n] -> logits [B].
        x: [M + P, n] normalized, first M = ``count`` samples of the policy, then P real ones; ``aligned``, of the type
            that layers shall compute in.
    """
    weight = net._disc_logits.weight
    label, share = weight.new_ones(len(x)), weight.new_full((len(x),), 0.5 / (len(x) - count))
    label[:count].fill_(-1.0)
    share[:count].fill_(0.5 / count)
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    loss, logits, square = penalized_entropy(layers, x, label, share, grad_penalty)
    judged = torch.stack([(label * logits > 0.0).to(logits.dtype), logits])
    neg_acc, neg_logit = judged[:, :count].mean(-1)
    pos_acc, pos_logit = judged[:, count:].mean(-1)
    logit_loss = weight.square().sum()
    return {
        "loss": loss + logit_reg * logit_loss,
        "grad_penalty": (share * square).sum(),
        "logit_loss": logit_loss,
        "neg_acc": neg_acc,
        "pos_acc": pos_acc,
        "neg_logit": neg_logit,
        "pos_logit": pos_logit,
    }


def reward_metrics(name: str, reward: Tensor, dist: Distributed) -> dict[str, Metric]:
    """Metrics ``<name>_Mean`` and ``<name>_Std`` (unbiased) of rewards [T, N], over all processes."""
    mean, std = rl_math.mean_and_std(dist.sum_(rl_math.masked_moments(reward, torch.ones_like(reward))))
    return {f"{name}_Mean": Metric(mean), f"{name}_Std": Metric(std)}


class DiscriminatorNet(nn.Module):
    """Logits of normalized input; parameter names are those of the model file."""

    def __init__(self, input_size: int, net: NetName) -> None:
        super().__init__()
        self._disc_layers, features = build_net(net, input_size)
        self._disc_logits = build_head(features, 1, LOGIT_INIT_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> [...]."""
        return self._disc_logits(self._disc_layers(x)).squeeze(-1)


# --- what is judged ---------------------------------------------------------------------------------------------------


class DiscBuffer:
    """A rollout of samples [T, N, n] by name, and the input that networks make of them: normalized once, [T * N, m],
    aligned.

    Where networks compute in float32 the normalized samples take the place of the samples.

    Args:
        names: of the tensors; ``agent``, the policy's samples, is among them.
        dtype: what networks compute in.
    """

    def __init__(
        self, env: VecEnv, steps: int, norm: MeanStdNormalizer | MeanAbsNormalizer, size: int, names: Sequence[str],
        dtype: torch.dtype,
    ) -> None:
        self._names, self._size, self._dtype = tuple(names), size, dtype
        self.norm = norm
        self._samples = self._normalized = Rollout(steps, env.num_envs, dict.fromkeys(names, (size,)), env.device)
        if dtype != torch.float32:
            self._normalized = Rollout(
                steps, env.num_envs, dict.fromkeys(names, (aligned_size(size, dtype),)), env.device,
                dtypes=dict.fromkeys(names, dtype))

    def record(self, t: int, **samples: Tensor) -> None:
        """Samples [N, n] of step ``t``."""
        self._samples.record(t, **samples)

    def samples(self) -> Tensor:
        """The policy's [T, N, n], not normalized; until :meth:`normalize`."""
        return self._samples["agent"]

    def record_norm(self) -> None:
        """Add all to the normalizer's pending sums; before :meth:`normalize`."""
        for name in self._names:
            self.norm.record(self._samples[name])

    def normalize(self) -> None:
        """Make the input of networks."""
        for name in self._names:
            samples, normalized = (part[name].flatten(0, 1) for part in (self._samples, self._normalized))
            for rows, filled in zip(samples.split(PASS_SAMPLES), normalized.split(PASS_SAMPLES), strict=True):
                filled[:, :self._size].copy_(self.norm.normalize(rows))

    def normalized(self) -> Tensor:
        """Input of networks for the policy's samples, [T * N, m]."""
        return self._normalized["agent"].flatten(0, 1)

    def take(self, name: str, index: Tensor) -> Tensor:
        """Rows [B, m] of the input of networks, by index [B]."""
        return self._normalized.take(name, index)

    def as_input(self, samples: Tensor) -> Tensor:
        """Input of networks, [B, m], for other samples [B, n]."""
        return aligned(self.norm.normalize(samples), self._dtype)


class Demonstrations:
    """AMP: the policy's recent states against as many independent ones of the reference clips.

    The environment provides both in every step, ``disc_obs`` and ``disc_demo``.

    Attributes:
        size: n.
        metric_names: name in :func:`discriminator_loss` -> name in the log, in its order.
    """

    metric_names: ClassVar[dict[str, str]] = {
        "loss": "Disc_Loss", "grad_penalty": "Disc_Grad_Penalty", "neg_acc": "Disc_Agent_Acc",
        "pos_acc": "Disc_Demo_Acc", "neg_logit": "Disc_Agent_Logit", "pos_logit": "Disc_Demo_Logit",
        "logit_loss": "Disc_Logit_Loss",
    }

    def __init__(self, env: VecEnv, config: AdversarialConfig, dtype: torch.dtype = torch.float32) -> None:
        """Args: ``dtype`` what networks compute in."""
        self._obs, self._demo = require_info(env, "disc_obs", "disc_demo")
        self.size = self._obs.shape[-1]
        norm = MeanStdNormalizer(self.size, env.device, DISC_OBS_CLIP)
        self.buffer = DiscBuffer(env, config.steps_per_iter, norm, self.size, ("agent", "real"), dtype)
        if config.disc_logit_reg == 0.0:
            self.metric_names = {term: name for term, name in self.metric_names.items() if term != "logit_loss"}

    def now(self) -> Tensor:
        """The policy's sample [N, n] of the last step, not normalized."""
        return self._obs

    def real_now(self) -> Tensor:
        """Real samples [*, n] of this moment, not normalized."""
        return self._demo

    def record(self, t: int) -> None:
        self.buffer.record(t, agent=self._obs, real=self._demo)

    def real(self, index: Tensor) -> Tensor:
        """Input of networks, [P, m], for the real side of a minibatch."""
        return self.buffer.take("real", index)


class Differences:
    """ADD: reference minus policy at the same instant, against the one real example there is: no difference.

    The environment provides both in every step, ``disc_obs`` and ``disc_obs_demo``. Methods as of
    :class:`Demonstrations`.
    """

    metric_names: ClassVar[dict[str, str]] = {
        "loss": "Disc_Loss", "grad_penalty": "Disc_Grad_Penalty", "logit_loss": "Disc_Logit_Loss",
        "pos_acc": "Disc_Pos_Acc", "neg_acc": "Disc_Neg_Acc", "pos_logit": "Disc_Pos_Logit",
        "neg_logit": "Disc_Neg_Logit",
    }

    def __init__(self, env: VecEnv, config: AdversarialConfig, dtype: torch.dtype = torch.float32) -> None:
        """Args: ``dtype`` what networks compute in."""
        self._obs, self._reference = require_info(env, "disc_obs", "disc_obs_demo")
        self.size = self._obs.shape[-1]
        self.buffer = DiscBuffer(env, config.steps_per_iter, MeanAbsNormalizer(self.size, env.device), self.size,
                                 ("agent",), dtype)
        self._zero = torch.zeros(1, self.size, device=env.device)
        self._real = aligned(self._zero, dtype)  # normalized or not

    def now(self) -> Tensor:
        return self._reference - self._obs

    def real_now(self) -> Tensor:
        return self._zero

    def record(self, t: int) -> None:
        self.buffer.record(t, agent=self.now())

    def real(self, index: Tensor) -> Tensor:
        return self._real


DiscData = Demonstrations | Differences  # what a discriminator judges: the policy's samples, and real ones


def require_info(env: VecEnv, *names: str) -> list[Tensor]:
    """Entries of the environment's ``info``. Raises UserError naming those it lacks."""
    missing = [name for name in names if name not in env.info]
    if missing:
        raise UserError(
            f"this agent needs {', '.join(missing)}, which the environment does not provide (it has "
            f"{', '.join(env.info) or 'nothing'}): AMP, ASE and SMP go with env_name amp, smp, ase, task_location "
            f"or task_steering, ADD with env_name add"
        )
    return [env.info[name] for name in names]


# --- the reward source ------------------------------------------------------------------------------------------------


class Discriminator(RewardSource):
    """Rewards what the discriminator takes for real, and trains it.

    Rewards are computed with network and normalizer as they were during the rollout. The replay buffer is filled before
    it is used, so it always holds samples of the present rollout too.

    Raises:
        UserError: a minibatch is larger than the replay buffer.
    """

    def __init__(self, env: VecEnv, config: AdversarialConfig, dist: Distributed, data: DiscData) -> None:
        device, num_envs = env.device, env.num_envs
        check_replay(config, num_envs)
        plan = minibatch_plan(config.steps_per_iter, num_envs, config.disc_batch_size, config.disc_epochs)
        self.data, self.buffer = data, data.buffer
        self._config, self._dist = config, dist
        self.net = DiscriminatorNet(data.size, config.model.disc_net).to(device)
        optimizer = FlatOptimizer(dict(self.net.named_parameters()), config.disc_optimizer, dist)
        self._replay = ReplayBuffer(config.disc_buffer_size, data.size, device)
        self.update = NetworkUpdate(self._loss, optimizer, *plan, dist, config.cuda_graphs, samplers=2)
        self.modules = {"_disc_obs_norm": self.buffer.norm, "disc_optimizer": optimizer}
        self.per_process = {"disc_replay": self._replay}
        self.test_metrics = TestMetrics(
            test_metric_names(data), self._test_values, num_envs, device, config.cuda_graphs)

    def input_now(self) -> Tensor:
        """Input of networks for the policy's last step, [N, m]."""
        return self.buffer.as_input(self.data.now())

    def record(self, t: int) -> None:
        self.data.record(t)

    def record_norm(self) -> None:
        self.buffer.record_norm()

    @torch.no_grad()
    def reward(self) -> tuple[Tensor, dict[str, Metric]]:
        # The replay keeps samples as they are, so it comes first: normalizing may take their place.
        config, samples = self._config, self.buffer.samples()
        self._replay.push_rollout(samples.flatten(0, 1), config.disc_replay_samples)
        self.buffer.normalize()
        parts = self.buffer.normalized().split(config.disc_eval_batch_size or PASS_SAMPLES)
        logits = torch.cat([self.net(part) for part in parts])
        reward = style_reward(logits, config.disc_reward_scale).view(samples.shape[:2])
        return config.disc_reward_weight * reward, reward_metrics("Disc_Reward", reward, self._dist)

    def steps(self, sampler: MinibatchSampler) -> Iterator[None]:
        return self.update.steps(sampler, self._replay.walk)

    def _loss(self, index: Tensor, replay_index: Tensor) -> BatchLoss:
        """Policy's samples of the rollout, as many of the replay, and real ones."""
        replayed = self.buffer.as_input(self._replay.take(replay_index))
        x = torch.cat([self.buffer.take("agent", index), replayed, self.data.real(index)])
        terms = discriminator_loss(
            self.net, x, 2 * len(index), self._config.disc_grad_penalty, self._config.disc_logit_reg)
        values = torch.stack([terms[term].detach() for term in self.data.metric_names])
        return BatchLoss(terms["loss"], float(len(index)), tuple(self.data.metric_names.values()), values)

    def update_norm(self) -> None:
        self.buffer.norm.update(self._dist)

    def _test_values(self) -> tuple[Tensor, ...]:
        """Present values of :func:`test_metric_names`, [N] each."""
        logit = self.net(self.input_now())
        real = self.net(self.buffer.as_input(self.data.real_now())).expand_as(logit)
        reward = style_reward(logit, self._config.disc_reward_scale)
        return reward, (logit < 0.0).double(), (real > 0.0).double(), logit, real


def test_metric_names(data: DiscData) -> tuple[str, ...]:
    """What a test logs of the discriminator, ``test_disc_reward`` and its like: mean reward, accuracies, logits."""
    names = (data.metric_names[term].lower() for term in ("neg_acc", "pos_acc", "neg_logit", "pos_logit"))
    return ("test_disc_reward", *(f"test_{name}" for name in names))
