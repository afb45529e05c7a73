"""Normalisers of actions, observations and differences. Statistics are kept in float64, results are float32.

Recording adds to pending sums and changes nothing else; ``update`` folds the sums of all processes into the state.
Neither waits for the device.
"""

from __future__ import annotations

import torch

from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError

MIN_VARIANCE = 1e-8
MIN_MEAN_ABS = 1e-4
RECORD_SAMPLES = 8192  # at once: few kernels, little memory


class ActionNormalizer:
    """Between normalised actions (the action box is [-1, 1]) and simulator units. Fixed by the box, never clips."""

    def __init__(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Args: ``low``, ``high`` [A], the action box in simulator units.

        Raises:
            UserError: a bound is infinite or a range is empty.
        """
        mean, std = 0.5 * (high + low), 0.5 * (high - low)
        usable = torch.isfinite(mean) & torch.isfinite(std) & (std > 0.0)
        bad = [i for i, ok in enumerate(usable.tolist()) if not ok]
        if bad:
            raise UserError(
                f"actions {bad} have no finite range low < high (low {low[bad].tolist()}, high {high[bad].tolist()}): "
                f"joints that are controlled need limits"
            )
        self.count = torch.zeros(1, dtype=torch.int64, device=low.device)
        self.mean = mean.to(torch.float32)
        self.std = std.to(torch.float32)

    def to_env(self, action: torch.Tensor) -> torch.Tensor:
        """Normalised [..., A] -> simulator units."""
        return action * self.std + self.mean

    def to_normalized(self, action: torch.Tensor) -> torch.Tensor:
        """Simulator units [..., A] -> normalised."""
        return (action - self.mean) / self.std

    def model_tensors(self) -> dict[str, torch.Tensor]:
        return {"_count": self.count, "_mean": self.mean, "_std": self.std}


class MeanStdNormalizer:
    """(x - mean) / std per feature, bounded to +-``clip``; all-time averages, biased variance, std at least 1e-4.

    Batches are merged pairwise (Chan et al. 1979) from sums about the present mean, so that large offsets do not
    cancel.
    """

    def __init__(
        self, size: int, device: torch.device | str, clip: float = float("inf"), min_std: float = 0.0
    ) -> None:
        wide = {"dtype": torch.float64, "device": device}
        self.clip = clip
        self.count = torch.zeros(1, dtype=torch.int64, device=device)
        self.mean = torch.zeros(size, device=device)
        self.std = torch.ones(size, device=device)
        self._min_std = min_std
        self._mean = torch.zeros(size, **wide)
        self._var = torch.ones(size, **wide)
        self._pending = torch.zeros(2 * size + 1, **wide)  # count, sum of (x - mean), sum of (x - mean)^2

    def record(self, x: torch.Tensor) -> None:
        """Add samples [..., size] to the pending sums."""
        first, second = self._pending[1:].view(2, -1)
        for rows in x.flatten(0, -2).split(RECORD_SAMPLES):
            variance, mean = torch.var_mean(rows, 0, correction=0)
            shift = mean - self._mean  # float64
            first.add_(shift, alpha=len(rows))
            second.add_(shift.square_().add_(variance), alpha=len(rows))
            self._pending[0].add_(len(rows))

    def update(self, dist: Distributed) -> None:
        """Fold the pending sums of all processes into mean and deviation. Without new samples nothing changes."""
        dist.sum_(self._pending)
        new, (first, second) = self._pending[:1], self._pending[1:].view(2, -1)
        some = new > 0.5
        old = self.count.to(torch.float64)
        total = (old + new).clamp(min=1.0)
        offset = first / new.clamp(min=1.0)  # batch mean less present mean
        spread = (second - new * offset * offset).clamp(min=0.0)  # sum of squares about the batch mean
        variance = (old * self._var + spread + offset * offset * (old * new / total)) / total
        self._var.copy_(torch.where(some, variance, self._var))
        self._mean.copy_(torch.where(some, self._mean + offset * (new / total), self._mean))
        self.count += new.round().to(torch.int64)
        self.mean.copy_(self._mean)
        std = self._var.clamp(min=MIN_VARIANCE).sqrt().clamp(min=self._min_std)
        self.std.copy_(torch.where(self.count > 0, std, self.std))
        self._pending.zero_()

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size], clipped."""
        return ((x - self.mean) / self.std).clamp(-self.clip, self.clip)

    def denormalize(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        return x * self.std + self.mean

    def model_tensors(self) -> dict[str, torch.Tensor]:
        """What the model file holds. After filling them call :meth:`restore_moments`."""
        return {"_count": self.count, "_mean": self.mean, "_std": self.std}

    def restore_moments(self) -> None:
        """Recompute the hidden moments from count, mean and deviation, as after loading a model file."""
        self._mean.copy_(self.mean)
        self._var.copy_(self.std.to(torch.float64).square())
        self._pending.zero_()

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Everything needed to continue exactly."""
        return {**self.model_tensors(), "mean64": self._mean, "var64": self._var, "pending": self._pending}


class MeanAbsNormalizer:
    """x / max(mean |x|, 1e-4) per feature: no offset, no clip, zero stays zero."""

    def __init__(self, size: int, device: torch.device | str) -> None:
        self.count = torch.zeros(1, dtype=torch.int64, device=device)
        self.mean_abs = torch.ones(size, device=device)
        self._mean_abs = torch.ones(size, dtype=torch.float64, device=device)
        self._pending = torch.zeros(size + 1, dtype=torch.float64, device=device)

    def record(self, x: torch.Tensor) -> None:
        """Add samples [..., size] to the pending sums."""
        for rows in x.flatten(0, -2).split(RECORD_SAMPLES):
            self._pending[1:].add_(rows.abs().sum(0, dtype=torch.float64))
            self._pending[0].add_(len(rows))

    def update(self, dist: Distributed) -> None:
        """Fold the pending sums of all processes. Without new samples nothing changes."""
        dist.sum_(self._pending)
        new, total = self._pending[:1], self._pending[1:]
        old = self.count.to(torch.float64)
        merged = (old * self._mean_abs + total) / (old + new).clamp(min=1.0)
        self._mean_abs.copy_(torch.where(new > 0.5, merged, self._mean_abs))
        self.count += new.round().to(torch.int64)
        self.mean_abs.copy_(self._mean_abs)
        self._pending.zero_()

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        return x / self.mean_abs.clamp(min=MIN_MEAN_ABS)

    def model_tensors(self) -> dict[str, torch.Tensor]:
        """What the model file holds. After filling them call :meth:`restore_moments`."""
        return {"_count": self.count, "_mean_abs": self.mean_abs}

    def restore_moments(self) -> None:
        """Recompute the hidden moment, as after loading a model file."""
        self._mean_abs.copy_(self.mean_abs)
        self._pending.zero_()

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Everything needed to continue exactly."""
        return {**self.model_tensors(), "mean_abs64": self._mean_abs, "pending": self._pending}
