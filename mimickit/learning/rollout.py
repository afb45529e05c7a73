"""Where samples are kept: one rollout, the order in which minibatches visit it, and a replay buffer of earlier ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mimickit.util.failures import UserError

_ALIGN = 32  # float32 numbers in 128 bytes


class Rollout:
    """Preallocated named tensors [T, N, ...]; every step overwrites row ``t``."""

    def __init__(
        self, num_steps: int, num_envs: int, sizes: Mapping[str, tuple[int, ...]], device: torch.device | str,
        dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        """Args: ``sizes`` shape of one sample by name, ``dtypes`` where it is not float32."""
        self.num_samples = num_steps * num_envs
        self._data = {
            name: torch.zeros(num_steps, num_envs, *shape, dtype=(dtypes or {}).get(name, torch.float32), device=device)
            for name, shape in sizes.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        """The tensor [T, N, ...]."""
        return self._data[name]

    def record(self, t: int, **values: Tensor) -> None:
        """Copy values [N, ...] into row ``t``."""
        for name, value in values.items():
            self._data[name][t].copy_(value)

    def take(self, name: str, index: Tensor) -> Tensor:
        """Samples [B, ...] by flat index [B] in 0..T*N-1."""
        return self._data[name].flatten(0, 1).index_select(0, index)


class SampleTable(Rollout):
    """A rollout of float32 only, whose tensors are columns of one table: a minibatch is one gather.

    Every row begins on a boundary of 128 bytes, which makes matrix products with its first column fast.
    """

    def __init__(
        self, num_steps: int, num_envs: int, sizes: Mapping[str, tuple[int, ...]], device: torch.device | str
    ) -> None:
        """Args: ``sizes`` () or (n,) by name."""
        self.num_samples = num_steps * num_envs
        self._columns: dict[str, slice | int] = {}
        width = 0
        for name, shape in sizes.items():
            self._columns[name] = slice(width, width + shape[0]) if shape else width
            width += math.prod(shape)
        self._table = torch.zeros(num_steps, num_envs, -(-width // _ALIGN) * _ALIGN, device=device)
        self._data = self._split(self._table)

    def minibatch(self, index: Tensor) -> dict[str, Tensor]:
        """All tensors' samples [B, ...] by flat index [B] in 0..T*N-1."""
        return self._split(self._table.flatten(0, 1).index_select(0, index))

    def _split(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: rows[..., column] for name, column in self._columns.items()}


class MinibatchSampler:
    """Walks through random permutations of 0..capacity-1; the rest of a pass comes before the next permutation."""

    def __init__(self, capacity: int, device: torch.device | str) -> None:
        self._order = torch.arange(capacity, device=device)
        self._position = capacity

    def restart(self) -> None:
        """Forget the present pass and draw a new permutation."""
        capacity = self._order.shape[0]
        self._order = torch.randperm(capacity, device=self._order.device)
        self._position = 0

    def draw(self, count: int) -> Tensor:
        """The next ``count`` indices, int64 [count]. ``k * capacity`` draws in all hit every index k times."""
        assert self._order.shape[0] > 0, "nothing to draw from"
        pieces = []
        while count > 0:
            if self._position == self._order.shape[0]:
                self.restart()
            piece = self._order[self._position:self._position + count]
            self._position += piece.shape[0]
            count -= piece.shape[0]
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def state(self) -> dict[str, Tensor]:
        """What to continue from: ``order`` int64 [capacity] and ``position`` 0-d."""
        return {"order": self._order, "position": torch.full((), self._position, dtype=torch.int64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the :meth:`state` of a sampler of the same capacity."""
        assert state["order"].shape == self._order.shape
        self._order = state["order"].to(self._order.device)
        self._position = int(state["position"])


class ReplayBuffer:
    """The newest ``capacity`` of all samples pushed, [capacity, n], on the device.

    Draw row numbers from ``walk``, outside of what is captured, and look the samples up with :meth:`take`: each pass
    of the walk visits every filled row once. When more rows get filled a new walk over all of them begins, so that new
    samples can be drawn at once. Once the buffer is full the walk goes on for ever; a row that is overwritten keeps its
    place in the walk.

    How many samples were pushed decides what the host does next (where to write, how many of a rollout to keep), so
    the host counts them. Nothing waits for the device.
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
        """Whether the oldest samples are being overwritten."""
        return self.received >= self.capacity

    def push(self, samples: Tensor) -> None:
        """Write samples [k, n], k at most the capacity, over the oldest."""
        count, start, filled = samples.shape[0], self.received % self.capacity, self.filled
        assert count <= self.capacity, f"{count} samples do not fit into a buffer of {self.capacity}"
        head = min(count, self.capacity - start)
        self.data[start:start + head].copy_(samples[:head])
        self.data[:count - head].copy_(samples[head:])
        self.received += count
        if self.filled > filled:
            self.walk = MinibatchSampler(self.filled, self.data.device)

    def push_rollout(self, samples: Tensor, count_when_full: int) -> None:
        """Push a rollout [T * N, n]: all of it, in random order, until the buffer has been filled once; afterwards a
        random subset of ``count_when_full``. What does not fit is left out at random."""
        total = samples.shape[0]
        keep = min(total, self.capacity, count_when_full if self.full else total)
        order = torch.randperm(total, device=samples.device)[:keep]
        self.push(samples.index_select(0, order))

    def take(self, index: Tensor) -> Tensor:
        """Samples [B, n] by row number [B]. Can be captured."""
        return self.data.index_select(0, index)

    def state(self) -> dict[str, Tensor]:
        """What to continue from: filled rows, number of samples received, position in the walk."""
        received = torch.full((), self.received, dtype=torch.int64)
        return {"data": self.data[:self.filled], "received": received, **self.walk.state()}

    def load(self, state: Mapping[str, Tensor], where: str) -> None:
        """Continue from :meth:`state`. Raises UserError when it is incomplete or of a buffer of another size."""
        if missing := sorted(self.state().keys() - state.keys()):
            raise UserError(f"{where}: the discriminator's replay lacks {', '.join(missing)}, so no exact continuation "
                            f"is possible. Use --model_file with the run's model.pt for a warm start")
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
