"""Episodes with the policy as it is: during training and as a run of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mimickit.envs.base import EnvMode, VecEnv
from mimickit.learning.agent import Agent
from mimickit.learning.stats import Stat, reduce_stats, summarize
from mimickit.learning.tracker import EpisodeRecord
from mimickit.util.distributed import Distributed

MAX_EPISODE_STEPS = 10_000  # control steps; an episode that goes on longer counts as ended, if not told otherwise
CHECK_STEPS = 8  # the device is asked only so often whether all episodes have ended
OWN_NAMES = ("return", "length", "survival")  # of a record, beside the environment's measures


@dataclass(frozen=True)
class Evaluation:
    """Means over the first episodes of every environment of all processes."""

    mean_return: float = 0.0
    episode_length: float = 0.0  # control steps
    episodes: int = 0
    measures: dict[str, float] = field(default_factory=dict)  # diagnostics of environment and agent
    complete: bool = True  # False: stopped before all episodes had ended
    samples: int = 0  # that the policy had learned from

    def measured(self) -> dict[str, float]:
        """The measures without those (NaN) that had nothing to measure, such as a share of no ended episode.

        This hides no broken number: a NaN in an observation or reward is counted as ``nonfinite``.
        """
        return {name: value for name, value in self.measures.items() if not math.isnan(value)}


def episodes_per_env(episodes: int, num_envs: int, world_size: int) -> int:
    """How many episodes each environment must finish so that there are at least ``episodes`` over all processes."""
    per_process = (episodes + world_size - 1) // world_size
    return (per_process + num_envs - 1) // num_envs


@torch.no_grad()
def run_episodes(
    env: VecEnv,
    agent: Agent,
    dist: Distributed,
    per_env: int,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[], None] = lambda: None,
    max_episode_steps: int | None = None,
) -> tuple[EpisodeRecord, bool]:
    """Run episodes in TEST mode without randomness in the actions, until every environment has finished ``per_env``.

    The environment is left in TEST mode.

    Args:
        should_stop: asked every few steps; true on any process ends it on all.
        on_step: called after every step (heartbeat, picture).
        max_episode_steps: count an episode as finished after so many control steps.

    Returns:
        This process's record, and whether it is complete.
    """
    env.set_mode(EnvMode.TEST)
    env.reset()
    agent.start_test()
    measures = {**env.measure_sums(), **agent.measure_sums()}
    record = EpisodeRecord(env.num_envs, env.device, per_env, measures, max_episode_steps)
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


def evaluate(env: VecEnv, agent: Agent, dist: Distributed, episodes: int, **options: Any) -> Evaluation:
    """Means over at least ``episodes`` episodes of all processes.

    Every environment contributes the same number of episodes, its first ones; ``options`` as in :func:`run_episodes`.
    """
    per_env = episodes_per_env(episodes, env.num_envs, dist.world_size)
    if per_env == 0:
        return Evaluation()
    record, complete = run_episodes(env, agent, dist, per_env, **options)
    values = mean_values(record, env, dist)
    return Evaluation(
        mean_return=values["return"],
        episode_length=values["length"],
        episodes=round(values.pop("episodes")),
        measures={name: value for name, value in values.items() if name not in OWN_NAMES},
        complete=complete,
    )


@torch.no_grad()
def mean_values(record: EpisodeRecord, env: VecEnv, dist: Distributed) -> dict[str, float]:
    """Everything measured, over all processes: means of recorded names over the recorded episodes, other diagnostics of
    the environment over all steps made. NaN where nothing was measured. Waits for the device."""
    sums = record.sums()
    _, count = sums["return"]
    others = {name: Stat(value, "mean", count) for name, value in env.diagnostics().items() if name not in sums}
    if dist.world_size > 1:
        others |= {name: Stat(value, "max") for name, value in env.pooled_diagnostics(dist).items()}  # equal everywhere
    found = reduce_stats({
        **{f"sum.{name}": Stat(total, "sum") for name, (total, _) in sums.items()},
        **{f"weight.{name}": Stat(weight, "sum") for name, (_, weight) in sums.items()},
        **others,
    }, dist)
    means = {name: _quotient(found[f"sum.{name}"], found[f"weight.{name}"], 0.0 if name in OWN_NAMES else math.nan)
             for name in sums}
    return {**means, **{name: found[name] for name in others}, "episodes": found["weight.return"]}


def read_health(env: VecEnv, dist: Distributed) -> dict[str, int]:
    """The environment's counters summed over processes; they restart at zero. Waits for the device."""
    counts = reduce_stats({name: Stat(value.clone(), "sum") for name, value in env.health().items()}, dist)
    env.clear_health()
    return {name: round(value) for name, value in counts.items()}


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
    env: VecEnv, agent: Agent, dist: Distributed, episodes: int, statistics_episodes: int | None = None, **options: Any
) -> TestResult:
    """Episodes with their statistics and health counters; ``options`` as in :func:`run_episodes`.

    Args:
        episodes: at least so many, over all processes.
        statistics_episodes: at least so many for statistics and measures; return and length are then those of the
            first ``episodes`` of them. None: the same episodes for all.
    """
    env.clear_health()
    wanted = max(episodes, statistics_episodes or 0)
    per_env = episodes_per_env(wanted, env.num_envs, dist.world_size)
    record, complete = run_episodes(env, agent, dist, per_env, **options)
    means = mean_values(record, env, dist)
    health = read_health(env, dist)

    every = dist.all_gather_object(record.episodes())
    first = every
    if statistics_episodes is not None:
        first = [rows[:-(-episodes // dist.world_size)] for rows in every]
    headline = _summaries(record.names, torch.cat(first))
    statistics = _summaries(record.names, torch.cat(every))
    measures = {name: value for name, value in means.items()
                if name not in ("return", "length", "episodes") and not math.isnan(value)}
    return TestResult(
        test_return=headline["return"]["mean"] if headline else 0.0,
        test_episode_length=headline["length"]["mean"] if headline else 0.0,
        test_episodes=headline["return"]["episodes"] if headline else 0,
        measures=measures,
        statistics=statistics,
        nonfinite=health["nonfinite"],
        contact_overflow=health["contact_overflow"],
        constraint_overflow=health["constraint_overflow"],
        complete=complete,
    )


def _summaries(names: Sequence[str], rows: torch.Tensor) -> dict[str, dict[str, Any]]:
    """:func:`summarize` of each name; rows [K, number of names, 2]."""
    found = {name: summarize(rows[:, i, 0], rows[:, i, 1], share=name == "survival" or name.endswith("_rate"))
             for i, name in enumerate(names)}
    return {name: summary for name, summary in found.items() if summary is not None}


def _quotient(total: float, weight: float, otherwise: float) -> float:
    return total / weight if weight > 0 else otherwise


def _any(dist: Distributed, first: bool, second: bool) -> tuple[bool, bool]:
    if dist.world_size == 1:
        return first, second
    flags = torch.tensor([first, second], dtype=torch.int32, device=dist.device)
    a, b = dist.max_(flags).tolist()
    return bool(a), bool(b)
