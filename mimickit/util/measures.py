"""Measures of a test in words: units, and digits as many as their intervals allow."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

UNITS = {  # of a test's measures; those by speed have the unit of their name without it
    "m": ("root_pos_err", "body_pos_err", "pos_err", "time_warped_err", "motion_err", "coverage_err", "motion_dist",
          "goal_err"),
    "rad": ("root_rot_err", "body_rot_err"), "rad/s": ("dof_vel_err", "root_ang_vel_err", "action_rate"),
    "m/s": ("root_vel_err", "vel_err", "foot_slide"), "N m": ("torque",),
    "rad/s^3": ("jerk",), "degrees": ("facing_err",)}
UNIT = {name: unit for unit, names in UNITS.items() for name in names}


def with_units(measures: Mapping[str, float], statistics: Mapping[str, Any]) -> list[str]:
    """A line about each measure of a test: its unit, and its interval where the statistics have one."""
    lines = []
    for name, value in measures.items():
        unit, summary = UNIT.get(re.sub("_(slow|medium|fast)$", "", name)), statistics.get(name)
        count = f" ({summary['episodes']} episode{'s' * (summary['episodes'] > 1)})" if summary else ""
        lines.append(f"{name}: {with_interval(value, summary)}{f' {unit}' if unit else ''}{count}")
    return lines


def with_interval(value: float, summary: Mapping[str, Any] | None) -> str:
    """``0.161 +- 0.043``, to two digits of the interval; one episode has none worth telling."""
    interval = summary["ci95"] if summary is not None and summary["episodes"] > 1 else None
    if not interval or not math.isfinite(interval):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(interval)))
    return f"{value:.{digits}f} +- {interval:.{digits}f}"
