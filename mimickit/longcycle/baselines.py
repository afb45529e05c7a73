"""How far gates lie beyond what policies without skill reach: ``tests/acceptance/baselines.yaml``, which
``tools/measure_baselines.py`` writes and ``tests/contract/test_gates.py`` compares with ``targets.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mimickit.longcycle.judge import STATISTICS
from mimickit.longcycle.settings import FILES, Gate
from mimickit.util.failures import UserError

BASELINES_FILE = FILES / "baselines.yaml"


@dataclass(frozen=True)
class Margin:
    """How far a gate's bound lies beyond what one policy without skill reaches.

    ``beyond`` is the distance from the near end of the policy's interval to the bound, in the direction that the gate
    asks for; positive when the policy fails the gate. ``relative`` is the same as a share of the policy's mean.
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
    """One margin for each policy without skill, the smallest first.

    A policy whose every episode ended before there was anything to measure has none: a gate without its measure fails.

    Raises:
        UserError: no policy was measured in what the gate asks for.
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
