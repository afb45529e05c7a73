"""Uneven ground: one grid of random heights, the same for every simulator. NumPy alone."""

from __future__ import annotations

import numpy as np

SPACING = 0.2  # m, between grid points
POINTS = 401  # along each side: 80 m
HALF = 0.5 * SPACING * (POINTS - 1)  # m
BASE = 1.0  # m, how far the ground reaches below its lowest point
SHIFT = 20.0  # m, at most, along each axis, by which it is moved under a world


def heights() -> np.ndarray:
    """Heights [POINTS, POINTS] in units of the roughness: uniform in [-1, 0], so that a character that is placed on
    flat ground at 0 stands in no bump. The lowest is -1, the highest 0."""
    drawn = np.random.default_rng(0).uniform(-1.0, 0.0, (POINTS, POINTS))
    drawn.flat[:2] = -1.0, 0.0  # files of heights are scaled to what they span
    return drawn.astype(np.float32)
