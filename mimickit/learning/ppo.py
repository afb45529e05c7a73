"""The mathematics of PPO as pure functions: targets, advantages, losses, schedule.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (eq. 7), with TD(lambda) returns after Peng et al. 2018,
"DeepMimic". ``T`` steps, ``N`` environments, ``B`` samples of a minibatch, ``A`` action size. Nothing here waits for
the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
    result = torch.empty_like(reward)
    result[-1] = reward[-1] + discount * next_value[-1]
    weight = torch.where(done == DoneFlag.NULL, td_lambda, 0.0).to(reward.dtype)
    for t in range(reward.shape[0] - 2, -1, -1):
        result[t] = reward[t] + discount * torch.lerp(next_value[t], result[t + 1], weight[t])
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
    return torch.square(target - value).mean()


def flagged_mean(values: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
    """Mean of ``values`` [B] where ``flag`` [B] is 1; 0 (with zero gradient) when none is."""
    return torch.where(flag > 0.5, values, 0.0).sum() / flag.sum().clamp(min=1.0)


def action_bound_loss(mean: torch.Tensor) -> torch.Tensor:
    """How far normalised actions [B, A] lie outside [-1, 1]: sum over actions of squared excess, [B]."""
    return ((mean + 1.0).clamp(max=0.0).square() + (mean - 1.0).clamp(min=0.0).square()).sum(-1)


@dataclass(frozen=True)
class Surrogate:
    """Clipped surrogate of a batch, all 0-d: the loss and two figures to watch."""

    loss: torch.Tensor
    clip_frac: torch.Tensor
    imp_ratio: torch.Tensor


def surrogate_loss(
    log_prob: torch.Tensor, old_log_prob: torch.Tensor, advantage: torch.Tensor, flag: torch.Tensor, clip_ratio: float
) -> Surrogate:
    """-mean min(A rho, A clip(rho, 1 - e, 1 + e)) over the flagged samples of [B]; PPO eq. 7."""
    ratio = torch.exp(torch.where(flag > 0.5, log_prob - old_log_prob, 0.0))
    gain = torch.minimum(advantage * ratio, advantage * ratio.clamp(1.0 - clip_ratio, 1.0 + clip_ratio))
    clipped = ((ratio.detach() - 1.0).abs() > clip_ratio).to(ratio.dtype)
    return Surrogate(-flagged_mean(gain, flag), flagged_mean(clipped, flag), flagged_mean(ratio.detach(), flag))


def policy_change(log_prob: torch.Tensor, old_log_prob: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
    """Estimate of the Kullback-Leibler divergence of the old policy from the new over the flagged samples of [B], 0-d.

    Mean of rho - 1 - ln rho of the probability ratio rho, never negative (Schulman 2020, "Approximating KL
    Divergence").
    """
    log_ratio = torch.where(flag > 0.5, log_prob - old_log_prob, 0.0).detach()
    return flagged_mean(torch.expm1(log_ratio) - log_ratio, flag)
