"""The minibatch steps of networks: draw, differentiate, average over processes, step; captured as graphs on CUDA.

Networks that share nothing learn together (:class:`Learning`): with one process two make their steps side by side,
with several one's gradient travels while another computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mimickit.learning.optimizers import FlatOptimizer
from mimickit.learning.stats import Stat
from mimickit.util.distributed import Distributed
from mimickit.util.graphs import Graphed, SideBySide

EQUALITY_CHECK_STEPS = 1000


@dataclass(frozen=True)
class BatchLoss:
    """Result of a loss function on one minibatch."""

    loss: torch.Tensor  # 0-d, mean over the samples that count
    weight: torch.Tensor | float  # 0-d, how many count; this process's share in averages over processes
    stats: torch.Tensor  # [number of the update's stat names], without gradient


class Sampler(Protocol):
    """Where minibatches come from."""

    def draw(self, count: int) -> torch.Tensor:
        """The next ``count`` sample indices, int64 [count]."""


class NetworkUpdate:
    """What one network does in the minibatch steps of an iteration; :class:`Learning` does them.

    Args:
        loss_fn: sample indices [B], of each sampler -> :class:`BatchLoss`. Captured on CUDA: fixed shapes, no waiting.
        stat_names: columns that the loss function's stats fill; their means over all steps are reported.
        batch: samples of a minibatch.
        steps: optimiser steps of an iteration.
        others: what further sample indices are drawn from, besides the rollout's.
    """

    def __init__(
        self,
        loss_fn: Callable[..., BatchLoss],
        stat_names: Sequence[str],
        optimizer: FlatOptimizer,
        batch: int,
        steps: int,
        dist: Distributed,
        others: Sequence[Sampler] = (),
    ) -> None:
        device = dist.device
        self.optimizer = optimizer
        self.steps = steps
        self._loss_fn = loss_fn
        self._names = tuple(stat_names)
        self._batch = batch
        self._others = tuple(others)
        self._draws: list[list[torch.Tensor]] = []
        self._indices = [torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(1 + len(self._others))]
        self._sums = torch.zeros(len(self._names) + 1, dtype=torch.float64, device=device)  # stats, weights

    def begin(self, sampler: Sampler) -> None:
        """Draw all minibatches of an iteration."""
        self._sums.zero_()
        self._draws = [[source.draw(self._batch) for source in (sampler, *self._others)] for _ in range(self.steps)]

    def load(self, step: int) -> None:
        """Make ``step``'s minibatch the one to :meth:`differentiate`."""
        for index, values in zip(self._indices, self._draws[step], strict=True):
            index.copy_(values)

    def differentiate(self) -> None:
        """The gradient of the loaded minibatch."""
        result = self._loss_fn(*self._indices)
        self.optimizer.set_gradient(result.loss, result.weight)
        self._sums[:-1].add_(result.stats)
        self._sums[-1].add_(result.weight)

    def differentiate_and_step(self) -> None:
        """A whole step, where there is one process."""
        self.differentiate()
        self.optimizer.step()

    def mutable(self) -> list[torch.Tensor]:
        """Tensors that a step changes, for capture."""
        return [self._sums, *self.optimizer.mutable()]

    def stats(self) -> dict[str, Stat]:
        """Means over the steps of the last iteration, by name."""
        means, weight = self._sums[:-1] / self.steps, self._sums[-1].clone()
        return {name: Stat(mean, "mean", weight) for name, mean in zip(self._names, means, strict=True)}


class Learning:
    """All minibatch steps of an iteration, of networks that share no parameters.

    The result is that of one network after the other; only where losses draw random numbers they draw others.

    Args:
        use_graphs: False runs eagerly on CUDA.
    """

    def __init__(self, updates: Sequence[NetworkUpdate], dist: Distributed, use_graphs: bool = True) -> None:
        self._updates = tuple(updates)
        self._dist = dist
        self._use_graphs = use_graphs
        self._graphs: dict[object, Graphed] = {}
        self._total_steps = 0

    def run(self, sampler: Sampler) -> None:
        """Make the steps. Does not wait for the device (but for the equality check now and then)."""
        for update in self._updates:
            update.begin(sampler)
        if self._dist.world_size == 1:
            for steps in in_pairs([update.steps for update in self._updates]):
                self._step_side_by_side({self._updates[k]: step for k, step in steps.items()})
        else:
            take_turns([self._exchanging_steps(update) for update in self._updates])
        self._total_steps += max(update.steps for update in self._updates)

    def _step_side_by_side(self, steps: Mapping[NetworkUpdate, int]) -> None:
        for update, step in steps.items():
            update.load(step)
        active = tuple(steps)
        if active not in self._graphs:
            self._graphs[active] = self._graphed(
                SideBySide([update.differentiate_and_step for update in active], self._dist.device),
                [tensor for update in active for tensor in update.mutable()])
        self._graphs[active]()

    def _exchanging_steps(self, update: NetworkUpdate) -> Iterator[None]:
        """All steps of one network; pauses where its gradient travels between processes."""
        optimizer = update.optimizer
        if update not in self._graphs:
            self._graphs[update] = self._graphed(update.differentiate, update.mutable())
            self._graphs[optimizer] = self._graphed(optimizer.step, [*update.mutable(), optimizer.gradient])
        for step in range(update.steps):
            update.load(step)
            self._graphs[update]()
            arrival = optimizer.exchange()
            yield
            arrival.wait()
            self._graphs[optimizer]()
            if (self._total_steps + step) % EQUALITY_CHECK_STEPS == 0:
                optimizer.check_equal()

    def _graphed(self, fn: Callable[[], None], state: Sequence[torch.Tensor]) -> Graphed:
        return Graphed(fn, self._dist.device, state=state, enabled=self._use_graphs)


def in_pairs(counts: Sequence[int]) -> Iterator[dict[int, int]]:
    """Rounds in which at most two networks make a step, as few as can be: the two with most steps left.

    Args:
        counts: steps of each network.

    Yields:
        The number of the step, by the number of the network.
    """
    made = [0] * len(counts)
    while longest := sorted((k for k, n in enumerate(counts) if made[k] < n), key=lambda k: made[k] - counts[k])[:2]:
        yield {k: made[k] for k in sorted(longest)}
        for k in longest:
            made[k] += 1


def take_turns(sequences: Sequence[Iterator[None]]) -> None:
    """Run iterators to their ends, one step of each after the other."""
    running, done = list(sequences), object()
    while running:
        running = [sequence for sequence in running if next(sequence, done) is not done]
