"""The mathematics of PPO and AWR as pure functions: returns, advantages, losses, schedule.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms"; Peng et al. 2018, "DeepMimic" (TD(lambda) returns);
Peng et al. 2019, "Advantage-Weighted Regression". ``T`` steps, ``N`` environments, ``B`` samples of a minibatch, ``A``
action size. ``explore_mask`` is 1 where the action was random and 0 where it was the policy's mean: the actor learns
from random actions only. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mimickit.envs.base import DoneFlag

MIN_ADVANTAGE_STD = 1e-5

# --- the policy: a diagonal Gaussian over normalized actions ----------------------------------------------------------


def exploration_probability(samples: int, beg: float, end: float, anneal_samples: float) -> float:
    """Probability of a random action: linear from ``beg`` to ``end`` over ``anneal_samples``, constant if infinite."""
    if anneal_samples == float("inf"):
        return beg
    return beg + (end - beg) * min(max(samples / anneal_samples, 0.0), 1.0)


def annealed_std(samples: int, beg: float, end: float, anneal_samples: float) -> float:
    """Deviation of the action: from ``beg`` to ``end`` over ``anneal_samples``, evenly in its logarithm."""
    return beg * (end / beg) ** min(max(samples / anneal_samples, 0.0), 1.0)


def gaussian_log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log density [...] of normalized actions [..., A]; ``log_std`` broadcasts."""
    square = functional.mse_loss(mean, action, reduction="none")
    surprise = (square / (2.0 * torch.exp(2.0 * log_std)) + log_std).sum(-1)
    return -0.5 * mean.shape[-1] * math.log(2.0 * math.pi) - surprise


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Differential entropy [...] of ``log_std`` [..., A]."""
    return log_std.sum(-1) + 0.5 * log_std.shape[-1] * math.log(2.0 * math.pi * math.e)


# --- returns and advantages -------------------------------------------------------------------------------------------


def overwrite_terminal_values(
    next_value: Tensor, done: Tensor, discount: float, fail_reward: float, succ_reward: float
) -> Tensor:
    """Value of the next state where the episode truly ended: the given reward for ever, r / (1 - discount).

    Args:
        next_value: [...] critic's value of the state before any reset.
        done: [...] int, DoneFlag. TIME and NULL keep the critic's value.
    """
    value = torch.where(done == DoneFlag.FAIL, fail_reward / (1.0 - discount), next_value)
    return torch.where(done == DoneFlag.SUCC, succ_reward / (1.0 - discount), value)


def lambda_return(reward: Tensor, next_value: Tensor, done: Tensor, discount: float, td_lambda: float) -> Tensor:
    """TD(lambda) returns [T, N] that never run across the end of an episode.

    R_t = r_t + discount * ((1 - l_t) V'_t + l_t R_{t+1}), l_t = 0 where an episode ended, else ``td_lambda``;
    R_{T-1} = r_{T-1} + discount * V'_{T-1}.

    Args:
        reward: [T, N].
        next_value: [T, N] value of the next state, terminal ones already overwritten.
        done: [T, N] int, DoneFlag.
    """
    weight = (done == DoneFlag.NULL).to(reward.dtype) * td_lambda
    weight[-1].zero_()
    result = reward + discount * (1.0 - weight) * next_value
    for t in range(reward.shape[0] - 2, -1, -1):
        result[t].addcmul_(weight[t], result[t + 1], value=discount)
    return result


def masked_moments(values: Tensor, mask: Tensor) -> Tensor:
    """[3] float64: number, sum and sum of squares of the values where the mask is 1; add them up over processes."""
    weight = mask.to(torch.float64)
    weighted = values.to(torch.float64) * weight
    return torch.stack([weight.sum(), weighted.sum(), (weighted * values).sum()])


def mean_and_std(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation (0 with fewer than two samples) of :func:`masked_moments`; 0-d float64."""
    count, total, squares = moments.unbind()
    mean = total / count.clamp(min=1.0)
    variance = (squares - count * mean * mean) / (count - 1.0).clamp(min=1.0)
    return mean, torch.where(count > 1.5, variance.clamp(min=0.0).sqrt(), 0.0)


def normalize_advantage(advantage: Tensor, mean: Tensor, std: Tensor, clip: float) -> Tensor:
    """(advantage - mean) / max(std, 1e-5), clipped to +-``clip``."""
    scale = std.clamp(min=MIN_ADVANTAGE_STD)
    return ((advantage - mean) / scale).clamp(-clip, clip).to(advantage.dtype)


# --- losses -----------------------------------------------------------------------------------------------------------


def critic_loss(value: Tensor, returns: Tensor) -> Tensor:
    """Mean squared error over [B]; no clipping, no factor one half."""
    return functional.mse_loss(value, returns)


def log_ratio(log_prob: Tensor, old_log_prob: Tensor, explore_mask: Tensor) -> Tensor:
    """Logarithm of the probability ratio, [B]; 0 where the action was not random."""
    return (log_prob - old_log_prob) * explore_mask


@dataclass(frozen=True)
class Surrogate:
    """Clipped surrogate of each sample, [B]; all but the loss without gradient."""

    loss: Tensor
    clipped: Tensor  # 1 where the ratio lies beyond the clip
    ratio: Tensor


def surrogate_loss(log_ratio: Tensor, advantage: Tensor, clip_ratio: float) -> Surrogate:
    """-min(A rho, A clip(rho, 1 - e, 1 + e)) of [B], PPO eq. 7, which is -min(A rho, A + e |A|)."""
    ratio = torch.exp(log_ratio)
    most = torch.add(advantage, advantage.abs(), alpha=clip_ratio)
    detached = ratio.detach()
    clipped = ((detached - 1.0).abs() > clip_ratio).to(ratio.dtype)
    return Surrogate(-(advantage * ratio).clamp(max=most), clipped, detached)


def regression_weights(advantage: Tensor, mean: Tensor, std: Tensor, temperature: float, clip: float) -> Tensor:
    """AWR: min(exp(normalized advantage / temperature), clip), like advantages [...], which are not clipped."""
    return (normalize_advantage(advantage, mean, std, float("inf")) / temperature).exp().clamp(max=clip)


def regression_loss(log_prob: Tensor, weight: Tensor) -> Tensor:
    """AWR: -weight * log probability, [B]. Weights are not renormalized."""
    return -weight * log_prob


def action_bound_loss(mean: Tensor) -> Tensor:
    """How far normalized actions [B, A] lie outside [-1, 1]: sum over actions of squared excess, [B]."""
    return functional.softshrink(mean, 1.0).square().sum(-1)


def action_reg_loss(mean: Tensor) -> Tensor:
    """Squared length [...] of the normalized action [..., A]."""
    return mean.square().sum(-1)


def kl_divergence(log_ratio: Tensor) -> Tensor:
    """Estimate of KL(old policy || new policy), [B], to be averaged; no gradient.

    rho - 1 - ln rho of the probability ratio rho, never negative (Schulman 2020, "Approximating KL Divergence").
    """
    log_ratio = log_ratio.detach()
    return torch.expm1(log_ratio) - log_ratio


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension of ``values`` [..., B] where ``mask`` [B] is 1; 0 (with zero gradient) without any.
    The other values have no weight but must be finite."""
    return (values * mask).sum(-1) / mask.sum().clamp(min=1.0)
