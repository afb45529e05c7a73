"""Statistics: those of an iteration, collected on the device, reduced over processes by their meaning and read at once;
and those of a sample of episodes, with how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mimickit.util.distributed import Distributed


@dataclass(frozen=True)
class Stat:
    """A 0-d number and how processes combine it: ``mean`` by ``weight`` (0 when all weights are 0), ``sum``,
    ``min`` or ``max``."""

    value: torch.Tensor
    how: Literal["mean", "sum", "min", "max"] = "mean"
    weight: torch.Tensor | float = 1.0


def reduce_stats(stats: Mapping[str, Stat], dist: Distributed) -> dict[str, float]:
    """All statistics as host numbers, equal on all processes. One wait for the device."""
    if not stats:
        return {}
    value = torch.stack([_wide(stat.value, dist) for stat in stats.values()])
    one = value.new_ones(())
    weight = torch.stack([_wide(w if isinstance(w, torch.Tensor) else one * w, dist)
                          for w in (stat.weight for stat in stats.values())])
    sums = dist.sum_(torch.stack([torch.where(weight > 0, value * weight, 0.0), weight, value]))
    extremes = torch.stack([-value, value])
    if any(stat.how in ("min", "max") for stat in stats.values()):
        dist.max_(extremes)
    columns = zip(*torch.cat([sums, extremes]).tolist(), strict=True)
    result = {}
    for (name, stat), (weighted, total_weight, total, negative, most) in zip(stats.items(), columns, strict=True):
        mean = weighted / total_weight if total_weight > 0 else 0.0
        result[name] = {"mean": mean, "sum": total, "min": -negative, "max": most}[stat.how]
    return result


def _wide(value: torch.Tensor, dist: Distributed) -> torch.Tensor:
    return value.detach().to(device=dist.device, dtype=torch.float64).reshape(())


# --- samples ----------------------------------------------------------------------------------------------------------

QUANTILES = (5, 25, 50, 75, 95)  # per cent
Z95 = 1.959964  # of the normal distribution, two-sided 95 %
T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)  # of Student's, 1 ... 10


def student_t95(freedom: int) -> float:
    """Two-sided 95 % point of Student's distribution (Abramowitz and Stegun, 26.7.5, beyond 10 degrees of freedom)."""
    if freedom <= len(T95):
        return T95[freedom - 1]
    z, n = Z95, freedom
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    return z + (z**3 + z) / (4 * n) + second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)


def summarize(total: torch.Tensor, weight: torch.Tensor, share: bool = False) -> dict[str, Any] | None:
    """Mean over all samples of all episodes, half its 95 % confidence interval, and the spread over episodes.

    Episodes are independent of each other, the samples (steps) within one are not. So the interval is that of a ratio
    of two means over episodes (Cochran, "Sampling Techniques", section 6.3), with Student's factor.

    Args:
        total: [K] sum over each episode's samples; weight: [K] number of its samples, 0 where it has none.
        share: samples are yes (1) or no (0). With one per episode the interval is then the farther end of Wilson's,
            which does not shrink to nothing when all episodes agree.

    Returns:
        mean, ci95, std, episodes, min, max, quantiles ({"5": x, ...}, per cent, over the episodes' own means); ci95 and
        std are None for a single episode. None without any samples.
    """
    total, weight = total[weight > 0].double(), weight[weight > 0].double()
    count = len(total)
    if count == 0:
        return None
    own = total / weight
    mean = float(total.sum() / weight.sum())
    interval = deviation = None
    if count > 1:
        residual = float((total - mean * weight).square().sum())
        interval = student_t95(count - 1) * math.sqrt(count / (count - 1) * residual) / float(weight.sum())
        deviation = float(own.std())
    if share and bool((weight == 1).all()):
        interval = max(abs(mean - bound) for bound in wilson95(mean, count))
    points = torch.quantile(own, torch.tensor([q / 100 for q in QUANTILES], dtype=torch.float64)).tolist()
    return {
        "mean": mean, "ci95": interval, "std": deviation, "episodes": count, "min": float(own.min()),
        "max": float(own.max()), "quantiles": {str(q): x for q, x in zip(QUANTILES, points, strict=True)},
    }


def wilson95(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a probability, given the share of ``count`` trials (Wilson 1927)."""
    square = Z95**2 / count
    centre = share + square / 2
    half = math.sqrt(square * (share * (1 - share) + square / 4))
    return (centre - half) / (1 + square), (centre + half) / (1 + square)
