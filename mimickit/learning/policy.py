"""Policies over normalised actions: a diagonal Gaussian, the formulas of a categorical one, and actor with critic.

The policy is deterministic in its mean: no squashing, no bounds. ``A`` action size, ``n`` number of discrete actions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from mimickit.config import Config
from mimickit.learning.nets import NetName, build_head, build_net

StdType = Literal["FIXED", "CONSTANT", "VARIABLE"]


class ModelConfig(Config):
    """Mapping ``model`` of an agent file."""

    actor_net: NetName
    critic_net: NetName
    actor_init_output_scale: float = Field(ge=0.0, description="weights of the action mean start uniform in +- this")
    actor_std_type: StdType
    action_std: float = Field(gt=0.0, description="initial deviation, as a fraction of half the action range")


def gaussian_log_prob(action: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Log density [...] of normalised actions [..., A]; ``log_std`` broadcasts."""
    square = functional.mse_loss(mean, action, reduction="none")
    surprise = (square / (2.0 * torch.exp(2.0 * log_std)) + log_std).sum(-1)
    return -0.5 * mean.shape[-1] * math.log(2.0 * math.pi) - surprise


def gaussian_entropy(log_std: torch.Tensor) -> torch.Tensor:
    """Differential entropy [...] of ``log_std`` [..., A]."""
    return log_std.sum(-1) + 0.5 * log_std.shape[-1] * math.log(2.0 * math.pi * math.e)


def gaussian_kl(
    mean_p: torch.Tensor, log_std_p: torch.Tensor, mean_q: torch.Tensor, log_std_q: torch.Tensor
) -> torch.Tensor:
    """KL(p || q) [...] of two diagonal Gaussians [..., A]."""
    ratio = (torch.exp(2.0 * log_std_p) + (mean_p - mean_q).square()) / (2.0 * torch.exp(2.0 * log_std_q))
    return (log_std_q - log_std_p + ratio - 0.5).sum(-1)


def mean_regularizer(mean: torch.Tensor) -> torch.Tensor:
    """Squared length [...] of the normalised mean [..., A] (of the raw logits for a categorical policy)."""
    return mean.square().sum(-1)


def categorical_log_prob(action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Log probability [...] of actions [..., 1] (int64) under logits [..., n]."""
    return torch.log_softmax(logits, -1).gather(-1, action).squeeze(-1)


def categorical_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy [...] of logits [..., n]."""
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


class GaussianHead(nn.Module):
    """Mean and log-deviation of the policy from the actor net's features.

    ``FIXED``: constant deviation, not trained. ``CONSTANT``: one trained vector. ``VARIABLE``: a linear head.
    """

    def __init__(self, feature_size: int, action_size: int, config: ModelConfig) -> None:
        super().__init__()
        scale, start = config.actor_init_output_scale, math.log(config.action_std)
        self._mean_net = build_head(feature_size, action_size, scale)
        self._logstd_net: nn.Parameter | nn.Linear
        if config.actor_std_type == "VARIABLE":
            self._logstd_net = build_head(feature_size, action_size, scale, bias=start)
        else:
            trained = config.actor_std_type == "CONSTANT"
            self._logstd_net = nn.Parameter(torch.full((action_size,), start), requires_grad=trained)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [B, h] -> mean [B, A], log-deviation [B, A]."""
        mean = self._mean_net(features)
        if isinstance(self._logstd_net, nn.Linear):
            return mean, self._logstd_net(features)
        return mean, self._logstd_net.expand_as(mean)


class ActorCritic(nn.Module):
    """Actor and critic without shared layers, on normalised observations (followed by a latent, where there is one).

    Parameter names are those of the model file.
    """

    def __init__(
        self, input_size: int, action_size: int, config: ModelConfig, dtype: torch.dtype | None = None
    ) -> None:
        """Args: ``dtype`` what hidden layers compute in (None: as the input)."""
        super().__init__()
        self._actor_layers, actor_features = build_net(config.actor_net, input_size, dtype)
        self._action_dist = GaussianHead(actor_features, action_size, config)
        self._critic_layers, critic_features = build_net(config.critic_net, input_size, dtype)
        self._critic_out = build_head(critic_features, 1)

    def policy(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Input [B, O] -> mean [B, A] and log-deviation [B, A] of the normalised action."""
        return self._action_dist(self._actor_layers(x))

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Input [B, O] -> value [B]."""
        return self._critic_out(self._critic_layers(x)).squeeze(-1)

    def actor_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the actor by name."""
        return self._trainable("_actor_layers.", "_action_dist.")

    def critic_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the critic by name."""
        return self._trainable("_critic_layers.", "_critic_out.")

    def _trainable(self, *prefixes: str) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad and name.startswith(prefixes)}
