"""Evaluation as a part of training: in pauses of it, or beside it.

What depends on when policies are evaluated is here: ``Test_`` columns and when their row is logged, which policy is the
best, which episodes begin after an output, and what of all that a checkpoint keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from mimickit.envs.base import EnvMode, VecEnv
from mimickit.learning.agent import Agent
from mimickit.learning.config import TrainOptions
from mimickit.learning.evaluation import NOT_EVALUATED, ConcurrentEvaluation, Evaluation, evaluate, read_health
from mimickit.learning.run_files import RunFiles
from mimickit.util.checkpoint import fill_tensors
from mimickit.util.distributed import Distributed
from mimickit.util.logging import Number, column_name, warn_once
from mimickit.util.options import BEST_EPISODES

Row = dict[str, Number]  # of the log


class Evaluator:
    """What the trainer sees of evaluations.

    Args:
        should_stop: asked every few steps of a pause; true on any process ends the evaluation on all.
        check_health: takes the health counters of a pause, summed over processes.

    Attributes:
        pauses: whether an evaluation changes what training continues from.
        last: the newest evaluation.
        best: return and episode length of the best one.
    """

    pauses: bool

    def __init__(
        self, env: VecEnv, agent: Agent, dist: Distributed, options: TrainOptions, files: RunFiles,
        should_stop: Callable[[], bool], check_health: Callable[[Mapping[str, int]], None],
    ) -> None:
        self._env, self._agent, self._dist, self._options, self._files = env, agent, dist, options, files
        self._should_stop, self._check_health = should_stop, check_health
        self.last: Evaluation | None = None
        self.best = [-math.inf, -math.inf]

    # --- while training goes on

    def start(self) -> None:
        """A new training begins; all environments were just reset."""

    def update(self) -> None:
        """Account for a step of training. Can be captured; the state is ``buffers``."""

    def buffers(self) -> list[Tensor]:
        return []

    # --- an output

    def measure(self, samples: int, iteration: int) -> bool:
        """Note the evaluation that there is to be or that has ended, if any; False: a signal came meanwhile.

        Args:
            samples: that the present policy has learned from.
            iteration: at the end of which it is that.
        """
        raise NotImplementedError

    def log(self, row: Row) -> None:
        """Log the row of the present policy, or keep it until there is its evaluation."""
        raise NotImplementedError

    def go_on(self, row: Row, due: bool) -> bool:
        """Begin new episodes; returns whether in all environments.

        Args:
            row: of the present policy.
            due: False at the end of a run, where an output leaves no trace.
        """
        raise NotImplementedError

    # --- parts of a row

    def columns(self) -> Row:
        """What the log says of evaluations."""
        raise NotImplementedError

    def env_metrics(self) -> dict[str, float]:
        """What the last pause has measured of the environment."""
        return {}

    def printed(self, row: Row) -> Row:
        """``row`` as people see it."""
        return row

    # --- the end of a run

    def missing(self) -> bool:
        """Whether none of the policies that have learned something was evaluated, so that the last one should be."""
        return False

    def measure_in_pause(self, samples: int, iteration: int) -> bool:
        """:meth:`measure`, in all environments, while training pauses."""
        self._files.progress.enter("evaluating")
        found = evaluate(
            self._env, self._agent, self._dist, self._agent.config.test_episodes, should_stop=self._should_stop,
            on_step=self._files.on_step, max_episode_steps=self._options.max_episode_steps)
        if found is None:  # there are to be no episodes
            return True
        if found.complete:
            self._check_health(read_health(self._env, self._dist))
            self._note(replace(found, samples=samples), self._agent.model_tensors(), iteration)
        return found.complete

    def log_last(self, row: Row | None, learned: bool) -> None:
        """Log the rows that have waited for their evaluation.

        Args:
            row: of the last policy; None: there is none.
            learned: whether this process has learned anything, or only found nothing left to do.
        """

    # --- checkpoints

    def notes(self) -> dict[str, Any]:
        """Entries of a checkpoint that an evaluation changes even at an output that was not due."""
        return {"evaluation": asdict(self.last) if self.last else None, "best": self.best}

    def shared_state(self) -> dict[str, Any]:
        """Entries of a checkpoint that are equal on all processes, tensors live."""
        return {**self.notes(), "concurrent": None}

    def process_state(self) -> dict[str, Tensor] | None:
        """What every process has its own of."""
        return None

    def load(self, shared: Mapping[str, Any], local: dict[str, Tensor] | None, where: str) -> None:
        """Continue from ``shared_state`` and ``process_state``, read from ``where``, when environments and agent do.
        Raises UserError when they do not fit."""
        self.last = shared["evaluation"] and Evaluation(**shared["evaluation"])
        self.best = shared["best"]

    def first_row(self, iteration: int) -> int:
        """Iteration of the first row that is still to be logged, where ``iteration`` is the next one."""
        return iteration

    def _note(self, evaluation: Evaluation, policy: Mapping[str, Tensor], iteration: int) -> None:
        """``evaluation`` is the newest, of ``policy`` at the end of ``iteration``. Save the best policy by return, then
        by length; of few episodes none is."""
        self.last = evaluation
        if evaluation.episodes < BEST_EPISODES:
            warn_once(f"evaluations of {evaluation.episodes} episodes are too few to tell which policy is best: "
                      f"checkpoints/best is written from {BEST_EPISODES} on (--eval_envs; without it test_episodes of "
                      "the agent file)")
            return
        reached = [evaluation.mean_return, evaluation.episode_length]
        if reached >= self.best:
            self._files.save_best(policy, iteration, evaluation)
        self.best = max(self.best, reached)


class PausingEvaluator(Evaluator):
    """Evaluates the present policy at every output, in all environments."""

    pauses = True

    def measure(self, samples: int, iteration: int) -> bool:
        return self.measure_in_pause(samples, iteration)

    def log(self, row: Row) -> None:
        self._files.log.write(row, [column_name(name) for name in self.env_metrics()])

    def go_on(self, row: Row, due: bool) -> bool:
        self._env.set_mode(EnvMode.TRAIN)
        self._env.reset()
        self._files.progress.enter("training")
        return True

    def columns(self) -> Row:
        return {} if self.last is None else self.last.row()

    def env_metrics(self) -> dict[str, float]:
        return self.last.metrics if self.last is not None and self._options.log_env_metrics else {}


class ConcurrentEvaluator(Evaluator):
    """Evaluates in ``options.eval_envs`` environments of every process while the others train. An evaluation is of the
    policy that it began with, whose row is logged when it has ended.

    Raises:
        UserError: no environment would be left to train in.
    """

    pauses = False

    def __init__(self, env: VecEnv, agent: Agent, dist: Distributed, options: TrainOptions, *others: Any) -> None:
        super().__init__(env, agent, dist, options, *others)
        self._running = ConcurrentEvaluation(env, agent, options.eval_envs, options.max_episode_steps)
        self._ended = False  # and its result noted
        self._row: Row | None = None  # waits for its evaluation

    def start(self) -> None:
        self._running.begin(0, 0)

    def update(self) -> None:
        self._running.update()

    def buffers(self) -> list[Tensor]:
        return list(self._running.record.buffers())

    def measure(self, samples: int, iteration: int) -> bool:
        evaluation = self._running.result(self._dist)
        self._ended = evaluation is not None
        if evaluation is not None:
            self._note(evaluation, self._agent.frozen_tensors(), self._running.iteration)
            if self._row is not None:
                self._files.log.write({**self._row, **evaluation.row()})
                self._row = None
        return True

    def log(self, row: Row) -> None:
        """Rows wait for their evaluation."""

    def go_on(self, row: Row, due: bool) -> bool:
        if due and self._ended:  # one that has not ended goes on, and the present policy is not evaluated
            self._env.reset(self._options.eval_envs)
            self._running.begin(int(row["Samples"]), int(row["Iteration"]))
            self._row = row
        return False

    def columns(self) -> Row:
        return (self.last or NOT_EVALUATED).row()

    def printed(self, row: Row) -> Row:
        """The evaluation is of an earlier policy, and the row says of which."""
        if self.last is None:
            return {name: value for name, value in row.items() if name not in NOT_EVALUATED.row()}
        return {**row, "Test_Samples": self.last.samples}

    def missing(self) -> bool:
        return self.last is None or self.last.samples == 0

    def log_last(self, row: Row | None, learned: bool) -> None:
        last = self.last or NOT_EVALUATED
        rows = [] if self._row is None else [self._row]
        logged = {waiting["Samples"] for waiting in rows}
        if not rows and not learned:
            logged.add(last.samples)  # by the run that this one continues
        if row is not None and row["Samples"] not in logged:
            rows.append(row)
        for each in rows:
            own = last if each["Samples"] == last.samples else NOT_EVALUATED
            self._files.log.write({**each, **own.row()})

    def shared_state(self) -> dict[str, Any]:
        return {**self.notes(), "concurrent": {**self._running.shared_state(), "row": self._row}}

    def process_state(self) -> dict[str, Tensor] | None:
        return self._running.record.state_dict()

    def load(self, shared: Mapping[str, Any], local: dict[str, Tensor] | None, where: str) -> None:
        super().load(shared, local, where)
        if shared["concurrent"] is None:  # evaluations paused training so far
            self._env.reset(self._options.eval_envs)
            self._running.begin(shared["samples"], max(shared["iteration"] - 1, 0))
            return
        self._running.load_shared(shared["concurrent"], where)
        self._row = shared["concurrent"]["row"]
        fill_tensors(self._running.record.state_dict(), local, where)

    def first_row(self, iteration: int) -> int:
        return iteration if self._row is None else int(self._row["Iteration"])
