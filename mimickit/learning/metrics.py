"""Metrics: numbers collected on the device, reduced over processes by their meaning and read at once.

Those of an iteration (:class:`Metric`), returns and lengths of episodes (:class:`EpisodeTracker`,
:class:`EpisodeRecord`), those of a test (:class:`TestMetrics`), and how sure a mean is (:func:`summarize`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mimickit.envs.base import DoneFlag
from mimickit.util.distributed import Distributed
from mimickit.util.graphs import Graphed
from mimickit.util.means import Means

MAX_RECORDED = 65536  # episodes that a record keeps, all environments together
QUANTILES = (5, 25, 50, 75, 95)  # per cent
Z95 = 1.959964  # of the normal distribution, two-sided 95 %
T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)  # of Student's, 1 ... 10


@dataclass(frozen=True)
class Metric:
    """A 0-d number and how processes combine it: ``mean`` by ``weight`` (0 when all weights are 0), ``sum``,
    ``min`` or ``max``."""

    value: Tensor
    how: Literal["mean", "sum", "min", "max"] = "mean"
    weight: Tensor | float = 1.0


def reduce_metrics(metrics: Mapping[str, Metric], dist: Distributed) -> dict[str, float]:
    """All metrics as host numbers, equal on all processes. One wait for the device."""
    if not metrics:
        return {}
    value = torch.stack([_wide(metric.value, dist) for metric in metrics.values()])
    one = value.new_ones(())
    weight = torch.stack([_wide(w if isinstance(w, Tensor) else one * w, dist)
                          for w in (metric.weight for metric in metrics.values())])
    sums = dist.sum_(torch.stack([torch.where(weight > 0, value * weight, 0.0), weight, value]))
    extremes = torch.stack([-value, value])
    if any(metric.how in ("min", "max") for metric in metrics.values()):
        dist.max_(extremes)
    columns = zip(*torch.cat([sums, extremes]).tolist(), strict=True)
    result = {}
    for (name, metric), (weighted, total_weight, total, negative, most) in zip(metrics.items(), columns, strict=True):
        mean = weighted / total_weight if total_weight > 0 else 0.0
        result[name] = {"mean": mean, "sum": total, "min": -negative, "max": most}[metric.how]
    return result


def _wide(value: Tensor, dist: Distributed) -> Tensor:
    return value.detach().to(device=dist.device, dtype=torch.float64).reshape(())


# --- episodes ---------------------------------------------------------------------------------------------------------


class EpisodeTracker(nn.Module):
    """Mean return and length (in control steps) of all finished episodes, on the device, without waiting for it.

    Args:
        skip: the first environments, which do not count.
    """

    def __init__(self, num_envs: int, device: torch.device | str, skip: int = 0) -> None:
        super().__init__()
        self._skip = skip
        self.register_buffer("returns", torch.zeros(num_envs, device=device))
        self.register_buffer("lengths", torch.zeros(num_envs, dtype=torch.int64, device=device))
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64, device=device))  # return, length, episodes

    def update(self, reward: Tensor, done: Tensor) -> None:
        """Account for one step: reward [N] float, done [N] int (DoneFlag)."""
        self.returns += reward
        self.lengths += 1
        ended = done != DoneFlag.NULL
        finished = torch.stack([self.returns.double(), self.lengths.double(), torch.ones_like(reward).double()])
        self.sums += torch.where(ended, finished, 0.0)[:, self._skip :].sum(1)
        self.returns.masked_fill_(ended, 0.0)
        self.lengths.masked_fill_(ended, 0)

    def clear(self) -> None:
        """Forget finished episodes; those under way go on."""
        self.sums.zero_()

    def restart(self) -> None:
        """Forget everything: all episodes begin with the next step."""
        for tensor in self.buffers():
            tensor.zero_()

    def metrics(self) -> dict[str, Metric]:
        """Mean return, mean length and number of episodes (0 without any), by their names in the log."""
        total_return, total_length, episodes = self.sums.clone().unbind()
        count = episodes.clamp(min=1.0)
        return {
            "Train_Return": Metric(total_return / count, "mean", episodes),
            "Train_Episode_Length": Metric(total_length / count, "mean", episodes),
            "Train_Episodes": Metric(episodes, "sum"),
        }


class EpisodeRecord(nn.Module):
    """Return, length, end and metrics of the first episodes of every environment, one by one.

    The same number of every environment, its first ones, so that environments with short episodes do not weigh more,
    and no step after them counts.

    Args:
        per_env: episodes of each environment that count. Of very many only the first are kept: ``MAX_RECORDED``.
        metrics: sum and number of samples of each environment by name, live ([N] each).
        max_length: count an episode as finished after so many steps, even when the environment goes on.
    """

    def __init__(
        self, num_envs: int, device: torch.device | str, per_env: int,
        metrics: Mapping[str, tuple[Tensor, Tensor]] | None = None, max_length: int | None = None,
    ) -> None:
        super().__init__()
        metrics = metrics or {}
        self.names = ("return", "length", "survival", *metrics)
        self._live = [tensor for pair in metrics.values() for tensor in pair]
        self._max_length = max_length
        self._wanted = per_env
        self._kept = max(1, min(per_env, MAX_RECORDED // num_envs))
        like = {"dtype": torch.float64, "device": device}
        self.register_buffer("returns", torch.zeros(num_envs, **like))
        self.register_buffer("lengths", torch.zeros(num_envs, **like))
        self.register_buffer("before", self._totals())  # [N, 2 m] live sums at the start of the present episode
        self.register_buffer("rows", torch.zeros(self._kept, num_envs, 2 * len(self.names), **like))  # sum, weight
        self.register_buffer("finished", torch.zeros(num_envs, dtype=torch.int64, device=device))  # [N] episodes

    def update(self, reward: Tensor, done: Tensor) -> None:
        """Account for one step: reward [N] float, done [N] int (DoneFlag); the live sums already do."""
        self.returns += reward
        self.lengths += 1.0
        ended = done != DoneFlag.NULL
        if self._max_length is not None:
            ended = ended | (self.lengths >= self._max_length)
        one = torch.ones_like(self.returns)
        totals = self._totals()
        row = torch.stack([self.returns, one, self.lengths, one, (done != DoneFlag.FAIL).double(), one], dim=-1)
        row = torch.cat([row, totals - self.before], dim=-1).unsqueeze(0)

        index = self.finished.clamp(max=self._kept - 1).view(1, -1, 1).expand_as(row)
        counts = (ended & (self.finished < self._kept)).view(1, -1, 1)
        self.rows.scatter_(0, index, torch.where(counts, row, self.rows.gather(0, index)))
        self.finished += ended
        self.before.copy_(torch.where(ended.unsqueeze(-1), totals, self.before))
        self.returns.masked_fill_(ended, 0.0)
        self.lengths.masked_fill_(ended, 0.0)

    def clear(self) -> None:
        """Forget everything: episodes begin with the next step."""
        for tensor in self.buffers():
            tensor.zero_()
        self.before.copy_(self._totals())

    def complete(self) -> Tensor:
        """0-d bool: whether every environment has finished its episodes."""
        return (self.finished >= self._wanted).all()

    def sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and weight of each name over the recorded episodes, 0-d; the mean is their quotient. No sync."""
        totals = self.rows.sum(dim=(0, 1)).unbind()  # rows without an episode are zero
        return {name: (totals[2 * i], totals[2 * i + 1]) for i, name in enumerate(self.names)}

    def episodes(self) -> Tensor:
        """[K, number of names, 2] on the CPU: sum and weight of each recorded episode, the first of every environment
        first. Waits for the device."""
        recorded = torch.arange(self._kept).unsqueeze(1) < self.finished.cpu()
        return self.rows.cpu()[recorded].unflatten(-1, (-1, 2))

    def _totals(self) -> Tensor:
        return torch.stack(self._live, dim=-1) if self._live else self.returns.new_zeros(len(self.returns), 0)


class TestMetrics:
    """What the networks of a reward source say during a test: sums of ``compute`` over its steps; captured on CUDA.

    Args:
        compute: one tensor [N] per name, from the environment's present state.
    """

    __test__ = False  # not a test class

    def __init__(
        self, names: tuple[str, ...], compute: Callable[[], Sequence[Tensor]], num_envs: int,
        device: torch.device | str, use_graphs: bool = True,
    ) -> None:
        self._means = Means(names, num_envs, device)
        self._compute = compute
        self._valid = torch.ones(num_envs, dtype=torch.bool, device=device)
        self._add = Graphed(self._add_now, device, state=list(self._means.buffers().values()), enabled=use_graphs)

    def start(self) -> None:
        """A test begins."""
        self._means.clear()

    def observe(self) -> None:
        """A step was made."""
        self._add()

    def sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and number of samples of each name since :meth:`start`, [N] float64, live."""
        return self._means.per_env()

    @torch.no_grad()
    def _add_now(self) -> None:
        self._means.add(torch.stack([value.double() for value in self._compute()], dim=-1), self._valid)


# --- how sure a mean is -----------------------------------------------------------------------------------------------


def student_t95(freedom: int) -> float:
    """Two-sided 95 % point of Student's distribution (Abramowitz and Stegun, 26.7.5, beyond 10 degrees of freedom)."""
    if freedom <= len(T95):
        return T95[freedom - 1]
    z, n = Z95, freedom
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    return z + (z**3 + z) / (4 * n) + second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)


def summarize(total: Tensor, weight: Tensor, share: bool = False) -> dict[str, Any] | None:
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
