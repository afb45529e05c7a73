"""Statistics of an iteration: collected on the device, reduced over processes by their meaning, read at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
    added: list[torch.Tensor] = []
    for stat in stats.values():
        value = _wide(stat.value, dist)
        given = stat.weight
        weight = _wide(given, dist) if isinstance(given, torch.Tensor) else torch.full_like(value, given)
        if stat.how == "mean":
            added += [torch.where(weight > 0, value * weight, 0.0), weight]
        else:
            added += [value if stat.how == "sum" else torch.zeros_like(value), weight]
    extreme = torch.stack([_wide(s.value, dist) * _sign(s) for s in stats.values()])
    sums = dist.sum_(torch.stack(added))
    if any(stat.how in ("min", "max") for stat in stats.values()):
        dist.max_(extreme)
    packed = torch.cat([sums, extreme]).tolist()
    count = len(stats)
    result = {}
    for i, (name, stat) in enumerate(stats.items()):
        total, weight, top = packed[2 * i], packed[2 * i + 1], packed[2 * count + i]
        if stat.how == "mean":
            result[name] = total / weight if weight > 0 else 0.0
        else:
            result[name] = total if stat.how == "sum" else top * _sign(stat)
    return result


def _wide(value: torch.Tensor, dist: Distributed) -> torch.Tensor:
    return value.detach().to(device=dist.device, dtype=torch.float64).reshape(())


def _sign(stat: Stat) -> float:
    return -1.0 if stat.how == "min" else 1.0
