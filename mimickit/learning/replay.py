"""A ring of past samples on the device: written in slices, walked through in shuffled order; neither waits for the
device."""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.learning.buffer import MinibatchSampler
from mimickit.util.failures import UserError


class ReplayRing:
    """Keeps the newest ``capacity`` of all samples pushed, [capacity, n].

    Draw row numbers from ``walk``, outside of what is captured, and look the samples up with :meth:`take`: each pass
    of the walk shows every filled row once. When more rows get filled a new walk over all of them begins, so that the
    new samples can be drawn at once. Once full the walk goes on for ever; a row that is overwritten keeps its place in
    it and shows the new sample from then on.

    How many were pushed decides what the host does next (where to write, how many of a rollout to keep), so the host
    knows it.
    """

    def __init__(self, capacity: int, size: int, device: torch.device | str) -> None:
        self.capacity = capacity
        self.data = torch.zeros(capacity, size, device=device)
        self.received = 0  # samples pushed since the beginning
        self.walk = MinibatchSampler(0, device)

    @property
    def filled(self) -> int:
        """Rows that hold a sample, the first of ``data``."""
        return min(self.received, self.capacity)

    @property
    def full(self) -> bool:
        """Whether samples are overwritten by now."""
        return self.received >= self.capacity

    def push(self, samples: Tensor) -> None:
        """Write samples [k, n], k at most the capacity; the oldest make room."""
        count, start, filled = samples.shape[0], self.received % self.capacity, self.filled
        assert count <= self.capacity, f"{count} samples do not fit into a ring of {self.capacity}"
        head = min(count, self.capacity - start)
        self.data[start:start + head].copy_(samples[:head])
        self.data[:count - head].copy_(samples[head:])
        self.received += count
        if self.filled > filled:
            self.walk = MinibatchSampler(self.filled, self.data.device)

    def push_rollout(self, samples: Tensor, count_when_full: int) -> None:
        """Push a rollout [T * N, n]: all of it, in random order, until the ring has been filled once; afterwards a
        random subset of ``count_when_full``. What does not fit is left out at random."""
        total = samples.shape[0]
        keep = min(total, self.capacity, count_when_full if self.full else total)
        order = torch.randperm(total, device=samples.device)[:keep]
        self.push(samples.index_select(0, order))

    def take(self, index: Tensor) -> Tensor:
        """Samples [B, n] by row number [B]. Can be captured."""
        return self.data.index_select(0, index)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to continue exactly: what is there, how many were received, and where the walk stands."""
        received = torch.full((), self.received, dtype=torch.int64)
        return {"data": self.data[:self.filled], "received": received, **self.walk.state()}

    def load(self, state: dict[str, Tensor], where: str) -> None:
        """Continue from :meth:`state`. Raises UserError when it is incomplete or that of a ring of another size."""
        if missing := sorted(self.state().keys() - state.keys()):
            raise UserError(f"{where}: the discriminator's replay lacks {', '.join(missing)}, so that no exact "
                            f"continuation is possible (checkpoints of older versions have no order and position). "
                            f"Use --model_file with the run's model.pt for a warm start")
        received = int(state["received"])
        expected = (min(received, self.capacity), self.data.shape[1])
        if tuple(state["data"].shape) != expected:
            raise UserError(f"{where}: the discriminator's replay holds {tuple(state['data'].shape)} numbers after "
                            f"{received} samples, this agent's would hold {expected} (disc_buffer_size "
                            f"{self.capacity})")
        self.data[:expected[0]].copy_(state["data"])
        self.received = received
        self.walk = MinibatchSampler(self.filled, self.data.device)
        self.walk.load(state)
