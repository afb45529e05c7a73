"""Where gates stand between no skill and what was trained, and where they could stand.

    python -m mimickit.longcycle.bounds output/train/seed1 output/train/seed2 output/train/seed3

One line per case and measure: the best policy without skill (``tests/acceptance/baselines.yaml``, written by
``tools/measure_baselines.py``), what each root's policy reached in its test, the bound in
``tests/acceptance/targets.yaml`` and its place between the two (0: no skill, 1: the worst of the roots; a gate above 1
would have failed one), and the bound at ``--share``. Bounds are chosen by people: this only shows what is known.
``tests/contract/test_gates.py`` holds that every gate lies beyond every policy without skill (:func:`margins`).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimickit.config import load_yaml
from mimickit.longcycle.judge import STATISTICS, sample
from mimickit.longcycle.settings import FILES, Gate, load_targets
from mimickit.util.failures import UserError, explains_mistakes

BASELINES_FILE = FILES / "baselines.yaml"
MORE_IS_BETTER = ("test_return", "test_episode_length", "survival", "success_rate")
LESS_IS_BETTER = ("body_pos_err", "motion_err", "motion_dist", "goal_err", "vel_err")


@dataclass(frozen=True)
class Margin:
    """How far a gate's bound lies beyond what one policy without skill reaches.

    ``beyond`` is the distance from the near end of the policy's interval to the bound, in the gate's direction;
    positive when the policy fails the gate. ``relative`` is the same as a share of the policy's mean.
    """

    policy: str
    mean: float
    ci95: float
    beyond: float

    @property
    def relative(self) -> float:
        return self.beyond / abs(self.mean) if self.mean else math.copysign(math.inf, self.beyond)

    def __str__(self) -> str:
        return f"{self.policy} {self.mean:.4g} ± {self.ci95:.2g}, bound {self.relative:+.0%} beyond"


def margins(gate: Gate, policies: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Margin]:
    """One margin per policy without skill, the smallest first.

    A policy whose episodes all ended too early to be measured has no margin: it fails the gate for want of a measure.

    Raises:
        UserError: the gate's measure was taken of no policy.
    """
    name, found = STATISTICS.get(gate.measure, gate.measure), []
    known = {measure for measures in policies.values() for measure in measures}
    if name not in known:
        raise UserError(f"{BASELINES_FILE.name} has no measure '{name}', only {', '.join(sorted(known))}")
    for policy, measures in policies.items():
        if name not in measures:
            continue
        mean, ci95 = measures[name]
        found.append(Margin(policy, mean, ci95, (gate.bound - mean if gate.upwards else mean - gate.bound) - ci95))
    return sorted(found, key=lambda margin: margin.relative)


@dataclass(frozen=True)
class Line:
    """One measure of one case. ``no_skill`` is the best mean of any policy without skill, None if none was measured."""

    case: str
    measure: str
    up: bool  # more is better
    no_skill: float | None
    trained: Sequence[float]
    bound: float | None

    @property
    def worst(self) -> float:
        return min(self.trained) if self.up else max(self.trained)

    @property
    def place(self) -> float | None:
        """Place of the bound: 0 at no skill, 1 at the worst trained policy."""
        if self.bound is None or self.no_skill is None or self.worst == self.no_skill:
            return None
        return (self.bound - self.no_skill) / (self.worst - self.no_skill)

    def at(self, share: float) -> float | None:
        """The bound at place ``share``; None where training did not improve on no skill."""
        if self.no_skill is None or (self.worst <= self.no_skill if self.up else self.worst >= self.no_skill):
            return None
        return self.no_skill + share * (self.worst - self.no_skill)


def lines(tests: Sequence[Mapping[str, Mapping[str, Any]]], targets: Mapping[str, Any],
          baselines: Mapping[str, Any]) -> list[Line]:
    """The lines of all cases that have a baseline, and a test in at least one root.

    Args:
        tests: per root, the test stage's result by case.
    """
    found = []
    for case in sorted({name for root in tests for name, test in root.items() if test} & set(baselines)):
        gates = {gate.measure: gate for gate in targets[case].gates} if case in targets else {}
        results = [root[case] for root in tests if root.get(case)]
        for measure in dict.fromkeys([*gates, *MORE_IS_BETTER, *LESS_IS_BETTER]):
            values = [value.mean for result in results if (value := sample(result, measure)) is not None]
            gate = gates.get(measure)
            up = gate.upwards if gate else measure in MORE_IS_BETTER
            best = no_skill(measure, up, baselines[case]["policies"])
            if values and (gate or any(value != best for value in values)):
                found.append(Line(case, measure, up, best, values, gate.bound if gate else None))
    return found


def no_skill(measure: str, up: bool, policies: Mapping[str, Any]) -> float | None:
    """The best mean that any policy without skill reaches; None where the baselines lack the measure."""
    name = STATISTICS.get(measure, measure)
    means = [measures[name][0] for measures in policies.values() if name in measures]
    return (max if up else min)(means, default=None)


def table(found: Sequence[Line], share: float) -> list[str]:
    """A header and one line of text per measure."""
    head = f"{'case':36}{'measure':22}{'no skill':>10}  {'trained':28}{'gate':>9}{'place':>7}{f'at {share:g}':>10}"
    return [head, *(
        f"{line.case:36}{line.measure:22}{text(line.no_skill):>10}  {' '.join(map(text, line.trained)):28}"
        f"{('>=' if line.up else '<=') + text(line.bound) if line.bound is not None else '':>9}"
        f"{'' if line.place is None else f'{line.place:.2f}':>7}{text(line.at(share)):>10}"
        for line in found)]


def text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


@explains_mistakes
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path, metavar="ROOT", help="folders of sessions, a seed each")
    parser.add_argument("--share", type=float, default=0.7, help="place of the proposed bound (0.7)")
    options = parser.parse_args(argv)
    from mimickit.longcycle.results.data import Root  # which reads the baselines from here

    tests = [{case: root.entry(case).test for case in root.cases} for root in map(Root, options.roots)]
    print("\n".join(table(lines(tests, load_targets(), load_yaml(BASELINES_FILE)), options.share)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
