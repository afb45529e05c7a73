"""Minibatch steps of a network, and the optimizer that makes them; captured as graphs on CUDA.

SGD with momentum and AdamW work on one flat tensor: the parameters become views of it, the gradient and the moments are
flat too. A step is a handful of kernels and the exchange between processes is one all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from mimickit.learning.config import OptimizerConfig
from mimickit.learning.metrics import Metric
from mimickit.learning.rl_math import masked_mean
from mimickit.learning.rollout import MinibatchSampler
from mimickit.util.distributed import Distributed, Work
from mimickit.util.failures import MimicKitError
from mimickit.util.graphs import Graphed

MOMENTUM = 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
RATE_SPAN = 30.0  # an adapted learning rate stays within this factor of the configured one
EQUALITY_CHECK_STEPS = 1000
MAX_METRICS = 15  # of one network's loss
_ALIGN = 64  # elements; keeps every parameter on a 256-byte boundary for fast matrix products


class FlatOptimizer(nn.Module):
    """One optimizer over all parameters of one network. Moments, step count and the adapted rate are its buffers.

    Per step: :meth:`set_gradient`, :meth:`exchange` and its ``wait``, :meth:`step`; then :meth:`check_equal` now and
    then. Making one broadcasts the root's parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, dist: Distributed) -> None:
        super().__init__()
        self._config, self._dist = config, dist
        self._parameters_by_name = dict(parameters)  # a dictionary: they stay the network's, not this module's
        self._slices: dict[str, slice] = {}
        size = 0
        for name, parameter in parameters.items():
            self._slices[name] = slice(size, size + parameter.numel())
            size += -(-parameter.numel() // _ALIGN) * _ALIGN
        first = next(iter(parameters.values()))
        self._flat = torch.zeros(size, dtype=first.dtype, device=first.device)
        for name, parameter in parameters.items():
            self._flat[self._slices[name]].copy_(parameter.detach().reshape(-1))
            parameter.data = self._flat[self._slices[name]].view(parameter.shape)
        self._packed = torch.zeros(size + 1, dtype=first.dtype, device=first.device)  # gradient, then its weight
        self.gradient = self._packed[:size]
        self._gaps = [self._flat.new_zeros(-p.numel() % _ALIGN) for p in parameters.values()]
        self.register_buffer("moment1", torch.zeros_like(self._flat))
        self.register_buffer("moment2", torch.zeros_like(self._flat) if config.type == "Adam" else None)
        self.register_buffer("count", torch.zeros((), device=first.device))
        self.register_buffer("rate_factor", torch.ones((), dtype=first.dtype, device=first.device))
        dist.broadcast_([self._flat])

    @property
    def rate(self) -> Tensor:
        """The learning rate, 0-d: the configured one, times what :meth:`adapt_rate` made of it."""
        return self.rate_factor * self._config.learning_rate

    def set_gradient(self, loss: Tensor, weight: Tensor | float = 1.0) -> None:
        """Differentiate ``loss``; ``weight`` is this process's share when gradients are averaged over processes."""
        gradients = torch.autograd.grad(loss, list(self._parameters_by_name.values()))
        torch.cat([piece for gradient, gap in zip(gradients, self._gaps, strict=True)
                   for piece in (gradient.reshape(-1), gap)], out=self.gradient)
        if self._dist.world_size > 1:
            self._packed[-1:].fill_(1.0).mul_(weight)
            self.gradient.mul_(self._packed[-1])

    def exchange(self) -> Work:
        """Begin to average the gradient over processes by weight (zero when all weights are): :meth:`step` after its
        ``wait``. Not for capture."""
        return self._dist.begin_sum_(self._packed)

    def step(self) -> None:
        """Clip and apply the gradient."""
        config, gradient = self._config, self.gradient
        if self._dist.world_size > 1:
            gradient.div_(self._packed[-1].clamp(min=torch.finfo(gradient.dtype).tiny))
        if config.grad_clip > 0.0:
            gradient.mul_((config.grad_clip / (gradient.norm() + 1e-6)).clamp(max=1.0))
        if self.moment2 is None:
            if config.weight_decay > 0.0:
                gradient.add_(self._flat, alpha=config.weight_decay)
            self.moment1.mul_(MOMENTUM).add_(gradient)
            self._flat.addcmul_(self.moment1, self.rate, value=-1.0)
            return
        adamw(
            [self._flat], [gradient], [self.moment1], [self.moment2], [], [self.count], fused=True, capturable=True,
            amsgrad=False, beta1=BETA1, beta2=BETA2, lr=self.rate, weight_decay=config.weight_decay, eps=EPSILON,
            maximize=False,
        )

    def adapt_rate(self, kl: Tensor, target: float) -> None:
        """Change the learning rate so that the policy's change ``kl`` (0-d) comes near ``target``.

        By a factor of 1.5 where it misses the target by more than 2, between 1/30 and 30 times the configured rate
        (Schulman et al. 2017, section 4, with the rate in place of the penalty). Does not wait.
        """
        factor = 1.0 + 0.5 * (kl < 0.5 * target).to(kl.dtype) - (kl > 2.0 * target).to(kl.dtype) / 3.0
        self.rate_factor.mul_(factor).clamp_(1.0 / RATE_SPAN, RATE_SPAN)

    def check_equal(self) -> None:
        """Compare all parameters with the root's. Waits.

        Raises:
            MimicKitError: on every process, when they deviate on any; names the parameters and processes.
        """
        if self._dist.world_size == 1:
            return
        root = self._flat.clone()
        self._dist.broadcast_([root])
        equal = (self._flat.view(torch.uint8) == root.view(torch.uint8)).all().to(torch.int32)  # NaN equals NaN
        if self._dist.min_(equal).item():
            return
        own = [name for name, part in self._slices.items()
               if not torch.equal(self._flat[part].view(torch.uint8), root[part].view(torch.uint8))]
        found = self._dist.all_gather_object(own)
        detail = "; ".join(f"process {rank}: {', '.join(names)}" for rank, names in enumerate(found) if names)
        raise MimicKitError(f"parameters are no longer equal to those of process 0 ({detail})")

    def broadcast(self) -> None:
        """Overwrite the parameters by the root's, as after loading a model file."""
        self._dist.broadcast_([self._flat])

    def mutable(self) -> list[Tensor]:
        """Tensors that a step changes, for capture."""
        return [self._flat, *self.buffers()]


@dataclass(frozen=True)
class BatchLoss:
    """What a loss function makes of one minibatch: what to minimize, and what to log."""

    loss: Tensor  # 0-d, mean over the samples that count
    weight: Tensor | float  # 0-d, how many count; this process's share in averages over processes
    names: tuple[str, ...]  # of the metrics
    values: Tensor  # [number of names] metrics, without gradient

    @staticmethod
    def masked(minimized: str, terms: Mapping[str, Tensor], mask: Tensor) -> BatchLoss:
        """Means of terms [B] over the samples where ``mask`` [B] is 1; the one named ``minimized`` is the loss."""
        means = masked_mean(torch.stack(list(terms.values())), mask)
        return BatchLoss(means[list(terms).index(minimized)], mask.sum(), tuple(terms), means.detach())


class NetworkUpdate:
    """All minibatch steps of an iteration for one network.

    Args:
        loss_fn: sample indices [B], of each sampler -> :class:`BatchLoss`. Captured on CUDA: fixed shapes, no waiting,
            the same names in every call.
        batch: samples of a minibatch.
        steps: optimizer steps of an iteration.
        use_graphs: False runs eagerly on CUDA.
        samplers: how many :meth:`steps` is given.
    """

    def __init__(
        self, loss_fn: Callable[..., BatchLoss], optimizer: FlatOptimizer, batch: int, steps: int, dist: Distributed,
        use_graphs: bool = True, samplers: int = 1,
    ) -> None:
        device = dist.device
        self.optimizer = optimizer
        self._loss_fn, self._batch, self._steps, self._dist = loss_fn, batch, steps, dist
        self._indices = [torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(samplers)]
        self._names: tuple[str, ...] = ()
        self._sums = torch.zeros(1 + MAX_METRICS, dtype=torch.float64, device=device)  # weights, then metrics
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
        then). Run it to its end, or let :func:`interleave` do so, then read :meth:`metrics`.
        """
        self._sums.zero_()
        draws = [[sampler.draw(self._batch) for sampler in samplers] for _ in range(self._steps)]
        for drawn in draws:
            for index, values in zip(self._indices, drawn, strict=True):
                index.copy_(values)
            self._graphs[0]()
            if self._dist.world_size > 1:
                work = self.optimizer.exchange()
                yield
                work.wait()
                self._graphs[1]()
            if self._total_steps % EQUALITY_CHECK_STEPS == 0:
                self.optimizer.check_equal()
            self._total_steps += 1

    def metrics(self) -> dict[str, Metric]:
        """Means over the steps of the last iteration, by name."""
        means, weight = self._sums[1:1 + len(self._names)] / self._steps, self._sums[0].clone()
        return {name: Metric(mean, "mean", weight) for name, mean in zip(self._names, means, strict=True)}

    def _differentiate(self) -> None:
        result = self._loss_fn(*self._indices)
        self._names = result.names  # the same in every call, so also in what a graph replays
        self.optimizer.set_gradient(result.loss, result.weight)
        self._sums[1:1 + len(result.names)].add_(result.values)
        self._sums[0].add_(result.weight)

    def _differentiate_and_step(self) -> None:
        self._differentiate()
        self.optimizer.step()


def interleave(updates: Iterable[Iterator[None]]) -> None:
    """Run several networks' :meth:`NetworkUpdate.steps` to their ends, one step of each after the other.

    While one's gradient travels between processes, another computes. The result is that of one network after the other:
    they share no parameters.
    """
    running = list(updates)
    done = object()
    while running:
        running = [steps for steps in running if next(steps, done) is not done]
