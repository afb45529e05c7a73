"""Episodes with the policy as it is: of all environments, of some of them while others train, and the test stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mimickit.envs.base import EnvMode, VecEnv
from mimickit.learning.agent import Agent
from mimickit.learning.config import check_eval_envs
from mimickit.learning.metrics import EpisodeRecord, Metric, reduce_metrics, summarize
from mimickit.util.checkpoint import fill_tensors
from mimickit.util.distributed import Distributed
from mimickit.util.logging import Number

CHECK_STEPS = 8  # the device is asked only so often whether all episodes have ended
HEALTH = ("nonfinite", "contact_overflow", "constraint_overflow")  # counters of results
OWN_NAMES = ("return", "length", "survival")  # of a record, beside the metrics of environment and agent


@dataclass(frozen=True)
class Evaluation:
    """Means over the first episodes of every environment of all processes."""

    mean_return: float
    episode_length: float  # control steps
    episodes: int = 0
    metrics: dict[str, float] = field(default_factory=dict)  # of environment and agent
    complete: bool = True  # False: stopped before all episodes had ended
    samples: int = 0  # that the policy had learned from

    def measured(self) -> dict[str, float]:
        """The metrics without those (NaN) that had nothing to measure, such as a share of no ended episode.

        This hides no broken number: a NaN in an observation or reward is counted as ``nonfinite``.
        """
        return _measured(self.metrics)

    def row(self) -> dict[str, Number]:
        """Its part of a log row."""
        return {"Test_Return": self.mean_return, "Test_Episode_Length": self.episode_length,
                "Test_Episodes": self.episodes}


NOT_EVALUATED = Evaluation(math.nan, math.nan)


def episodes_per_env(episodes: int, num_envs: int, world_size: int) -> int:
    """How many episodes each environment must finish so that there are at least ``episodes`` over all processes."""
    per_process = (episodes + world_size - 1) // world_size
    return (per_process + num_envs - 1) // num_envs


@torch.no_grad()
def run_episodes(
    env: VecEnv, agent: Agent, dist: Distributed, per_env: int, *, should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[], None] = lambda: None, max_episode_steps: int | None = None, mode: EnvMode = EnvMode.TEST,
) -> tuple[EpisodeRecord, bool]:
    """Run episodes of a test without randomness in the actions, until every environment has finished ``per_env``.

    The environment is left in the test's ``mode``.

    Args:
        should_stop: asked every few steps; true on any process ends it on all.
        on_step: called after every step (heartbeat, picture).
        max_episode_steps: count an episode as finished after so many control steps.

    Returns:
        This process's record, and whether it is complete.
    """
    env.set_mode(mode)
    env.reset()
    agent.start_test()
    metrics = {**env.metric_sums(), **agent.metric_sums()}
    record = EpisodeRecord(env.num_envs, env.device, per_env, metrics, max_episode_steps)
    running, stopped, steps = True, False, 0
    while running and not stopped:
        agent.act_test()
        env.step(agent.action)
        agent.observe_test()
        record.update(env.reward, env.done)
        on_step()
        steps += 1
        if steps % CHECK_STEPS == 0:
            running, stopped = _any(dist, not bool(record.complete()), should_stop())
    return record, not running


def evaluate(env: VecEnv, agent: Agent, dist: Distributed, episodes: int, **options: Any) -> Evaluation | None:
    """Means over at least ``episodes`` episodes of all processes; None if there are to be none.

    Every environment contributes the same number of episodes, its first ones; ``options`` as in :func:`run_episodes`.
    """
    per_env = episodes_per_env(episodes, env.num_envs, dist.world_size)
    if per_env == 0:
        return None
    record, complete = run_episodes(env, agent, dist, per_env, **options)
    values = mean_values(record, env, dist)
    episodes = round(values.pop("episodes"))
    metrics = {name: value for name, value in values.items() if name not in OWN_NAMES}
    return Evaluation(values["return"], values["length"], episodes, metrics, complete)


@torch.no_grad()
def mean_values(record: EpisodeRecord, env: VecEnv, dist: Distributed) -> dict[str, float]:
    """All metrics of a test, over all processes: means of recorded names over the recorded episodes, other metrics of
    the environment over all steps made. NaN where nothing was measured. Waits for the device."""
    sums = record.sums()
    _, count = sums["return"]
    others = {name: Metric(value, "mean", count) for name, value in env.metrics().items() if name not in sums}
    if dist.world_size > 1:
        others |= {name: Metric(value, "max") for name, value in env.pooled_metrics(dist).items()}  # equal on all
    found = reduce_metrics({
        **{f"sum.{name}": Metric(total, "sum") for name, (total, _) in sums.items()},
        **{f"weight.{name}": Metric(weight, "sum") for name, (_, weight) in sums.items()},
        **others,
    }, dist)
    means = {name: _quotient(found[f"sum.{name}"], found[f"weight.{name}"], 0.0 if name in OWN_NAMES else math.nan)
             for name in sums}
    return {**means, **{name: found[name] for name in others}, "episodes": found["weight.return"]}


def read_health(env: VecEnv, dist: Distributed) -> dict[str, int]:
    """The environment's health counters summed over processes; they restart at zero. Waits for the device."""
    counts = reduce_metrics({name: Metric(value.clone(), "sum") for name, value in env.health().items()}, dist)
    env.clear_health()
    return {name: round(value) for name, value in counts.items()}


# --- beside training --------------------------------------------------------------------------------------------------


class ConcurrentEvaluation:
    """The first episode of each of the first ``count`` environments under the policy as it was at :meth:`begin`, while
    the others train.

    Args:
        max_length: count an episode as finished after so many control steps.

    Attributes:
        samples, iteration: that the frozen policy had learned from, and at the end of which it was frozen.

    Raises:
        UserError: no environment would be left to train in.
    """

    def __init__(self, env: VecEnv, agent: Agent, count: int, max_length: int | None = None) -> None:
        check_eval_envs(count, env.num_envs)
        self._env, self._agent, self._count = env, agent, count
        self.record = EpisodeRecord(count, env.device, per_env=1, max_length=max_length)
        self.samples, self.iteration = 0, 0

    def begin(self, samples: int, iteration: int) -> None:
        """Freeze the policy and start anew; its environments must just have been reset."""
        self.samples, self.iteration = samples, iteration
        self._agent.freeze(self._count)
        self.record.clear()

    def update(self) -> None:
        """Account for one step. Can be captured; the state is that of ``record``."""
        self.record.update(self._env.reward[:self._count], self._env.done[:self._count])

    def result(self, dist: Distributed) -> Evaluation | None:
        """Means over all processes; None while an episode still goes on. Waits for the device."""
        unfinished = (~self.record.complete()).to(torch.int32)
        if dist.max_(unfinished).item():
            return None
        sums = self.record.sums()
        found = reduce_metrics({name: Metric(sums[name][0] / sums[name][1], "mean", sums[name][1])
                                for name in ("return", "length")}, dist)
        return Evaluation(found["return"], found["length"], self._count * dist.world_size, samples=self.samples)

    def shared_state(self) -> dict[str, Any]:
        """What is equal on all processes: the frozen policy, live, and what it belongs to. ``record`` is not."""
        return {"samples": self.samples, "iteration": self.iteration, "frozen": self._agent.frozen_tensors()}

    def load_shared(self, state: Mapping[str, Any], where: str) -> None:
        """Continue from :meth:`shared_state`, read from ``where``. Raises UserError when it does not fit."""
        self.begin(state["samples"], state["iteration"])
        fill_tensors(self._agent.frozen_tensors(), state["frozen"], where)


# --- the test stage ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TestResult:
    """Learning's part of ``result.json`` of a test; docs/run_folder.md explains each number."""

    __test__ = False  # not a test class

    test_return: float
    test_episode_length: float
    test_episodes: int
    measures: dict[str, float]
    statistics: dict[str, dict[str, Any]]
    nonfinite: int
    contact_overflow: int
    constraint_overflow: int
    complete: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_test(
    env: VecEnv, agent: Agent, dist: Distributed, episodes: int, statistics_episodes: int | None = None,
    uninterrupted_episodes: int = 0, **options: Any,
) -> TestResult:
    """Episodes with their statistics and health counters; ``options`` as in :func:`run_episodes`.

    Args:
        episodes: at least so many, over all processes.
        statistics_episodes: at least so many for statistics and metrics; return and length are then those of the
            first ``episodes`` of them. None: the same episodes for all.
        uninterrupted_episodes: at least so many more that no failure ends, for what is measured in them alone, after
            the health counters were read.
    """
    env.clear_health()
    names, every, means, complete = _episodes(env, agent, dist, max(episodes, statistics_episodes or 0), **options)
    health = read_health(env, dist)
    first = every
    if statistics_episodes is not None:
        first = [rows[:-(-episodes // dist.world_size)] for rows in every]
    headline = _summaries(names, torch.cat(first))
    measures = {name: value for name, value in means.items() if name not in ("return", "length")}
    statistics = _summaries(names, torch.cat(every))
    if complete and uninterrupted_episodes and env.measures_uninterrupted:
        names, every, means, complete = _episodes(
            env, agent, dist, uninterrupted_episodes, mode=EnvMode.UNINTERRUPTED, **options)
        known = {*OWN_NAMES, *agent.metric_sums()}
        measures |= {name: value for name, value in means.items() if name not in known}
        statistics |= {name: summary for name, summary in _summaries(names, torch.cat(every)).items()
                       if name not in known}
    return TestResult(
        test_return=headline["return"]["mean"] if headline else 0.0,
        test_episode_length=headline["length"]["mean"] if headline else 0.0,
        test_episodes=headline["return"]["episodes"] if headline else 0,
        measures=_measured(measures),
        statistics=statistics,
        complete=complete,
        **{name: health[name] for name in HEALTH},
    )


def _episodes(
    env: VecEnv, agent: Agent, dist: Distributed, episodes: int, **options: Any
) -> tuple[Sequence[str], list[torch.Tensor], dict[str, float], bool]:
    """Run at least ``episodes`` over all processes: names, rows of each process (:meth:`EpisodeRecord.episodes`),
    means, and whether all have ended."""
    per_env = episodes_per_env(episodes, env.num_envs, dist.world_size)
    record, complete = run_episodes(env, agent, dist, per_env, **options)
    means = mean_values(record, env, dist)
    del means["episodes"]
    return record.names, dist.all_gather_object(record.episodes()), means, complete


def _summaries(names: Sequence[str], rows: torch.Tensor) -> dict[str, dict[str, Any]]:
    """:func:`summarize` of each name; rows [K, number of names, 2]."""
    found = {name: summarize(rows[:, i, 0], rows[:, i, 1], share=name == "survival" or name.endswith("_rate"))
             for i, name in enumerate(names)}
    return {name: summary for name, summary in found.items() if summary is not None}


def _measured(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _quotient(total: float, weight: float, otherwise: float) -> float:
    return total / weight if weight > 0 else otherwise


def _any(dist: Distributed, first: bool, second: bool) -> tuple[bool, bool]:
    if dist.world_size == 1:
        return first, second
    flags = torch.tensor([first, second], dtype=torch.int32, device=dist.device)
    a, b = dist.max_(flags).tolist()
    return bool(a), bool(b)
