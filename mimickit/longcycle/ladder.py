"""Which attempt comes next: a pure function of the trials so far. A rung is an attempt: (agent variant, num_envs)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MEMORY = frozenset({"oom_gpu", "oom_host"})  # next rung down
TRANSIENT = frozenset({"nccl", "cuda_fault", "preempted", "no_start"})  # same rung again, once


@dataclass(frozen=True)
class Rung:
    variant: str
    num_envs: int  # per device


@dataclass(frozen=True)
class Trial:
    """A rung and how its training ended: ``ok`` or a failure class."""

    rung: Rung
    outcome: str


def halving(start: int, lowest: int = 32) -> tuple[int, ...]:
    """``start``, start/2, ... down to ``lowest``; never empty."""
    found = [start]
    while found[-1] // 2 >= lowest:
        found.append(found[-1] // 2)
    return tuple(found)


def rungs(sizes: Mapping[str, Sequence[int]]) -> list[Rung]:
    """All rungs, top down: every size of the first variant, then of the next."""
    return [Rung(variant, num_envs) for variant, ladder in sizes.items() for num_envs in ladder]


def next_rung(ladder: Sequence[Rung], history: Sequence[Trial]) -> Rung | None:
    """The rung to try next, or None when training has ended.

    Out of memory leads one rung down; a transient failure repeats the rung once; success and any other failure end it.
    """
    if not history:
        return ladder[0]
    last = history[-1]
    if last.outcome in MEMORY:
        below = ladder.index(last.rung) + 1
        return ladder[below] if below < len(ladder) else None
    if last.outcome in TRANSIENT and not retried(history):
        return last.rung
    return None


def retried(history: Sequence[Trial]) -> bool:
    """Whether the last trial's rung has had its second chance."""
    return sum(t.rung == history[-1].rung and t.outcome in TRANSIENT for t in history) > 1


def scaled_steps(steps_per_iter: int, first_envs: int, num_envs: int) -> int:
    """Steps per iteration that keep samples per iteration constant (rounded up) with fewer environments."""
    return max(steps_per_iter, math.ceil(steps_per_iter * first_envs / num_envs))
