"""A ring of past samples on the device: written in slices, read by uniform draws; neither waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.util.failures import UserError


class ReplayRing:
    """Keeps the newest ``capacity`` of all samples pushed, [capacity, n].

    How many were pushed decides what the host does next (where to write, how many of a rollout to keep), so it is
    known to the host as well.
    """

    def __init__(self, capacity: int, size: int, device: torch.device | str) -> None:
        self.capacity = capacity
        self.data = torch.zeros(capacity, size, device=device)
        self.received = 0  # samples pushed since the beginning
        self._filled = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def full(self) -> bool:
        """Whether samples are overwritten by now."""
        return self.received >= self.capacity

    def push(self, samples: Tensor) -> None:
        """Write samples [k, n], k at most the capacity; the oldest make room."""
        count, start = samples.shape[0], self.received % self.capacity
        assert count <= self.capacity, f"{count} samples do not fit into a ring of {self.capacity}"
        head = min(count, self.capacity - start)
        self.data[start:start + head].copy_(samples[:head])
        self.data[:count - head].copy_(samples[head:])
        self.received += count
        self._filled.fill_(min(self.received, self.capacity))

    def push_rollout(self, samples: Tensor, count_when_full: int) -> None:
        """Push a rollout [T * N, n]: all of it, in random order, until the ring has been filled once; afterwards a
        random subset of ``count_when_full``. What does not fit is left out at random."""
        total = samples.shape[0]
        keep = min(total, self.capacity, count_when_full if self.full else total)
        order = torch.randperm(total, device=samples.device)[:keep]
        self.push(samples.index_select(0, order))

    def draw(self, count: int) -> Tensor:
        """``count`` samples [count, n], uniform over what is there, with replacement. Can be captured.

        Nothing must have been drawn before the first push.
        """
        position = torch.rand(count, dtype=torch.float64, device=self.data.device) * self._filled
        return self.data.index_select(0, position.long())

    def state(self) -> dict[str, Tensor]:
        """Everything needed to continue exactly: what is there, and how many were received."""
        filled = min(self.received, self.capacity)
        return {"data": self.data[:filled], "received": torch.full((), self.received, dtype=torch.int64)}

    def load(self, state: dict[str, Tensor], where: str) -> None:
        """Continue from :meth:`state`. Raises UserError when it is that of a ring of another size."""
        received = int(state["received"])
        expected = (min(received, self.capacity), self.data.shape[1])
        if tuple(state["data"].shape) != expected:
            raise UserError(f"{where}: the discriminator's replay holds {tuple(state['data'].shape)} numbers after "
                            f"{received} samples, this agent's would hold {expected} (disc_buffer_size "
                            f"{self.capacity})")
        self.data[:expected[0]].copy_(state["data"])
        self.received = received
        self._filled.fill_(expected[0])
