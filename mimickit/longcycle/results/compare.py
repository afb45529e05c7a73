"""Two roots, case by case: the difference of every measure with its interval, and what can be said about it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mimickit.longcycle.judge import STATISTICS, sample
from mimickit.longcycle.report import number
from mimickit.longcycle.results.data import Entry, Root, Yardsticks
from mimickit.longcycle.results.history import FULL, History

MORE, LESS = ("test_return", "test_episode_length", "survival", "success_rate", "samples_per_s"), \
    ("body_pos_err", "motion_err", "motion_dist", "goal_err", "vel_err")
FEWEST = 3  # nights from which the scatter between trainings is known


@dataclass(frozen=True)
class Difference:
    """B - A of one measure of one case.

    Attributes:
        half: half the 95 % interval of the difference; None where an interval is missing.
        scatter: standard deviation between trainings from the history; None where it is not known, and the interval
            is that of the tests alone.
    """

    case: str
    measure: str
    upwards: bool
    a: float
    b: float
    half: float | None
    scatter: float | None

    @property
    def verdict(self) -> Literal["better", "worse", "same", "unknown"]:
        """Of B. ``same``: the interval includes no difference."""
        if self.half is None:
            return "unknown"
        if abs(self.b - self.a) <= self.half:
            return "same"
        return "better" if (self.b > self.a) == self.upwards else "worse"

    def __str__(self) -> str:
        half = "" if self.half is None else f" ± {self.half:.2g}"
        share = f" ({(self.b - self.a) / abs(self.a):+.1%})" if self.a else ""
        return (f"{self.verdict:8}{self.measure:22}{number(self.a):>10} → {number(self.b):<10} "
                f"{self.b - self.a:+.3g}{half}{share}{'' if self.scatter is not None else ', tests alone'}")


def compare(a: Root, b: Root, history: History, yardsticks: Yardsticks | None = None) -> dict[str, list[Difference]]:
    """All differences by case, of cases that both roots have tested."""
    yardsticks = yardsticks or Yardsticks()
    return {case: found for case in sorted({*a.cases} & {*b.cases})
            if (found := differences(a.entry(case), b.entry(case), history, yardsticks))}


def differences(a: Entry, b: Entry, history: History, yardsticks: Yardsticks) -> list[Difference]:
    """Measures that both tests have: those of the gates first."""
    gates = {gate.measure: gate.upwards for gate in yardsticks.gates(a.case)}
    found = []
    for measure, upwards in {**gates, **dict.fromkeys(MORE, True), **dict.fromkeys(LESS, False), **gates}.items():
        mine, other = sample(a.test, measure), sample(b.test, measure)
        if mine is None or other is None or (measure not in gates and mine.mean == other.mean == 0.0):
            continue
        scatter = between_trainings(a.case, measure, history)
        half = None
        if mine.ci95 is not None and other.ci95 is not None:
            half = math.hypot(mine.ci95, other.ci95, *[1.96 * math.sqrt(2) * (scatter or 0.0)])
        found.append(Difference(a.case, measure, upwards, mine.mean, other.mean, half, scatter))
    return found


def between_trainings(case: str, measure: str, history: History) -> float | None:
    """Standard deviation of a measure over the nights of the history; None of fewer than ``FEWEST``."""
    name = STATISTICS.get(measure, measure)
    values = [found.mean for night in history.only(FULL).nights if case in night.cases
              and (found := night.cases[case].measures.get(name)) is not None]
    return statistics.stdev(values) if len(values) >= FEWEST else None


def table(a: Root, b: Root, found: dict[str, list[Difference]]) -> list[str]:
    """The comparison as lines of text; the last counts what is better and worse."""
    lines = [f"A: {a.name}", f"B: {b.name}", ""]
    for case in sorted({*a.cases, *b.cases}):
        ends = [root.entry(case).status if case in root.cases else "not there" for root in (a, b)]
        lines.append(f"{case}: {' → '.join(ends) if ends[0] != ends[1] else ends[0]}")
        lines += [f"  {line}" for line in found.get(case, [])]
    every = [line.verdict for lines in found.values() for line in lines]
    counts = [f"{every.count(word)} {text}" for word, text in (
        ("better", "better"), ("worse", "worse"), ("same", "the same"), ("unknown", "without an interval"))
        if word != "unknown" or word in every]
    lines += ["", f"{len(found)} cases, {len(every)} measures: {', '.join(counts)}"]
    if any(line.scatter is None for lines in found.values() for line in lines):
        lines.append(f"tests alone: the history has fewer than {FEWEST} trainings of that case, so the interval leaves "
                     "out how trainings differ by chance")
    return lines


def worse(found: dict[str, list[Difference]]) -> Sequence[str]:
    """Cases of which a measure is worse."""
    return [case for case, lines in found.items() if any(line.verdict == "worse" for line in lines)]
