"""Running returns and lengths of episodes, on the device, without waiting for it."""

from __future__ import annotations

import torch

from mimickit.envs.base import DoneFlag
from mimickit.learning.stats import Stat


class EpisodeTracker:
    """Mean return and length (in control steps) of finished episodes.

    Args:
        limit: count only the first ``limit`` episodes of each environment, so that environments with short episodes
            do not weigh more. None counts all.
        max_length: count an episode as finished after so many steps, even when the environment goes on.
    """

    def __init__(
        self, num_envs: int, device: torch.device | str, limit: int | None = None, max_length: int | None = None
    ) -> None:
        self._limit = limit
        self._max_length = max_length
        self._return = torch.zeros(num_envs, device=device)
        self._length = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.env_episodes = torch.zeros(num_envs, dtype=torch.int64, device=device)  # [N] finished ones
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # return, length, episodes

    def update(self, reward: torch.Tensor, done: torch.Tensor) -> None:
        """Account for one step: reward [N] float, done [N] int (DoneFlag)."""
        self._return += reward
        self._length += 1
        ended = done != DoneFlag.NULL
        if self._max_length is not None:
            ended = ended | (self._length >= self._max_length)
        counted = ended if self._limit is None else ended & (self.env_episodes < self._limit)
        finished = torch.stack([self._return.double(), self._length.double(), torch.ones_like(reward).double()])
        self._sums += torch.where(counted, finished, 0.0).sum(1)
        self.env_episodes += counted
        self._return.masked_fill_(ended, 0.0)
        self._length.masked_fill_(ended, 0)

    def clear(self) -> None:
        """Forget finished and partial episodes."""
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

    def all_reached(self, episodes: int) -> torch.Tensor:
        """0-d bool: whether every environment finished at least so many."""
        return (self.env_episodes >= episodes).all()

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Everything needed to continue exactly."""
        return {
            "return": self._return, "length": self._length, "env_episodes": self.env_episodes, "sums": self._sums
        }
