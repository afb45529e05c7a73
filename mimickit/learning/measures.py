"""Means over all samples of a test, on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mimickit.util.graphs import Graphed


class RunningMeans:
    """Named means since :meth:`clear`, summed in float64; 0 while there is nothing."""

    def __init__(self, names: Sequence[str], device: torch.device | str) -> None:
        self._names = tuple(names)
        self.sums = torch.zeros(len(self._names) + 1, dtype=torch.float64, device=device)  # sums, then samples

    def clear(self) -> None:
        """Forget all samples."""
        self.sums.zero_()

    def add(self, *values: Tensor) -> None:
        """Add one tensor [N] per name. Can be captured; ``sums`` is the state."""
        totals = [value.double().sum() for value in values]
        self.sums += torch.stack([*totals, torch.full_like(totals[0], values[0].shape[0])])

    def means(self) -> dict[str, Tensor]:
        """Mean of each name, 0-d."""
        *sums, count = self.sums.clone().unbind()
        return {name: total / count.clamp(min=1.0) for name, total in zip(self._names, sums, strict=True)}


class TestMeasures:
    """What a reward source tells about a test: means of what ``compute`` says after every step; captured on CUDA.

    Args:
        compute: one tensor [N] per name, from the environment's present state.
    """

    __test__ = False  # not a test class

    def __init__(
        self, names: Sequence[str], compute: Callable[[], Sequence[Tensor]], device: torch.device | str,
        use_graphs: bool = True,
    ) -> None:
        self._means = RunningMeans(names, device)
        self._compute = compute
        self._add = Graphed(self._add_now, device, state=[self._means.sums], enabled=use_graphs)

    def start(self) -> None:
        """A test begins."""
        self._means.clear()

    def observe(self) -> None:
        """A step was made."""
        self._add()

    def means(self) -> dict[str, Tensor]:
        """Mean of each name since :meth:`start`, 0-d."""
        return self._means.means()

    @torch.no_grad()
    def _add_now(self) -> None:
        self._means.add(*self._compute())
