"""``--budget-gpu-hours``: which cases a session runs, in which order of need, and which wait for another night."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mimickit.cases import Case
from mimickit.longcycle.estimate import TRAINING
from mimickit.longcycle.results.history import HISTORY, History, read
from mimickit.longcycle.settings import Settings
from mimickit.util.failures import UserError

RECENT = 5  # nights of which a case's hours are the median
URGENT = ("failed", "drift")


@dataclass(frozen=True)
class Choice:
    """Cases that fit, in order of need, those that do not, and the GPU hours that each is expected to take."""

    chosen: tuple[Case, ...]
    deferred: tuple[Case, ...]
    hours: dict[str, float]

    def note(self, budget: float) -> str:
        """What the session says about it."""
        total = sum(self.hours[case.name] for case in self.chosen)
        words = f"budget {budget:g} GPU hours: {len(self.chosen)} cases, about {total:.2f}"
        if not self.deferred:
            return words
        never = [case.name for case in self.deferred if self.hours[case.name] > budget]
        names = ", ".join(f"{case.name} ({self.hours[case.name]:.2f})" for case in self.deferred)
        more = f"; more than the whole budget takes {', '.join(never)}" if never else ""
        return f"{words}; deferred: {names}{more}"


def within_budget(settings: Settings, cases: Sequence[Case], budget: float, done: Collection[str] = ()) -> Choice:
    """The cases to run with ``budget`` GPU hours.

    First come cases that failed or drifted on their last night, then those that have waited longest; what does not fit
    into the rest is deferred. So a deferred case comes earlier the next time.

    Args:
        done: cases whose result will be reused, which cost nothing.

    Raises:
        UserError: the budget is not above 0.
    """
    if not budget > 0:
        raise UserError(f"--budget-gpu-hours {budget:g}: must be above 0")
    history = read(settings.repo / HISTORY).only(settings.profile_name)
    hours = {case.name: 0.0 if case.name in done else expected_hours(settings, case, history) for case in cases}
    chosen, deferred, left = [], [], budget
    for case in sorted(cases, key=lambda case: need(case.name, history)):
        if hours[case.name] <= left:
            chosen.append(case)
            left -= hours[case.name]
        else:
            deferred.append(case)
    return Choice(tuple(chosen), tuple(deferred), hours)


def need(name: str, history: History) -> tuple[bool, float, str]:
    """What cases are ordered by: urgent ones first, then by the time of their last night."""
    nights = [night for night in history.nights if name in night.cases]
    if not nights:
        return True, float("-inf"), name
    return history.verdict(name) not in URGENT, nights[-1].time, name


def expected_hours(settings: Settings, case: Case, history: History) -> float:
    """GPU hours (of a processor where there is no GPU) that a case took on its last nights; of one that has none, what
    the profile's times and the case's cost say. The first case of a session may also pay for compiling."""
    known = [night.cases[case.name].gpu_hours for night in history.nights if case.name in night.cases]
    known = [hours for hours in known[-RECENT:] if hours > 0]
    if known:
        return statistics.median(known)
    seconds = sum(settings.profile.stage_seconds.get(stage, 0.0) * (settings.cost(case) if stage == TRAINING else 1.0)
                  for stage in case.stages)
    return seconds * (settings.per_case if case.trainable else 1) / 3600

