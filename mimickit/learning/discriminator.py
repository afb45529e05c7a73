"""Adversarial reward: a discriminator tells the agent's motion from the reference, and the agent is paid to fool it.

One part serves three methods. AMP and ASE (Peng et al. 2021, "AMP: Adversarial Motion Priors for Stylized Physics-Based
Character Control"; Peng et al. 2022, "ASE") compare what the agent does with independent :class:`Demonstrations`. ADD
(Zhang et al. 2025, "Physics-Based Motion Imitation with Adversarial Differential Discriminators") judges
:class:`Differences` between reference and agent, whose only good example is zero. ``n`` size of what is judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mimickit.config import Config
from mimickit.envs.base import VecEnv
from mimickit.learning import ppo
from mimickit.learning.agent import prefixed
from mimickit.learning.buffer import MinibatchSampler, Rollout, minibatch_plan
from mimickit.learning.grad_penalty import penalized_entropy
from mimickit.learning.measures import TestMeasures
from mimickit.learning.nets import NetName, build_head, build_net
from mimickit.learning.normalizer import MeanAbsNormalizer, MeanStdNormalizer
from mimickit.learning.optimizers import FlatOptimizer, OptimizerConfig
from mimickit.learning.policy import ModelConfig
from mimickit.learning.policy_agent import PASS_SAMPLES, check_batch_sizes
from mimickit.learning.ppo_agent import PPOKeys
from mimickit.learning.relu_layers import aligned, aligned_size
from mimickit.learning.replay import ReplayRing
from mimickit.learning.stats import Stat
from mimickit.learning.update import BatchLoss, NetworkUpdate
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError

MAX_SOFTPLUS = -math.log(1e-4)  # 9.21034: 1 - probability counts as at least 1e-4
DISC_OBS_CLIP = 10.0
LOGIT_INIT_SCALE = 1.0


class DiscModelConfig(ModelConfig):
    """Mapping ``model`` of an agent with a discriminator."""

    disc_net: NetName


class DiscKeys(Config):
    """Keys of the discriminator."""

    disc_optimizer: OptimizerConfig
    disc_epochs: int = Field(ge=1, description="passes over the rollout")
    disc_batch_size: float = Field(gt=0.0, description="samples per environment in a minibatch")
    disc_eval_batch_size: int = Field(0, ge=0, description="samples per reward pass, 0 = as is fast")
    disc_buffer_size: int = Field(ge=1, description="samples in the replay ring of a process")
    disc_replay_samples: int = Field(ge=0, description="samples of a rollout that enter the ring once it is full")
    disc_logit_reg: float = Field(ge=0.0, description="of the squared weights of the last layer")
    disc_grad_penalty: float = Field(ge=0.0, description="of the squared slope at all samples")
    disc_reward_scale: float = Field(ge=0.0)
    disc_reward_weight: float


class AdversarialConfig(PPOKeys, DiscKeys):
    """Keys that AMP, ADD and ASE share."""

    model: DiscModelConfig
    task_reward_weight: float = Field(description="of the environment's reward")


# --- mathematics ------------------------------------------------------------------------------------------------------


def style_reward(logit: Tensor, scale: float) -> Tensor:
    """-scale ln(max(1 - sigmoid(logit), 1e-4)), like logit [...]: 0 for what is surely the agent's, 9.21 scale for
    what is surely the reference's. Computed as softplus, which loses no digits."""
    return scale * functional.softplus(logit).clamp(max=MAX_SOFTPLUS)


def discriminator_loss(
    net: nn.Module, x: Tensor, count: int, grad_penalty: float, logit_reg: float
) -> dict[str, Tensor]:
    """Loss of a discriminator, and what to watch (without gradient); all 0-d.

    Half the cross entropy of both sides, plus the penalty (half the mean squared slope of the logit with respect to
    the input, of both sides; differentiated through), plus the squared weights of the last layer.

    Args:
        net: linear layers with a ReLU after each but the last, ``_disc_logits``; [B, n] -> logits [B].
        x: [M + P, n] normalised, first M = ``count`` samples of the agent, then P as it should be; ``aligned``, of
            the type that layers shall compute in.
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


class DiscriminatorNet(nn.Module):
    """Logits of normalised input; parameter names are those of the model file."""

    def __init__(self, input_size: int, net: NetName) -> None:
        super().__init__()
        self._disc_layers, features = build_net(net, input_size)
        self._disc_logits = build_head(features, 1, LOGIT_INIT_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> [...]."""
        return self._disc_logits(self._disc_layers(x)).squeeze(-1)


# --- what is judged ---------------------------------------------------------------------------------------------------


class JudgedRollout:
    """A rollout of samples [T, N, n] by name, and what networks see of them: normalised once, [T * N, m], aligned.

    Where networks compute in float32 what they see takes the samples' place.

    Args:
        names: of the tensors; ``agent`` is among them.
        dtype: what networks compute in.
    """

    def __init__(
        self, env: VecEnv, steps: int, norm: MeanStdNormalizer | MeanAbsNormalizer, size: int, names: Sequence[str],
        dtype: torch.dtype,
    ) -> None:
        self._names, self._size, self._dtype = tuple(names), size, dtype
        self.norm = norm
        self._samples = self._seen = Rollout(steps, env.num_envs, dict.fromkeys(names, (size,)), env.device)
        if dtype != torch.float32:
            self._seen = Rollout(steps, env.num_envs, dict.fromkeys(names, (aligned_size(size, dtype),)), env.device,
                                 dtypes=dict.fromkeys(names, dtype))

    def record(self, t: int, **samples: Tensor) -> None:
        """Samples [N, n] of step ``t``."""
        self._samples.record(t, **samples)

    def samples(self) -> Tensor:
        """The agent's [T, N, n], not normalised; until :meth:`normalize`."""
        return self._samples["agent"]

    def record_norm(self) -> None:
        """Add all to the normaliser's pending sums; before :meth:`normalize`."""
        for name in self._names:
            self.norm.record(self._samples[name])

    def normalize(self) -> None:
        """Make what networks see."""
        for name in self._names:
            samples, seen = (rollout[name].flatten(0, 1) for rollout in (self._samples, self._seen))
            for rows, filled in zip(samples.split(PASS_SAMPLES), seen.split(PASS_SAMPLES), strict=True):
                filled[:, :self._size].copy_(self.norm.normalize(rows))

    def seen(self) -> Tensor:
        """What networks see of the agent, [T * N, m]."""
        return self._seen["agent"].flatten(0, 1)

    def take(self, name: str, index: Tensor) -> Tensor:
        """Rows [B, m] of what networks see, by index [B]."""
        return self._seen.take(name, index)

    def see(self, samples: Tensor) -> Tensor:
        """Other samples [B, n] as networks see them, [B, m]."""
        return aligned(self.norm.normalize(samples), self._dtype)


class Evidence(Protocol):
    """What the discriminator looks at: the agent's samples of the rollout, and examples of what they should be."""

    size: int  # n
    rollout: JudgedRollout
    columns: dict[str, str]  # figure of discriminator_loss -> log column, in the order of the log

    def now(self) -> Tensor:
        """The agent's sample [N, n] of the last step, not normalised."""

    def good_now(self) -> Tensor:
        """Good examples [*, n] of this moment, not normalised."""

    def record(self, t: int) -> None: ...

    def good(self, index: Tensor) -> Tensor:
        """Good examples [P, m] for a minibatch, as networks see them."""


class Demonstrations:
    """AMP: the agent's recent states against as many independent ones of the reference clips.

    The environment provides both in every step, ``disc_obs`` and ``disc_demo``.
    """

    columns: ClassVar[dict[str, str]] = {
        "loss": "Disc_Loss", "grad_penalty": "Disc_Grad_Penalty", "neg_acc": "Disc_Agent_Acc",
        "pos_acc": "Disc_Demo_Acc", "neg_logit": "Disc_Agent_Logit", "pos_logit": "Disc_Demo_Logit",
        "logit_loss": "Disc_Logit_Loss",
    }

    def __init__(self, env: VecEnv, steps: int, dtype: torch.dtype = torch.float32) -> None:
        self._obs, self._demo = require_info(env, "disc_obs", "disc_demo")
        self.size = self._obs.shape[-1]
        norm = MeanStdNormalizer(self.size, env.device, DISC_OBS_CLIP)
        self.rollout = JudgedRollout(env, steps, norm, self.size, ("agent", "good"), dtype)

    def now(self) -> Tensor:
        return self._obs

    def good_now(self) -> Tensor:
        return self._demo

    def record(self, t: int) -> None:
        self.rollout.record(t, agent=self._obs, good=self._demo)

    def good(self, index: Tensor) -> Tensor:
        return self.rollout.take("good", index)


class Differences:
    """ADD: reference minus agent at the same instant, against the one good example there is: no difference.

    The environment provides both in every step, ``disc_obs`` and ``disc_obs_demo``.
    """

    columns: ClassVar[dict[str, str]] = {
        "loss": "Disc_Loss", "grad_penalty": "Disc_Grad_Penalty", "logit_loss": "Disc_Logit_Loss",
        "pos_acc": "Disc_Pos_Acc", "neg_acc": "Disc_Neg_Acc", "pos_logit": "Disc_Pos_Logit",
        "neg_logit": "Disc_Neg_Logit",
    }

    def __init__(self, env: VecEnv, steps: int, dtype: torch.dtype = torch.float32) -> None:
        self._obs, self._reference = require_info(env, "disc_obs", "disc_obs_demo")
        self.size = self._obs.shape[-1]
        self.rollout = JudgedRollout(
            env, steps, MeanAbsNormalizer(self.size, env.device), self.size, ("agent",), dtype)
        self._zero = torch.zeros(1, self.size, device=env.device)
        self._good = aligned(self._zero, dtype)  # normalised or not

    def now(self) -> Tensor:
        return self._reference - self._obs

    def good_now(self) -> Tensor:
        return self._zero

    def record(self, t: int) -> None:
        self.rollout.record(t, agent=self.now())

    def good(self, index: Tensor) -> Tensor:
        return self._good


def require_info(env: VecEnv, *names: str) -> list[Tensor]:
    """Entries of the environment's ``info``. Raises UserError naming those it lacks."""
    missing = [name for name in names if name not in env.info]
    if missing:
        raise UserError(
            f"this agent needs {', '.join(missing)}, which the environment does not provide (it has "
            f"{', '.join(env.info) or 'nothing'}): AMP and ASE go with env_name amp, ase, task_location or "
            f"task_steering, ADD with env_name add"
        )
    return [env.info[name] for name in names]


# --- the part ---------------------------------------------------------------------------------------------------------


def check_ring(config: AdversarialConfig, num_envs: int, batch: int) -> None:
    """Raises UserError where a minibatch of ``batch`` samples is larger than the replay ring."""
    if batch > config.disc_buffer_size:
        raise UserError(f"disc_batch_size = {config.disc_batch_size} times num_envs = {num_envs} gives minibatches of "
                        f"{batch} samples, more than disc_buffer_size = {config.disc_buffer_size} holds")


class Discriminator:
    """Rewards what the discriminator takes for good, and trains it; implements ``RewardSource``.

    Rewards are computed with network and normaliser as they were during the rollout. The ring of past samples is
    filled before it is used, so it always holds samples of the present rollout too.

    Raises:
        UserError: a minibatch is larger than the rollout or the ring.
    """

    def __init__(self, env: VecEnv, config: AdversarialConfig, dist: Distributed, evidence: Evidence) -> None:
        device, num_envs, steps = env.device, env.num_envs, config.steps_per_iter
        check_batch_sizes(config, "disc")
        batch, updates = minibatch_plan(steps, num_envs, config.disc_batch_size, config.disc_epochs)
        check_ring(config, num_envs, batch)
        self.evidence = evidence
        self._config = config
        self._dist = dist
        self._net = DiscriminatorNet(evidence.size, config.model.disc_net).to(device)
        self._ring = ReplayRing(config.disc_buffer_size, evidence.size, device)
        optimizer = FlatOptimizer(dict(self._net.named_parameters()), config.disc_optimizer, dist)
        hidden = ("logit_loss",) if config.disc_logit_reg == 0.0 and isinstance(evidence, Demonstrations) else ()
        self._figures = {name: column for name, column in evidence.columns.items() if name not in hidden}
        self._update = NetworkUpdate(
            self._loss, tuple(self._figures.values()), optimizer, batch, updates, dist, config.cuda_graphs, samplers=2)
        self.measures = TestMeasures(measure_names(evidence), self._judge, num_envs, device, config.cuda_graphs)

    def seen_now(self) -> Tensor:
        """What networks see of the agent's last step, [N, m]."""
        return self.evidence.rollout.see(self.evidence.now())

    # --- training

    def record(self, t: int) -> None:
        self.evidence.record(t)

    @torch.no_grad()
    def reward(self) -> tuple[Tensor, dict[str, Stat]]:
        config, rollout = self._config, self.evidence.rollout
        samples = rollout.samples()
        self._ring.push_rollout(samples.flatten(0, 1), config.disc_replay_samples)
        rollout.normalize()
        logits = [self._net(chunk) for chunk in rollout.seen().split(config.disc_eval_batch_size or PASS_SAMPLES)]
        reward = style_reward(torch.cat(logits), config.disc_reward_scale).view(samples.shape[:2])
        return config.disc_reward_weight * reward, mean_and_std_columns("Disc_Reward", reward, self._dist)

    def steps(self, sampler: MinibatchSampler) -> Iterator[None]:
        return self._update.steps(sampler, self._ring.walk)

    def stats(self) -> dict[str, Stat]:
        return self._update.stats()

    def _loss(self, index: Tensor, replay_index: Tensor) -> BatchLoss:
        rollout = self.evidence.rollout
        replayed = rollout.see(self._ring.take(replay_index))
        x = torch.cat([rollout.take("agent", index), replayed, self.evidence.good(index)])
        found = discriminator_loss(
            self._net, x, 2 * len(index), self._config.disc_grad_penalty, self._config.disc_logit_reg)
        stats = torch.stack([found[name].detach() for name in self._figures])
        return BatchLoss(found["loss"], float(len(index)), stats)

    def record_norm(self) -> None:
        self.evidence.rollout.record_norm()

    def fold(self) -> None:
        self.evidence.rollout.norm.update(self._dist)

    def _judge(self) -> tuple[Tensor, ...]:
        """Present values of :func:`measure_names`, [N] each."""
        logit = self._net(self.seen_now())
        good = self._net(self.evidence.rollout.see(self.evidence.good_now())).expand_as(logit)
        reward = style_reward(logit, self._config.disc_reward_scale)
        return reward, (logit < 0.0).double(), (good > 0.0).double(), logit, good

    # --- saving

    def model_tensors(self) -> dict[str, Tensor]:
        return {
            **prefixed("_disc_obs_norm.", self.evidence.rollout.norm.model_tensors()),
            **prefixed("_model.", dict(self._net.named_parameters())),
        }

    def model_loaded(self) -> None:
        self.evidence.rollout.norm.restore_moments()
        self._update.optimizer.broadcast()

    def state_tensors(self) -> dict[str, Tensor]:
        return {
            **prefixed("disc_obs_norm.", self.evidence.rollout.norm.state_tensors()),
            **prefixed("disc_optimizer.", self._update.optimizer.state_tensors()),
        }

    def local_state(self) -> dict[str, Tensor]:
        return prefixed("disc_replay.", self._ring.state())

    def load_local_state(self, state: dict[str, Tensor], where: str) -> None:
        prefix = "disc_replay."
        ring = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        self._ring.load(ring, where)


def measure_names(evidence: Evidence) -> tuple[str, ...]:
    """What a test tells about the discriminator, ``test_disc_reward`` and the like: mean reward, accuracies, logits."""
    columns = (evidence.columns[figure].lower() for figure in ("neg_acc", "pos_acc", "neg_logit", "pos_logit"))
    return ("test_disc_reward", *(f"test_{column}" for column in columns))


def mean_and_std_columns(name: str, reward: Tensor, dist: Distributed) -> dict[str, Stat]:
    """Columns ``<name>_Mean`` and ``<name>_Std`` (unbiased) of rewards [T, N], pooled over processes."""
    mean, std = ppo.mean_and_std(dist.sum_(ppo.advantage_sums(reward, torch.ones_like(reward))))
    return {f"{name}_Mean": Stat(mean), f"{name}_Std": Stat(std)}
