"""Evaluation without a pause: a frozen policy acts in a few environments while all the others train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mimickit.envs.base import VecEnv
from mimickit.learning.agent import Agent
from mimickit.learning.evaluate import Evaluation
from mimickit.learning.stats import Stat, reduce_stats
from mimickit.learning.tracker import EpisodeRecord
from mimickit.util.checkpoint import fill_tensors, snapshot
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError


def check_eval_envs(count: int, num_envs: int) -> None:
    """Raises UserError where evaluation beside training would leave no environment to train in."""
    if count >= num_envs:
        raise UserError(f"--eval_envs {count} leaves none of the {num_envs} environments of a process to train in: "
                        f"give less, or 0 to pause training for evaluations")


class SideEvaluation:
    """The first episode of each of the first ``count`` environments under the policy as it was at :meth:`begin`.

    Args:
        max_length: count an episode as finished after so many control steps.

    Raises:
        UserError: no environment would be left to train in.
    """

    def __init__(self, env: VecEnv, agent: Agent, count: int, max_length: int | None = None) -> None:
        check_eval_envs(count, env.num_envs)
        self._env, self._agent, self._count = env, agent, count
        self._record = EpisodeRecord(count, env.device, per_env=1, max_length=max_length)
        self.samples, self.iteration = 0, 0  # that the frozen policy had learned from, and at the end of which it was
        self.model: dict[str, Tensor] = {}  # the model as it was then: the frozen policy and all that belongs to it

    def begin(self, samples: int, iteration: int) -> None:
        """Freeze the policy and start anew; its environments must just have been reset."""
        self.samples, self.iteration = samples, iteration
        self._agent.freeze(self._count)
        self.model = snapshot(self._agent.model_tensors())
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

    def shared_state(self) -> dict[str, Any]:
        """What is equal on all processes: the frozen policy, live, and the model that it belongs to."""
        return {"samples": self.samples, "iteration": self.iteration, "frozen": self._agent.frozen_tensors(),
                "model": self.model}

    def load_shared(self, state: Mapping[str, Any], where: str) -> None:
        """Continue from :meth:`shared_state`, read from ``where``. Raises UserError when it does not fit."""
        self.begin(state["samples"], state.get("iteration", 0))
        fill_tensors(self._agent.frozen_tensors(), state["frozen"], where)
        known = state.get("model", {**self.model, **state["frozen"]})  # older checkpoints hold the frozen policy alone
        fill_tensors(self.model, known, where)
