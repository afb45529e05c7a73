"""Evaluation without a pause: a frozen policy acts in a few environments while all the others train."""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.envs.base import VecEnv
from mimickit.learning.agent import Agent
from mimickit.learning.evaluate import Evaluation
from mimickit.learning.stats import Stat, reduce_stats
from mimickit.learning.tracker import EpisodeRecord
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError


class SideEvaluation:
    """The first episode of each of the first ``count`` environments under the policy as it was at :meth:`begin`.

    Args:
        max_length: count an episode as finished after so many control steps.

    Raises:
        UserError: no environment would be left to train in.
    """

    def __init__(self, env: VecEnv, agent: Agent, count: int, max_length: int | None = None) -> None:
        if count >= env.num_envs:
            raise UserError(f"--eval_envs {count} leaves none of the {env.num_envs} environments of a process to train "
                            f"in: give less, or 0 to pause training for evaluations")
        self._env, self._agent, self._count = env, agent, count
        self._record = EpisodeRecord(count, env.device, per_env=1, max_length=max_length)
        self.samples = 0  # that the frozen policy had learned from

    def begin(self, samples: int) -> None:
        """Freeze the policy and start anew; its environments must just have been reset."""
        self.samples = samples
        self._agent.freeze(self._count)
        self._record.clear()

    def update(self) -> None:
        """Account for one step. Can be captured; the state is that of :meth:`local_state`."""
        self._record.update(self._env.reward[:self._count], self._env.done[:self._count])

    def result(self, dist: Distributed) -> Evaluation | None:
        """Means over all processes; None while an episode still goes on. Waits for the device."""
        unfinished = (~self._record.complete()).to(torch.int32)
        if dist.max_(unfinished).item():
            return None
        sums = self._record.sums()
        found = reduce_stats({name: Stat(sums[name][0] / sums[name][1], "mean", sums[name][1])
                              for name in ("return", "length")}, dist)
        return Evaluation(found["return"], found["length"], self._count * dist.world_size, samples=self.samples)

    def local_state(self) -> dict[str, Tensor]:
        """What every process has its own of, live."""
        return self._record.state_tensors()

    def shared_state(self) -> dict[str, Tensor]:
        """The frozen policy, equal on all processes, live."""
        return self._agent.frozen_tensors()
