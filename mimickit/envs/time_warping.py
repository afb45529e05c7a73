"""How alike two motions are when one may run ahead of the other: recorded episodes, aligned in time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mimickit.envs.base import DoneFlag
from mimickit.envs.scene import Scene
from mimickit.envs.terms import CharState, Metric, StepState
from mimickit.util.distributed import Distributed
from mimickit.util.rotations import heading, in_heading

EPISODES = 32  # recorded by each process
MOST_STEPS = 1000  # of an episode


def alignment(cost: np.ndarray) -> tuple[float, int]:
    """Dynamic time warping (Sakoe and Chiba 1978): the least sum of costs along a path from the first to the last pair
    of two sequences, in steps that advance one of them or both, and the number of pairs on that path.

    Args:
        cost: [n, m] of each pair, n and m at least 1.
    """
    n, m = cost.shape
    total, pairs = np.full((n + 1, m + 1), np.inf), np.zeros((n + 1, m + 1), dtype=np.int64)
    total[0, 0] = 0.0
    for diagonal in range(2, n + m + 1):
        i = np.arange(max(1, diagonal - m), min(n, diagonal - 1) + 1)
        j = diagonal - i
        before = np.stack([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]])
        choice = before.argmin(axis=0)[None]  # of equal ones the step that advances both
        total[i, j] = cost[i - 1, j - 1] + np.take_along_axis(before, choice, axis=0)[0]
        counts = np.stack([pairs[i - 1, j - 1], pairs[i - 1, j], pairs[i, j - 1]])
        pairs[i, j] = 1 + np.take_along_axis(counts, choice, axis=0)[0]
    return float(total[n, m]), int(pairs[n, m])


def pose_costs(poses: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean distance of joints [n, m] (m) between poses [n, J, 3] and others [m, J, 3]."""
    return np.stack([np.linalg.norm(pose - others, axis=-1).mean(axis=-1) for pose in poses])


def local_pose(char: CharState) -> Tensor:
    """Bodies but the root [N, J, 3] (m), relative to the root, in the character's own heading axes."""
    offset = char.body_pos[..., 1:, :] - char.root_pos.unsqueeze(-2)
    return in_heading(offset, heading(char.root_rot).unsqueeze(-1))


class TimeWarpedError(Metric):
    """``time_warped_err`` (m): mean over joints and aligned pairs of poses, of the distance between the character's and
    its reference's (:func:`local_pose`, :func:`alignment`; Peng et al. 2021, table 3).

    Taken from the first episodes of a test, the first of each of the first environments, recorded on the device
    while they run and aligned afterwards. The reference is that of the episode: it starts with the character and goes
    on as a clip that loops does; a clip that does not loop ends both.

    Args:
        seconds: longest episode; at most ``MOST_STEPS`` control steps are recorded.
    """

    def __init__(self, seconds: float, scene: Scene) -> None:
        super().__init__((), 0, scene.device)
        steps = max(1, math.ceil(min(float(seconds) / scene.dt, MOST_STEPS) - 1e-4))
        shape = (min(EPISODES, scene.num_envs), steps, 2, scene.character.num_bodies - 1, 3)
        self._poses = torch.zeros(shape, device=scene.device)  # of character and reference
        self._lengths = torch.zeros(shape[0], dtype=torch.int64, device=scene.device)
        self._over = torch.zeros(shape[0], dtype=torch.bool, device=scene.device)

    def measure(self, now: StepState, done: Tensor, valid: Tensor) -> None:
        count, steps = self._poses.shape[:2]
        row = torch.stack([local_pose(now.char)[:count], local_pose(now.ref.now)[:count]], dim=1).unsqueeze(1)
        counts = valid[:count] & ~self._over & ~now.ref.ended[:count] & (self._lengths < steps)
        index = self._lengths.clamp(max=steps - 1).view(-1, 1, 1, 1, 1).expand_as(row)
        row = torch.where(counts.view(-1, 1, 1, 1, 1), row, self._poses.gather(1, index))
        self._poses.scatter_(1, index, row)
        self._lengths += counts
        self._over |= done[:count] != DoneFlag.NULL

    def pooled(self, dist: Distributed) -> dict[str, Tensor]:
        lengths, poses = self._lengths.tolist(), self._poses.cpu().numpy()
        found = [alignment(pose_costs(pose[:length, 0], pose[:length, 1]))
                 for pose, length in zip(poses, lengths, strict=True) if length]
        total, pairs = dist.sum_(torch.tensor(
            [sum(part) for part in zip(*found, strict=True)] or [0.0, 0.0], dtype=torch.float64,
            device=self._lengths.device)).unbind()
        return {"time_warped_err": total / pairs}

    def clear(self) -> None:
        self._lengths.zero_()
        self._over.zero_()

    def buffers(self) -> dict[str, Tensor]:
        return {"poses": self._poses, "lengths": self._lengths, "over": self._over}
