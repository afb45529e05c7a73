"""Episodes with the policy as it is: during training and as a run of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mimickit.envs.base import EnvMode, VecEnv
from mimickit.learning.agent import Agent
from mimickit.learning.stats import Stat, reduce_stats
from mimickit.learning.tracker import EpisodeTracker
from mimickit.util.distributed import Distributed

CHECK_STEPS = 8  # the device is asked only so often whether all episodes have ended


@dataclass(frozen=True)
class Evaluation:
    """Means over the first episodes of every environment of all processes."""

    mean_return: float = 0.0
    episode_length: float = 0.0  # control steps
    episodes: int = 0
    measures: dict[str, float] = field(default_factory=dict)  # diagnostics of environment and agent
    complete: bool = True  # False: stopped before all episodes had ended

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
def evaluate(
    env: VecEnv,
    agent: Agent,
    dist: Distributed,
    episodes: int,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[], None] = lambda: None,
    max_episode_steps: int | None = None,
) -> Evaluation:
    """Run at least ``episodes`` episodes in TEST mode without randomness in the actions.

    Every environment contributes the same number of episodes, its first ones. The environment is left in TEST mode.

    Args:
        should_stop: asked every few steps; true on any process ends the evaluation on all.
        on_step: called after every step (heartbeat, picture).
        max_episode_steps: count an episode as finished after so many control steps.
    """
    wanted = episodes_per_env(episodes, env.num_envs, dist.world_size)
    if wanted == 0:
        return Evaluation()
    env.set_mode(EnvMode.TEST)
    env.reset()
    agent.start_test()
    tracker = EpisodeTracker(env.num_envs, env.device, limit=wanted, max_length=max_episode_steps)
    running, stopped, steps = True, False, 0
    while running and not stopped:
        agent.act_test()
        env.step(agent.action)
        tracker.update(env.reward, env.done)
        agent.observe_test()
        on_step()
        steps += 1
        if steps % CHECK_STEPS == 0:
            unfinished = not bool(tracker.all_reached(wanted))
            running, stopped = _any(dist, unfinished, should_stop())

    mean_return, length, count = tracker.stats()
    stats = {"return": mean_return, "length": length, "episodes": count}
    found = {**env.diagnostics(), **agent.diagnostics()}
    measures = {name: Stat(value, "mean", count.value) for name, value in found.items()}
    values = reduce_stats({**stats, **measures}, dist)
    return Evaluation(
        mean_return=values["return"],
        episode_length=values["length"],
        episodes=round(values["episodes"]),
        measures={name: values[name] for name in measures},
        complete=not running,
    )


def read_health(env: VecEnv, dist: Distributed) -> dict[str, int]:
    """The environment's counters summed over processes; they restart at zero. Waits for the device."""
    counts = reduce_stats({name: Stat(value.clone(), "sum") for name, value in env.health().items()}, dist)
    env.clear_health()
    return {name: round(value) for name, value in counts.items()}


@dataclass(frozen=True)
class TestResult:
    """Learning's part of ``result.json`` of a test."""

    __test__ = False  # not a test class

    test_return: float
    test_episode_length: float
    test_episodes: int
    measures: dict[str, float]
    nonfinite: int
    contact_overflow: int
    constraint_overflow: int
    complete: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_test(
    env: VecEnv,
    agent: Agent,
    dist: Distributed,
    episodes: int,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[], None] = lambda: None,
    max_episode_steps: int | None = None,
) -> TestResult:
    """One evaluation with its health counters; arguments as in :func:`evaluate`."""
    env.clear_health()
    result = evaluate(env, agent, dist, episodes, should_stop=should_stop, on_step=on_step,
                      max_episode_steps=max_episode_steps)
    health = read_health(env, dist)
    return TestResult(
        test_return=result.mean_return,
        test_episode_length=result.episode_length,
        test_episodes=result.episodes,
        measures=result.measured(),
        nonfinite=health["nonfinite"],
        contact_overflow=health["contact_overflow"],
        constraint_overflow=health["constraint_overflow"],
        complete=result.complete,
    )


def _any(dist: Distributed, first: bool, second: bool) -> tuple[bool, bool]:
    if dist.world_size == 1:
        return first, second
    flags = torch.tensor([first, second], dtype=torch.int32, device=dist.device)
    a, b = dist.max_(flags).tolist()
    return bool(a), bool(b)
