"""The minibatch steps of one network: draw, differentiate, average over processes, step; captured as graphs on CUDA.

Networks that share nothing take turns (:func:`take_turns`): while one's gradient travels between processes, another
computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from mimickit.learning.buffer import MinibatchSampler
from mimickit.learning.optimizers import FlatOptimizer
from mimickit.learning.stats import Stat
from mimickit.util.distributed import Distributed
from mimickit.util.graphs import Graphed

EQUALITY_CHECK_STEPS = 1000


@dataclass(frozen=True)
class BatchLoss:
    """Result of a loss function on one minibatch."""

    loss: torch.Tensor  # 0-d, mean over the samples that count
    weight: torch.Tensor | float  # 0-d, how many count; this process's share in averages over processes
    stats: torch.Tensor  # [number of the update's stat names], without gradient


class NetworkUpdate:
    """All minibatch steps of an iteration for one network.

    Args:
        loss_fn: sample indices [B], of each sampler -> :class:`BatchLoss`. Captured on CUDA: fixed shapes, no waiting.
        stat_names: columns that the loss function's stats fill; their means over all steps are reported.
        batch: samples of a minibatch.
        steps: optimiser steps of an iteration.
        use_graphs: False runs eagerly on CUDA.
        samplers: how many :meth:`steps` is given.
    """

    def __init__(
        self,
        loss_fn: Callable[..., BatchLoss],
        stat_names: Sequence[str],
        optimizer: FlatOptimizer,
        batch: int,
        steps: int,
        dist: Distributed,
        use_graphs: bool = True,
        samplers: int = 1,
    ) -> None:
        device = dist.device
        self.optimizer = optimizer
        self._loss_fn = loss_fn
        self._names = tuple(stat_names)
        self._batch = batch
        self._steps = steps
        self._dist = dist
        self._indices = [torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(samplers)]
        self._sums = torch.zeros(len(self._names) + 1, dtype=torch.float64, device=device)  # stats, weights
        self._total_steps = 0
        state = [self._sums, *optimizer.mutable()]
        if dist.world_size == 1:
            self._graphs = [Graphed(self._differentiate_and_step, device, state=state, enabled=use_graphs)]
        else:
            self._graphs = [
                Graphed(self._differentiate, device, state=state, enabled=use_graphs),
                Graphed(optimizer.step, device, state=[*state, optimizer.gradient], enabled=use_graphs),
            ]

    def steps(self, *samplers: MinibatchSampler) -> Iterator[None]:
        """Make all steps of an iteration; pauses where a gradient travels between processes, never with one process.

        All minibatches are drawn at the beginning. Does not wait for the device (but for the equality check now and
        then). Run it to its end, or let :func:`take_turns` do so, then read :meth:`stats`.
        """
        self._sums.zero_()
        draws = [[sampler.draw(self._batch) for sampler in samplers] for _ in range(self._steps)]
        for drawn in draws:
            for index, values in zip(self._indices, drawn, strict=True):
                index.copy_(values)
            self._graphs[0]()
            if self._dist.world_size > 1:
                arrival = self.optimizer.exchange()
                yield
                arrival.wait()
                self._graphs[1]()
            if self._total_steps % EQUALITY_CHECK_STEPS == 0:
                self.optimizer.check_equal()
            self._total_steps += 1

    def stats(self) -> dict[str, Stat]:
        """Means over the steps of the last iteration, by name."""
        means, weight = self._sums[:-1] / self._steps, self._sums[-1].clone()
        return {name: Stat(mean, "mean", weight) for name, mean in zip(self._names, means, strict=True)}

    def _differentiate(self) -> None:
        result = self._loss_fn(*self._indices)
        self.optimizer.set_gradient(result.loss, result.weight)
        self._sums[:-1].add_(result.stats)
        self._sums[-1].add_(result.weight)

    def _differentiate_and_step(self) -> None:
        self._differentiate()
        self.optimizer.step()


def take_turns(updates: Iterable[Iterator[None]]) -> None:
    """Run several networks' :meth:`NetworkUpdate.steps` to their ends, one step of each after the other.

    The result is that of one network after the other: they share no parameters.
    """
    running = list(updates)
    done = object()
    while running:
        running = [steps for steps in running if next(steps, done) is not done]
