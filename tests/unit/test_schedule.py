"""Exploration schedule."""

import pytest

from mimickit.learning.rl_math import exploration_probability


@pytest.mark.parametrize(("samples", "expected"), [(0, 1.0), (50, 0.6), (100, 0.2), (200, 0.2)])
def test_linear_schedule(samples, expected):
    assert exploration_probability(samples, 1.0, 0.2, 100.0) == pytest.approx(expected)


def test_without_annealing_the_probability_stays():
    assert exploration_probability(10**12, 0.7, 0.2, float("inf")) == 0.7
