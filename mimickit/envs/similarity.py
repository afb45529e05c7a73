"""How similar the characters' motion is to the clips, measured without a network.

A *snippet* holds the positions of all bodies in the first and last frame of the history's window (0.3 s), relative to
the newest root: without horizontal position and heading, with height. It tells pose and speed. The distance of two
snippets is the root mean square over their ``2 B`` body positions, in metres. ``D`` = 6 B numbers of a snippet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.anim.motion import LoopMode
from mimickit.envs.disc_obs import ClipWindows, History
from mimickit.envs.terms import CharState, Metric, StepState
from mimickit.util.distributed import Distributed
from mimickit.util.rotations import heading, in_heading

MAX_SNIPPETS = 2048
FAR = 100.0  # m, coverage of a snippet before the first comparison


def snippets(frames: CharState) -> Tensor:
    """Snippets [N, 6 B] (m) of windows [N, S, ...]."""
    newest = frames.root_pos[:, -1]
    ground = torch.cat([newest[:, :2], torch.zeros_like(newest[:, 2:])], dim=-1)
    ends = torch.stack([frames.body_pos[:, 0], frames.body_pos[:, -1]], dim=1) - ground[:, None, None]
    return in_heading(ends, heading(frames.root_rot[:, -1, None, None])).flatten(1)


def snippet_distance(a: Tensor, b: Tensor) -> Tensor:
    """Distance [...] (m) of snippets [..., 6 B]."""
    return ((a - b).square().sum(dim=-1) * (3.0 / a.shape[-1])).sqrt()


def clip_snippets(windows: ClipWindows, dt: float, most: int = MAX_SNIPPETS) -> tuple[Tensor, Tensor]:
    """Snippets [K, D] of all clips, one per control step, or fewer so that there are about ``most``; and their weights
    [K], which sum to 1: a clip's weight in equal parts."""
    motions = windows.motions
    span = (windows.num_steps - 1) * dt
    lengths, modes = motions.lengths.tolist(), motions.loop_modes.tolist()
    starts = [0.0 if mode == int(LoopMode.WRAP) else min(span, length)
              for length, mode in zip(lengths, modes, strict=True)]
    total = sum((length - start) / dt + 1 for length, start in zip(lengths, starts, strict=True))
    spacing = dt * max(1.0, total / most)
    counts = [int((length - start) / spacing) + 1 for length, start in zip(lengths, starts, strict=True)]
    ids = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(motions.device)
    ranges = (torch.arange(count) * spacing + start for count, start in zip(counts, starts, strict=True))
    times = torch.cat(list(ranges)).to(motions.device)
    shares = motions.weights.double() / torch.tensor(counts, device=motions.device)
    return snippets(windows.ending(ids, times)), shares.index_select(0, ids)


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_root: Tensor) -> Tensor:
    """Distance (0-d, m) of two distributions of snippets, as if both were normal (Dowson and Landau 1982).

    The root of |m - m'|^2 + tr(C + C' - 2 (C'^1/2 C C'^1/2)^1/2), per body position as
    :func:`snippet_distance`.

    Args:
        mean, other_mean: [D] m; covariance: [D, D] m^2; other_root: [D, D] m, the other's :func:`symmetric_root`.
    """
    between = torch.linalg.eigvalsh(other_root @ covariance @ other_root).clamp(min=0.0).sqrt().sum()
    spread = covariance.trace() + other_root.square().sum() - 2.0 * between
    return (((mean - other_mean).square().sum() + spread).clamp(min=0.0) * (3.0 / len(mean))).sqrt()


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric square root [D, D] of a symmetric matrix without negative eigenvalues (but for rounding)."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T


def moments(count: Tensor, total: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] from the number (or weight, 0-d) of samples, their sum [D] and sum of outer
    products [D, D]; zeros without samples."""
    count = count.clamp(min=torch.finfo(count.dtype).tiny)
    mean = total / count
    return mean, products / count - mean[:, None] * mean


class MotionSimilarity(Metric):
    """Three distances (m) between the characters' motion and the clips.

    ``motion_err``: mean distance from the characters' snippets to the nearest one of the clips. Small if they move like
    any part of the clips. ``coverage_err``: mean distance from the clips' snippets to the nearest one of any character.
    Small if every part of the clips was done at least once. ``motion_dist``: distance of the two distributions
    (:func:`frechet_distance`). Small only if everything is done as often as in the clips: standing in one of their
    poses, or one of many gaits, is not enough.

    The last two are computed from all steps of all characters (of all processes, in an evaluation). They are not means
    over episodes, so they have no confidence interval. Windows that reach back to before the episode's start, where the
    past is the clip's own, do not count. Nearest snippets are found by inner products, then measured exactly.

    Attributes:
        windows: of the clips. clips: [K, D] their snippets. centre: [D] mean of those.
        clip_moments: mean [D] of the clips' distribution, from ``centre``, and root [D, D] of its covariance.
    """

    def __init__(self, history: History, windows: ClipWindows, num_envs: int, dt: float) -> None:
        self._history, self.windows = history, windows
        self._begin = (history.num_steps - 0.5) * dt  # s, from here on the window holds simulated states only
        self.clips, weights = clip_snippets(windows, dt)
        self.centre = self.clips.mean(dim=0)
        self._search = self.clips - self.centre
        self._square = self._search.square().sum(dim=-1)
        device, size = self.clips.device, self.clips.shape[1]
        super().__init__(("motion_err",), num_envs, device)
        self._nearest = torch.full((len(self.clips),), FAR, device=device)
        precise = self._search.double()
        clip_mean, covariance = moments(weights.sum(), weights @ precise, precise.T @ (weights[:, None] * precise))
        self.clip_moments = clip_mean, symmetric_root(covariance)
        self._count = torch.zeros((), dtype=torch.float64, device=device)
        self._sum = torch.zeros(size, dtype=torch.float64, device=device)
        self._products = torch.zeros(size, size, dtype=torch.float64, device=device)

    def measure(self, now: StepState, done: Tensor, valid: Tensor) -> None:
        found = snippets(self._history.frames())
        counts = valid & (now.time > self._begin)
        centred = torch.where(counts.unsqueeze(-1), found - self.centre, 0.0)
        distance = centred.square().sum(dim=-1, keepdim=True) + self._square - 2.0 * (centred @ self._search.T)

        precise = centred.double()
        self._count += counts.sum()
        self._sum += precise.sum(dim=0)
        self._products += precise.T @ precise

        nearest = self.clips.index_select(0, distance.argmin(dim=1))
        self.means.add(snippet_distance(found, nearest).unsqueeze(-1), counts)

        who = torch.where(counts.unsqueeze(-1), distance, torch.inf).argmin(dim=0)  # [K]
        reached = snippet_distance(self.clips, found.index_select(0, who))
        reached = torch.where(counts.index_select(0, who), reached, FAR)
        self._nearest.copy_(torch.minimum(self._nearest, reached))

    def pooled(self, dist: Distributed) -> dict[str, Tensor]:
        nearest = dist.min_(self._nearest.clone())
        count, total, products = (dist.sum_(tensor.clone()) for tensor in (self._count, self._sum, self._products))
        distance = frechet_distance(*moments(count, total, products), *self.clip_moments)
        return {
            "coverage_err": nearest.mean(dtype=torch.float64),
            "motion_dist": torch.where(count > 0.0, distance, torch.nan),
        }

    def clear(self) -> None:
        super().clear()
        self._nearest.fill_(FAR)
        for tensor in (self._count, self._sum, self._products):
            tensor.zero_()

    def buffers(self) -> dict[str, Tensor]:
        return {**super().buffers(), "nearest": self._nearest, "count_of_all": self._count, "sum_of_all": self._sum,
                "products_of_all": self._products}
