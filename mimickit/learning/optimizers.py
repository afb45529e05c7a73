"""SGD with momentum and AdamW on one flat parameter tensor.

The parameters become views of a flat tensor, the gradient and the moments are flat too: a step is a handful of
kernels, the exchange between processes is one all-reduce, and everything can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim.adamw import adamw

from mimickit.config import Config
from mimickit.util.distributed import Arrival, Distributed
from mimickit.util.failures import MimicKitError

MOMENTUM = 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
RATE_SPAN = 30.0  # an adapted learning rate stays within this factor of the configured one
_ALIGN = 64  # elements; keeps every parameter on a 256-byte boundary for fast matrix products


class OptimizerConfig(Config):
    """Mapping ``actor_optimizer`` and its like."""

    type: Literal["SGD", "Adam"]
    learning_rate: float = Field(gt=0.0)
    weight_decay: float = Field(0.0, ge=0.0, description="SGD: added to the gradient; Adam: decoupled (AdamW)")
    grad_clip: float = Field(0.0, ge=0.0, description="largest global gradient norm, 0 = off")


class FlatOptimizer:
    """One optimiser over all parameters of one network.

    Per step: :meth:`set_gradient`, :meth:`exchange` and its ``wait``, :meth:`step`; then :meth:`check_equal` now and
    then. Making one broadcasts the root's parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, dist: Distributed) -> None:
        self._config = config
        self._dist = dist
        self._parameters = dict(parameters)
        self._slices: dict[str, slice] = {}
        size = 0
        for name, parameter in self._parameters.items():
            self._slices[name] = slice(size, size + parameter.numel())
            size += -(-parameter.numel() // _ALIGN) * _ALIGN
        first = next(iter(self._parameters.values()))
        self._flat = torch.zeros(size, dtype=first.dtype, device=first.device)
        for name, parameter in self._parameters.items():
            self._flat[self._slices[name]].copy_(parameter.detach().reshape(-1))
            parameter.data = self._flat[self._slices[name]].view(parameter.shape)
        self._packed = torch.zeros(size + 1, dtype=first.dtype, device=first.device)  # gradient, then its weight
        self.gradient = self._packed[:size]
        self._gaps = [self._flat.new_zeros(-p.numel() % _ALIGN) for p in self._parameters.values()]
        self._moment1 = torch.zeros_like(self._flat)
        self._moment2 = torch.zeros_like(self._flat) if config.type == "Adam" else None
        self._count = torch.zeros((), device=first.device)
        self._rate_factor = torch.ones((), dtype=first.dtype, device=first.device)  # adapted; of the configured rate
        dist.broadcast_([self._flat])

    @property
    def rate(self) -> torch.Tensor:
        """The learning rate, 0-d: the configured one, times what :meth:`adapt_rate` made of it."""
        return self._rate_factor * self._config.learning_rate

    def set_gradient(self, loss: torch.Tensor, weight: torch.Tensor | float = 1.0) -> None:
        """Differentiate ``loss``; ``weight`` is this process's share when gradients are averaged over processes."""
        gradients = torch.autograd.grad(loss, list(self._parameters.values()))
        torch.cat([piece for gradient, gap in zip(gradients, self._gaps, strict=True)
                   for piece in (gradient.reshape(-1), gap)], out=self.gradient)
        if self._dist.world_size > 1:
            self._packed[-1:].fill_(1.0).mul_(weight)
            self.gradient.mul_(self._packed[-1])

    def exchange(self) -> Arrival:
        """Begin to average the gradient over processes by weight (zero when all weights are): :meth:`step` after the
        arrival's ``wait``. Not for capture."""
        return self._dist.begin_sum_(self._packed)

    def step(self) -> None:
        """Clip and apply the gradient."""
        config, gradient = self._config, self.gradient
        if self._dist.world_size > 1:
            gradient.div_(self._packed[-1].clamp(min=torch.finfo(gradient.dtype).tiny))
        if config.grad_clip > 0.0:
            gradient.mul_((config.grad_clip / (gradient.norm() + 1e-6)).clamp(max=1.0))
        if self._moment2 is None:
            if config.weight_decay > 0.0:
                gradient.add_(self._flat, alpha=config.weight_decay)
            self._moment1.mul_(MOMENTUM).add_(gradient)
            self._flat.addcmul_(self._moment1, self.rate, value=-1.0)
            return
        adamw(
            [self._flat], [gradient], [self._moment1], [self._moment2], [], [self._count], fused=True, capturable=True,
            amsgrad=False, beta1=BETA1, beta2=BETA2, lr=self.rate, weight_decay=config.weight_decay, eps=EPSILON,
            maximize=False,
        )

    def adapt_rate(self, kl: torch.Tensor, target: float) -> None:
        """Change the learning rate so that the policy's change ``kl`` (0-d) comes near ``target``.

        By a factor of 1.5 where it misses the target by more than 2, between 1/30 and 30 times the configured rate
        (Schulman et al. 2017, section 4, with the rate in place of the penalty). Does not wait.
        """
        factor = 1.0 + 0.5 * (kl < 0.5 * target).to(kl.dtype) - (kl > 2.0 * target).to(kl.dtype) / 3.0
        self._rate_factor.mul_(factor).clamp_(1.0 / RATE_SPAN, RATE_SPAN)

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

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Moments, step count and how far the learning rate was adapted; the parameters belong to the model."""
        state = {"moment1": self._moment1, "count": self._count, "rate_factor": self._rate_factor}
        return state if self._moment2 is None else {**state, "moment2": self._moment2}

    def mutable(self) -> list[torch.Tensor]:
        """Tensors that a step changes, for capture."""
        return [self._flat, *self.state_tensors().values()]
