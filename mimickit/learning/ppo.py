"""The mathematics of PPO as pure functions: targets, advantages, losses, schedule.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (eq. 7), with TD(lambda) returns after Peng et al. 2018,
"DeepMimic". ``T`` steps, ``N`` environments, ``B`` samples of a minibatch, ``A`` action size. Nothing here waits for
the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from mimickit.envs.base import DoneFlag

MIN_ADVANTAGE_STD = 1e-5


def exploration_probability(samples: int, beg: float, end: float, anneal_samples: float) -> float:
    """Probability of a random action: linear from ``beg`` to ``end`` over ``anneal_samples``, constant if infinite."""
    if anneal_samples == float("inf"):
        return beg
    return beg + (end - beg) * min(max(samples / anneal_samples, 0.0), 1.0)


def overwrite_terminal_values(
    next_value: torch.Tensor, done: torch.Tensor, discount: float, fail_reward: float, succ_reward: float
) -> torch.Tensor:
    """Value of the next state where the episode truly ended: the given reward for ever, r / (1 - discount).

    Args:
        next_value: [...] critic's value of the state before any reset.
        done: [...] int, DoneFlag. TIME and NULL keep the critic's value.
    """
    value = torch.where(done == DoneFlag.FAIL, fail_reward / (1.0 - discount), next_value)
    return torch.where(done == DoneFlag.SUCC, succ_reward / (1.0 - discount), value)


def lambda_return(
    reward: torch.Tensor, next_value: torch.Tensor, done: torch.Tensor, discount: float, td_lambda: float
) -> torch.Tensor:
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


def advantage_sums(advantage: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
    """[3] float64: number, sum and sum of squares of the flagged advantages; add them up over processes."""
    weight = flag.to(torch.float64)
    weighted = advantage.to(torch.float64) * weight
    return torch.stack([weight.sum(), weighted.sum(), (weighted * advantage).sum()])


def mean_and_std(sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased deviation (0 with fewer than two samples) from :func:`advantage_sums`; 0-d float64."""
    count, total, squares = sums.unbind()
    mean = total / count.clamp(min=1.0)
    variance = (squares - count * mean * mean) / (count - 1.0).clamp(min=1.0)
    return mean, torch.where(count > 1.5, variance.clamp(min=0.0).sqrt(), 0.0)


def normalize_advantage(
    advantage: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, clip: float
) -> torch.Tensor:
    """(advantage - mean) / max(std, 1e-5), bounded to +-``clip``."""
    scale = std.clamp(min=MIN_ADVANTAGE_STD)
    return ((advantage - mean) / scale).clamp(-clip, clip).to(advantage.dtype)


def critic_loss(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over [B]; no clipping, no factor one half."""
    return functional.mse_loss(value, target)


def flagged_mean(values: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
    """Mean over the last dimension of ``values`` [..., B] where ``flag`` [B] is 1; 0 (with zero gradient) when none is.
    The other values count nothing but must be finite."""
    return (values * flag).sum(-1) / flag.sum().clamp(min=1.0)


def action_bound_loss(mean: torch.Tensor) -> torch.Tensor:
    """How far normalised actions [B, A] lie outside [-1, 1]: sum over actions of squared excess, [B]."""
    return functional.softshrink(mean, 1.0).square().sum(-1)


def log_ratio(log_prob: torch.Tensor, old_log_prob: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
    """Logarithm of the probability ratio, [B]; 0 where the flag is."""
    return (log_prob - old_log_prob) * flag


@dataclass(frozen=True)
class Surrogate:
    """Clipped surrogate of each sample, [B]: the loss and two figures to watch (without gradient)."""

    loss: torch.Tensor
    clipped: torch.Tensor  # 1 where the ratio lies beyond the clip
    ratio: torch.Tensor


def surrogate_loss(log_ratio: torch.Tensor, advantage: torch.Tensor, clip_ratio: float) -> Surrogate:
    """-min(A rho, A clip(rho, 1 - e, 1 + e)) of [B], PPO eq. 7, which is -min(A rho, A + e |A|)."""
    ratio = torch.exp(log_ratio)
    most = torch.add(advantage, advantage.abs(), alpha=clip_ratio)
    watched = ratio.detach()
    clipped = ((watched - 1.0).abs() > clip_ratio).to(ratio.dtype)
    return Surrogate(-(advantage * ratio).clamp(max=most), clipped, watched)


def policy_change(log_ratio: torch.Tensor) -> torch.Tensor:
    """Estimate of the Kullback-Leibler divergence of the old policy from the new, [B], to be averaged; no gradient.

    rho - 1 - ln rho of the probability ratio rho, never negative (Schulman 2020, "Approximating KL Divergence").
    """
    log_ratio = log_ratio.detach()
    return torch.expm1(log_ratio) - log_ratio
