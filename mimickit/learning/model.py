"""Networks: hidden layers by the names that agent files use, the Gaussian policy head, and actor with critic.

The policy is deterministic in its mean: no squashing, no bounds. ``O`` input size, ``A`` action size.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from mimickit.learning.config import ModelConfig, NetName, PolicyConfig
from mimickit.learning.relu_layers import hidden_layers, input_gradient

PASS_SAMPLES = 8192  # samples of one pass without gradient: enough to be fast, little memory
HIDDEN: dict[str, tuple[int, ...]] = {
    "fc_2layers_1024units": (1024, 512),
    "fc_2layers_512units": (512, 256),
    "fc_2layers_256units": (256, 128),
    "fc_2layers_128units": (128, 64),
    "fc_3layers_1024units": (1024, 1024, 512),
}


def hidden_dtype(config: PolicyConfig, device: torch.device) -> torch.dtype:
    """What hidden layers compute in on a device."""
    with_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if config.bf16 and with_bf16 else torch.float32


class HiddenLayers(nn.Sequential):
    """Linear layers at even indices, a ReLU after each; ``dtype`` is what they compute in (None: as the input)."""

    dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., h]."""
        return hidden_layers(x, list(self.parameters()), self.dtype or x.dtype)

    def input_gradient(self, x: Tensor, change: Tensor) -> Tensor:
        """[B, n] and the gradient [B, h] of something by the output -> its gradient [B, n] by x, differentiable once
        with respect to ``change`` and the parameters."""
        return input_gradient(x, change, list(self.parameters()), self.dtype or x.dtype)


def build_net(name: NetName, input_size: int, dtype: torch.dtype | None = None) -> tuple[HiddenLayers, int]:
    """A fully connected net for input [..., input_size] and the size of its output.

    Weights start uniform in +-1/sqrt(fan_in), biases at zero.
    """
    layers: list[nn.Module] = []
    size = input_size
    for width in HIDDEN[name]:
        linear = nn.Linear(size, width)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
        size = width
    net = HiddenLayers(*layers)
    net.dtype = dtype
    return net, size


def build_head(input_size: int, output_size: int, scale: float | None = None, bias: float = 0.0) -> nn.Linear:
    """A linear output layer: weights uniform in +-``scale`` (None: framework default), bias constant."""
    head = nn.Linear(input_size, output_size)
    with torch.no_grad():
        if scale is not None:
            head.weight.uniform_(-scale, scale)
        head.bias.fill_(bias)
    return head


def join(obs: Tensor, latent: Tensor | None) -> Tensor:
    """Input [..., O] of actor and critic: the normalized observation, then the latent if there is one."""
    return obs if latent is None else torch.cat([obs, latent], dim=-1)


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

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, h] -> mean [B, A], log-deviation [B, A]."""
        mean = self._mean_net(features)
        if isinstance(self._logstd_net, nn.Linear):
            return mean, self._logstd_net(features)
        return mean, self._logstd_net.expand_as(mean)

    def log_prob_gradient(self, action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Gradient [B, h] of ln pi(action) by the features from which ``mean`` and ``log_std`` [B, A] were computed."""
        deviation = (action - mean) * torch.exp(-log_std)
        gradient = (deviation * torch.exp(-log_std)) @ self._mean_net.weight
        if isinstance(self._logstd_net, nn.Linear):
            gradient = gradient + (deviation.square() - 1.0) @ self._logstd_net.weight
        return gradient


class ActorCritic(nn.Module):
    """Actor and critic without shared layers. Parameter names are those of the model file."""

    def __init__(
        self, input_size: int, action_size: int, config: ModelConfig, dtype: torch.dtype | None = None
    ) -> None:
        """Args: ``dtype`` what hidden layers compute in (None: as the input)."""
        super().__init__()
        self._actor_layers, actor_features = build_net(config.actor_net, input_size, dtype)
        self._action_dist = GaussianHead(actor_features, action_size, config)
        self._critic_layers, critic_features = build_net(config.critic_net, input_size, dtype)
        self._critic_out = build_head(critic_features, 1)

    def policy(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input [B, O] -> mean [B, A] and log-deviation [B, A] of the normalized action."""
        return self._action_dist(self._actor_layers(x))

    def log_prob_gradient(self, x: Tensor, action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Gradient [B, O] of ln pi(action | x) by the input x, differentiable once with respect to the parameters.

        Args: ``mean``, ``log_std`` [B, A] of :meth:`policy` for x.
        """
        return self._actor_layers.input_gradient(x, self._action_dist.log_prob_gradient(action, mean, log_std))

    def value(self, x: Tensor) -> Tensor:
        """Input [B, O] -> value [B]."""
        return self._critic_out(self._critic_layers(x)).squeeze(-1)

    def set_std(self, std: float) -> None:
        """Give the policy (``FIXED``) another deviation, in place."""
        self._action_dist._logstd_net.data.fill_(math.log(std))

    def actor_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the actor by name."""
        return self._trainable("_actor_layers.", "_action_dist.")

    def critic_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the critic by name."""
        return self._trainable("_critic_layers.", "_critic_out.")

    def _trainable(self, *prefixes: str) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad and name.startswith(prefixes)}


class AveragedCritic(nn.Module):
    """A critic whose weights are the exponential moving average of the critic's: slower to follow its own estimates.

    With TD(lambda) returns over few steps most of a target is the critic's own value. Where it runs after itself,
    advantages become noise (benchmarks/EXPERIMENTS.md); target networks are the known remedy (Mnih et al. 2015).
    """

    def __init__(self, model: ActorCritic, decay: float) -> None:
        super().__init__()
        self._layers, self._out = copy.deepcopy(model._critic_layers), copy.deepcopy(model._critic_out)
        self.requires_grad_(False)
        self._decay = decay

    def value(self, x: Tensor) -> Tensor:
        """Input [B, O] -> value [B]."""
        return self._out(self._layers(x)).squeeze(-1)

    def update(self, model: ActorCritic) -> None:
        """average = decay * average + (1 - decay) * critic."""
        torch._foreach_lerp_(list(self.parameters()), list(model.critic_parameters().values()), 1.0 - self._decay)

    def reset(self, model: ActorCritic) -> None:
        """Begin anew with the critic's own weights."""
        torch._foreach_copy_(list(self.parameters()), list(model.critic_parameters().values()))
