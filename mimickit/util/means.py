"""Means on the device, of what environments and learning measure in every step."""

from __future__ import annotations

import torch
from torch import Tensor


class Means:
    """Named means over samples, summed in float64 on the device for each environment apart; NaN without samples.

    Apart, because environments are independent of each other while an environment's steps are not: only so can
    somebody say how uncertain a mean is, or leave out the steps of some.
    """

    def __init__(self, names: tuple[str, ...], num_envs: int, device: torch.device | str) -> None:
        self.names = names
        self.sums = torch.zeros(num_envs, len(names), dtype=torch.float64, device=device)
        self.count = torch.zeros(num_envs, dtype=torch.float64, device=device)

    def add(self, values: Tensor, valid: Tensor) -> None:
        """Add values [N, number of names] of the samples whose valid [N] is True."""
        self.sums += torch.where(valid[:, None], values, 0.0)
        self.count += valid

    def means(self) -> dict[str, Tensor]:
        """Mean of each name over the samples of all environments, 0-d float64."""
        return dict(zip(self.names, (self.sums.sum(dim=0) / self.count.sum()).unbind(), strict=True))

    def per_env(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and number of samples of each name, [N] float64, live."""
        return {name: (self.sums[:, i], self.count) for i, name in enumerate(self.names)}

    def clear(self) -> None:
        """Forget all samples."""
        self.sums.zero_()
        self.count.zero_()

    def buffers(self) -> dict[str, Tensor]:
        """The accumulators."""
        return {"sums": self.sums, "count": self.count}
