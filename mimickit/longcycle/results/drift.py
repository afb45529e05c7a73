"""Drift or noise? A self-starting cumulative sum (CUSUM) over the nights of one measure. Pure functions.

Every night is compared with the nights before it: their mean and standard deviation are the reference, and the
distance, which follows Student's t, becomes a normal score u (Hawkins 1987, Journal of Quality Technology 19:
``Self-starting cusum charts``). The sum of what exceeds ``ALLOWANCE`` standard deviations in one direction is kept:
S = max(0, S - u - ALLOWANCE) for values that fall. S above ``LIMIT`` is drift. Scores are cut at ``MOST``, so that one
bad night alone never is. Once S is above the limit, the nights since it left 0 are taken out of the reference, or the
new level would become the old one; the drift ends when values come back, or somebody accepts the new level.

Rates, by simulation (tests/longcycle/test_drift.py holds them): of 1,000 measures that only scatter, fewer than one is
called drifting within 60 nights (0.75 of 8,000 x 60). A lasting change of 4 standard deviations is found within three
nights in 95 % of cases after 40 nights of reference, in 87 % over all lengths from 15 to 55; of 3, in 57 and 44 %, and
in nearly all within ten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WARM_UP = 8  # nights of which a reference is made
ALLOWANCE = 1.0  # standard deviations
LIMIT = 4.5
MOST = 4.0  # standard deviations that a night counts at most
SMALLEST = 0.005  # share of the mean below which no scatter is believed: a success rate of 1.00 in all nights has none

Verdict = Literal["few", "steady", "drift", "better"]


@dataclass(frozen=True)
class Night:
    """One night of a measure.

    Attributes:
        mean, sd: of the reference before this night; None while it is too short.
        score: distance from it in standard deviations, better counted upwards; 0 without a reference.
        worse, better: the two sums.
    """

    value: float
    mean: float | None
    sd: float | None
    score: float
    worse: float
    better: float

    @property
    def verdict(self) -> Verdict:
        if self.mean is None:
            return "few"
        return "drift" if self.worse > LIMIT else "better" if self.better > LIMIT else "steady"


def watch(values: Sequence[float], upwards: bool = True, errors: Sequence[float] | None = None,
          fresh: int = 0) -> list[Night]:
    """Every night of a measure, in order.

    Args:
        upwards: more is better.
        errors: half the 95 % interval of each night's own test, where known: the scatter is at least that.
        fresh: the reference begins with this night (a level that somebody has accepted); earlier ones are not judged.
    """
    nights: list[Night] = []
    reference: list[float] = []
    kept = 0  # nights of the reference that no sum speaks against
    worse = better = 0.0
    for index, value in enumerate(values):
        if index < fresh or len(reference) < WARM_UP:
            if index >= fresh:
                reference.append(value)
                kept = len(reference)
            nights.append(Night(value, None, None, 0.0, 0.0, 0.0))
            continue
        mean = sum(reference) / len(reference)
        sd = math.sqrt(sum((x - mean) ** 2 for x in reference) / (len(reference) - 1))
        error = (errors[index] if errors else 0.0) / 1.96
        sd = max(sd, error, SMALLEST * abs(mean), 1e-12)
        score = normal_score((value - mean) / (sd * math.sqrt(1 + 1 / len(reference))), len(reference) - 1)
        score = max(-MOST, min(MOST, score if upwards else -score))
        worse = min(2 * LIMIT, max(0.0, worse - score - ALLOWANCE))
        better = min(2 * LIMIT, max(0.0, better + score - ALLOWANCE))
        nights.append(Night(value, mean, sd, score, worse, better))
        reference.append(value)
        if worse == better == 0.0:
            kept = len(reference)
        if max(worse, better) > LIMIT:
            del reference[kept:]
    return nights


def normal_score(t: float, freedom: int) -> float:
    """A value of Student's t with ``freedom`` degrees as the normal score of equal probability (Wallace 1959)."""
    size = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return math.copysign(size, t)


def since(nights: Sequence[Night]) -> int | None:
    """The night on which the last one's drift or improvement began: its sum left 0 there; None without one."""
    if not nights or nights[-1].verdict in ("few", "steady"):
        return None
    name = "worse" if nights[-1].verdict == "drift" else "better"
    index = len(nights) - 1
    while index > 0 and getattr(nights[index - 1], name) > 0.0:
        index -= 1
    return index
