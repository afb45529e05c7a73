"""Normalizers of actions, observations and differences. Moments are kept in float64, results are float32.

``record`` adds to pending sums and changes nothing else; ``update`` folds the sums of all processes into the moments.
Neither waits for the device. All state is in buffers: ``count``, ``mean``, ``std`` and ``mean_abs`` are what a model
file holds, the others belong to checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError

MIN_VARIANCE = 1e-8
MIN_MEAN_ABS = 1e-4
RECORD_SAMPLES = 8192  # at once: few kernels, little memory


class ActionNormalizer(nn.Module):
    """Between normalized actions (the action box is [-1, 1]) and simulator units. Fixed by the box, never clips."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        """Args: ``low``, ``high`` [A], the action box in simulator units.

        Raises:
            UserError: a bound is infinite or a range is empty.
        """
        super().__init__()
        mean, std = 0.5 * (high + low), 0.5 * (high - low)
        usable = torch.isfinite(mean) & torch.isfinite(std) & (std > 0.0)
        bad = [i for i, ok in enumerate(usable.tolist()) if not ok]
        if bad:
            raise UserError(
                f"actions {bad} have no finite range low < high (low {low[bad].tolist()}, high {high[bad].tolist()}): "
                f"joints that are controlled need limits"
            )
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64, device=low.device))  # always 0
        self.register_buffer("mean", mean.to(torch.float32))
        self.register_buffer("std", std.to(torch.float32))

    def to_env(self, action: Tensor) -> Tensor:
        """Normalized [..., A] -> simulator units."""
        return action * self.std + self.mean


class MeanStdNormalizer(nn.Module):
    """(x - mean) / std per feature, clipped to +-``clip``; all-time averages, biased variance, std at least 1e-4.

    Batches are merged pairwise (Chan et al. 1979) from sums about the present mean, so that large offsets do not
    cancel.
    """

    def __init__(self, size: int, device: torch.device | str, clip: float = float("inf")) -> None:
        super().__init__()
        wide = {"dtype": torch.float64, "device": device}
        self.clip = clip
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64, device=device))
        self.register_buffer("mean", torch.zeros(size, device=device))
        self.register_buffer("std", torch.ones(size, device=device))
        self.register_buffer("mean64", torch.zeros(size, **wide))
        self.register_buffer("var64", torch.ones(size, **wide))
        self.register_buffer("pending", torch.zeros(2 * size + 1, **wide))  # count, sums of x - mean and its square

    def record(self, x: Tensor) -> None:
        """Add samples [..., size] to the pending sums."""
        first, second = self.pending[1:].view(2, -1)
        for rows in x.flatten(0, -2).split(RECORD_SAMPLES):
            variance, mean = torch.var_mean(rows, 0, correction=0)
            shift = mean - self.mean64
            first.add_(shift, alpha=len(rows))
            second.add_(shift.square_().add_(variance), alpha=len(rows))
            self.pending[0].add_(len(rows))

    def update(self, dist: Distributed) -> None:
        """Fold the pending sums of all processes into mean and deviation. Without new samples nothing changes."""
        dist.sum_(self.pending)
        new, (first, second) = self.pending[:1], self.pending[1:].view(2, -1)
        some = new > 0.5
        old = self.count.to(torch.float64)
        total = (old + new).clamp(min=1.0)
        offset = first / new.clamp(min=1.0)  # batch mean less present mean
        spread = (second - new * offset * offset).clamp(min=0.0)  # sum of squares about the batch mean
        variance = (old * self.var64 + spread + offset * offset * (old * new / total)) / total
        self.var64.copy_(torch.where(some, variance, self.var64))
        self.mean64.copy_(torch.where(some, self.mean64 + offset * (new / total), self.mean64))
        self.count += new.round().to(torch.int64)
        self.mean.copy_(self.mean64)
        self.std.copy_(torch.where(self.count > 0, self.var64.clamp(min=MIN_VARIANCE).sqrt(), self.std))
        self.pending.zero_()

    def normalize(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size], clipped."""
        return ((x - self.mean) / self.std).clamp(-self.clip, self.clip)

    def restore_moments(self) -> None:
        """Recompute the float64 moments from count, mean and deviation, as after loading a model file."""
        self.mean64.copy_(self.mean)
        self.var64.copy_(self.std.to(torch.float64).square())
        self.pending.zero_()


class MeanAbsNormalizer(nn.Module):
    """x / max(mean |x|, 1e-4) per feature: no offset, no clip, zero stays zero."""

    def __init__(self, size: int, device: torch.device | str) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64, device=device))
        self.register_buffer("mean_abs", torch.ones(size, device=device))
        self.register_buffer("mean_abs64", torch.ones(size, dtype=torch.float64, device=device))
        self.register_buffer("pending", torch.zeros(size + 1, dtype=torch.float64, device=device))

    def record(self, x: Tensor) -> None:
        """Add samples [..., size] to the pending sums."""
        for rows in x.flatten(0, -2).split(RECORD_SAMPLES):
            self.pending[1:].add_(rows.abs().sum(0, dtype=torch.float64))
            self.pending[0].add_(len(rows))

    def update(self, dist: Distributed) -> None:
        """Fold the pending sums of all processes. Without new samples nothing changes."""
        dist.sum_(self.pending)
        new, total = self.pending[:1], self.pending[1:]
        old = self.count.to(torch.float64)
        merged = (old * self.mean_abs64 + total) / (old + new).clamp(min=1.0)
        self.mean_abs64.copy_(torch.where(new > 0.5, merged, self.mean_abs64))
        self.count += new.round().to(torch.int64)
        self.mean_abs.copy_(self.mean_abs64)
        self.pending.zero_()

    def normalize(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        return x / self.mean_abs.clamp(min=MIN_MEAN_ABS)

    def restore_moments(self) -> None:
        """Recompute the float64 moment, as after loading a model file."""
        self.mean_abs64.copy_(self.mean_abs)
        self.pending.zero_()
