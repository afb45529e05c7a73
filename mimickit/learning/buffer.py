"""Storage of one rollout and the walk through it in minibatches."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

_ALIGN = 32  # float32 numbers in 128 bytes


class Rollout:
    """Preallocated named tensors [T, N, ...]; every step overwrites row ``t``."""

    def __init__(
        self, num_steps: int, num_envs: int, sizes: Mapping[str, tuple[int, ...]], device: torch.device | str,
        dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        """Args: ``sizes`` shape of one sample by name, ``dtypes`` where it is not float32."""
        self.num_steps = num_steps
        self.num_envs = num_envs
        self._data = {
            name: torch.zeros(num_steps, num_envs, *shape, dtype=(dtypes or {}).get(name, torch.float32), device=device)
            for name, shape in sizes.items()
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor [T, N, ...]."""
        return self._data[name]

    @property
    def num_samples(self) -> int:
        return self.num_steps * self.num_envs

    def record(self, t: int, **values: torch.Tensor) -> None:
        """Copy values [N, ...] into row ``t``."""
        for name, value in values.items():
            self._data[name][t].copy_(value)

    def take(self, name: str, index: torch.Tensor) -> torch.Tensor:
        """Samples [B, ...] by flat index [B] in 0..T*N-1."""
        return self._data[name].flatten(0, 1).index_select(0, index)


class SampleTable(Rollout):
    """A rollout of float32 only, whose tensors are columns of one table: a minibatch is one gather.

    The first tensor begins, and so every row of the table, on a boundary of 128 bytes, as matrix products like it.
    """

    def __init__(
        self, num_steps: int, num_envs: int, sizes: Mapping[str, tuple[int, ...]], device: torch.device | str
    ) -> None:
        """Args: ``sizes`` () or (n,) by name."""
        self.num_steps = num_steps
        self.num_envs = num_envs
        self._columns: dict[str, slice | int] = {}
        width = 0
        for name, shape in sizes.items():
            self._columns[name] = slice(width, width + shape[0]) if shape else width
            width += math.prod(shape)
        self._table = torch.zeros(num_steps, num_envs, -(-width // _ALIGN) * _ALIGN, device=device)
        self._data = self._split(self._table)

    def minibatch(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """All tensors' samples [B, ...] by flat index [B] in 0..T*N-1."""
        return self._split(self._table.flatten(0, 1).index_select(0, index))

    def _split(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: rows[..., column] for name, column in self._columns.items()}


def minibatch_plan(num_steps: int, num_envs: int, batch_size: float, epochs: int) -> tuple[int, int]:
    """Samples of a minibatch and number of optimiser steps of an iteration.

    Args:
        batch_size: samples per environment, may be fractional.
    """
    samples = math.ceil(batch_size * num_envs)
    return samples, math.ceil(num_steps * num_envs / samples) * epochs


class MinibatchSampler:
    """Walks through random permutations of 0..capacity-1; the rest of a pass comes before the next permutation."""

    def __init__(self, capacity: int, device: torch.device | str) -> None:
        self._permutation = torch.arange(capacity, device=device)
        self._position = capacity

    def restart(self) -> None:
        """Forget the present pass and draw a new permutation."""
        capacity = self._permutation.shape[0]
        self._permutation = torch.randperm(capacity, device=self._permutation.device)
        self._position = 0

    def draw(self, count: int) -> torch.Tensor:
        """The next ``count`` indices, int64 [count]. ``k * capacity`` draws in all hit every index k times."""
        assert self._permutation.shape[0] > 0, "nothing to draw from"
        pieces = []
        while count > 0:
            if self._position == self._permutation.shape[0]:
                self.restart()
            piece = self._permutation[self._position:self._position + count]
            self._position += piece.shape[0]
            count -= piece.shape[0]
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def state(self) -> dict[str, torch.Tensor]:
        """Where the walk stands: ``order`` int64 [capacity] and ``position`` 0-d."""
        return {"order": self._permutation, "position": torch.full((), self._position, dtype=torch.int64)}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from the :meth:`state` of a sampler of the same capacity."""
        assert state["order"].shape == self._permutation.shape
        self._permutation = state["order"].to(self._permutation.device)
        self._position = int(state["position"])
