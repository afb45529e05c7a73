"""Smoothing and resampling along the frames of a clip."""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.util import rotations as rot


def blur(values: Tensor, sigma: float, loops: bool) -> Tensor:
    """Gaussian blur of [F] or [F, n] along frames, standard deviation ``sigma`` in frames."""
    if values.dim() == 2:
        return torch.stack([blur(column, sigma, loops) for column in values.unbind(1)], dim=1)
    reach = max(1, round(3 * sigma))
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offset / max(sigma, 0.3)) ** 2)
    padded = _extend(values, reach, loops)
    return torch.nn.functional.conv1d(padded[None, None], (kernel / kernel.sum())[None, None])[0, 0]


def envelope(depth: Tensor, fps: float, loops: bool, reach: float = 0.1, sigma: float = 0.05) -> Tensor:
    """A smooth curve [F] approximately above ``depth`` [F]: maximum within ``reach`` s, blurred by ``sigma`` s."""
    frames = max(1, round(reach * fps))
    padded = _extend(depth, frames, loops)
    return blur(torch.nn.functional.max_pool1d(padded[None], 2 * frames + 1, stride=1)[0], sigma * fps, loops)


def _extend(values: Tensor, reach: int, loops: bool) -> Tensor:
    """[F] extended by ``reach`` values at both ends: from the loop's other end, or the end value held."""
    frames = len(values)
    index = torch.arange(-reach, frames + reach)
    return values[index % (frames - 1) if loops else index.clamp(0, frames - 1)]


def resample_grid(frames: int, fps: float, wanted: float) -> tuple[Tensor, Tensor, float]:
    """For each new frame [N]: the old frame before it, and the fraction of the way to the next; and the new rate.

    Both ends are kept, so the new rate is the nearest to ``wanted`` with a whole number of frames.
    """
    if frames < 2:
        return torch.zeros(frames, dtype=torch.int64), torch.zeros(frames, dtype=torch.float64), fps
    count = max(1, round((frames - 1) / fps * wanted))
    at = torch.linspace(0, frames - 1, count + 1, dtype=torch.float64)
    low = at.floor().long().clamp_max(frames - 2)
    return low, at - low, count * fps / (frames - 1)


def lerp_rows(values: Tensor, low: Tensor, part: Tensor) -> Tensor:
    """Rows [F, n] interpolated between frames (grid: :func:`resample_grid`)."""
    high = (low + 1).clamp_max(len(values) - 1)
    return values[low] + part.unsqueeze(-1) * (values[high] - values[low])


def slerp_rows(quats: Tensor, low: Tensor, part: Tensor) -> Tensor:
    """Rotations [F, n, 4] interpolated between frames (grid: :func:`resample_grid`)."""
    high = (low + 1).clamp_max(len(quats) - 1)
    return rot.slerp(quats[low], quats[high], part.unsqueeze(-1).expand(-1, quats.shape[1]))
