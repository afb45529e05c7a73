"""Returns and lengths of episodes, on the device, without waiting for it: running means, and a record of each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mimickit.envs.base import DoneFlag
from mimickit.learning.stats import Stat

MAX_RECORDED = 65536  # episodes that a record keeps, all environments together


class EpisodeTracker:
    """Mean return and length (in control steps) of all finished episodes.

    Args:
        skip: the first environments, which do not count.
    """

    def __init__(self, num_envs: int, device: torch.device | str, skip: int = 0) -> None:
        self._skip = skip
        self._return = torch.zeros(num_envs, device=device)
        self._length = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # return, length, episodes

    def update(self, reward: Tensor, done: Tensor) -> None:
        """Account for one step: reward [N] float, done [N] int (DoneFlag)."""
        self._return += reward
        self._length += 1
        ended = done != DoneFlag.NULL
        finished = torch.stack([self._return.double(), self._length.double(), torch.ones_like(reward).double()])
        self._sums += torch.where(ended, finished, 0.0)[:, self._skip :].sum(1)
        self._return.masked_fill_(ended, 0.0)
        self._length.masked_fill_(ended, 0)

    def clear(self) -> None:
        """Forget finished episodes; those under way go on."""
        self._sums.zero_()

    def restart(self) -> None:
        """Forget everything: all episodes begin with the next step."""
        for tensor in self.state_tensors().values():
            tensor.zero_()

    def stats(self) -> tuple[Stat, Stat, Stat]:
        """Mean return, mean length and number of episodes (0 without any)."""
        total_return, total_length, episodes = self._sums.clone().unbind()
        count = episodes.clamp(min=1.0)
        return (
            Stat(total_return / count, "mean", episodes),
            Stat(total_length / count, "mean", episodes),
            Stat(episodes, "sum"),
        )

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything needed to continue exactly."""
        return {"return": self._return, "length": self._length, "sums": self._sums}


class EpisodeRecord:
    """Return, length, end and measures of the first episodes of every environment, one by one.

    The same number of every environment, its first ones, so that environments with short episodes do not weigh more,
    and no step after them counts.

    Args:
        per_env: episodes of each environment that count. Of very many only the first are kept: ``MAX_RECORDED``.
        measures: sum and number of samples of each environment by name, live ([N] each).
        max_length: count an episode as finished after so many steps, even when the environment goes on.
    """

    def __init__(
        self, num_envs: int, device: torch.device | str, per_env: int,
        measures: Mapping[str, tuple[Tensor, Tensor]] | None = None, max_length: int | None = None,
    ) -> None:
        measures = measures or {}
        self.names = ("return", "length", "survival", *measures)
        self._live = [tensor for pair in measures.values() for tensor in pair]
        self._max_length = max_length
        self._wanted = per_env
        self._kept = max(1, min(per_env, MAX_RECORDED // num_envs))
        like = {"dtype": torch.float64, "device": device}
        self._return, self._length = torch.zeros(num_envs, **like), torch.zeros(num_envs, **like)
        self._before = self._totals()  # [N, 2 m] what the live sums were when the present episode began
        self._rows = torch.zeros(self._kept, num_envs, 2 * len(self.names), **like)  # sum and weight of each name
        self.finished = torch.zeros(num_envs, dtype=torch.int64, device=device)  # [N] episodes

    def update(self, reward: Tensor, done: Tensor) -> None:
        """Account for one step: reward [N] float, done [N] int (DoneFlag); the live sums already do."""
        self._return += reward
        self._length += 1.0
        ended = done != DoneFlag.NULL
        if self._max_length is not None:
            ended = ended | (self._length >= self._max_length)
        one = torch.ones_like(self._return)
        totals = self._totals()
        row = torch.stack([self._return, one, self._length, one, (done != DoneFlag.FAIL).double(), one], dim=-1)
        row = torch.cat([row, totals - self._before], dim=-1).unsqueeze(0)

        index = self.finished.clamp(max=self._kept - 1).view(1, -1, 1).expand_as(row)
        counts = (ended & (self.finished < self._kept)).view(1, -1, 1)
        self._rows.scatter_(0, index, torch.where(counts, row, self._rows.gather(0, index)))
        self.finished += ended
        self._before.copy_(torch.where(ended.unsqueeze(-1), totals, self._before))
        self._return.masked_fill_(ended, 0.0)
        self._length.masked_fill_(ended, 0.0)

    def clear(self) -> None:
        """Forget everything: episodes begin with the next step."""
        for tensor in self.state_tensors().values():
            tensor.zero_()
        self._before.copy_(self._totals())

    def complete(self) -> Tensor:
        """0-d bool: whether every environment has finished its episodes."""
        return (self.finished >= self._wanted).all()

    def sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and weight of each name over the recorded episodes, 0-d; the mean is their quotient. No sync."""
        totals = self._rows.sum(dim=(0, 1)).unbind()  # rows without an episode are zero
        return {name: (totals[2 * i], totals[2 * i + 1]) for i, name in enumerate(self.names)}

    def episodes(self) -> Tensor:
        """[K, number of names, 2] on the CPU: sum and weight of each recorded episode, the first of every environment
        first. Waits for the device."""
        recorded = torch.arange(self._kept).unsqueeze(1) < self.finished.cpu()
        return self._rows.cpu()[recorded].unflatten(-1, (-1, 2))

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything needed to continue exactly."""
        return {"return": self._return, "length": self._length, "before": self._before, "rows": self._rows,
                "finished": self.finished}

    def _totals(self) -> Tensor:
        empty = self._return.new_zeros(self._return.shape[0], 0)
        return torch.stack(self._live, dim=-1) if self._live else empty
