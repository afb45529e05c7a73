"""What the networks of a reward source say during a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mimickit.util.graphs import Graphed
from mimickit.util.means import Means


class TestMeasures:
    """What a reward source tells about a test: sums of what ``compute`` says after every step; captured on CUDA.

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
