"""Exploration schedules."""

import pytest

from mimickit.learning.rl_math import annealed_std, exploration_probability


@pytest.mark.parametrize(("samples", "expected"), [(0, 1.0), (50, 0.6), (100, 0.2), (200, 0.2)])
def test_linear_schedule(samples, expected):
    assert exploration_probability(samples, 1.0, 0.2, 100.0) == pytest.approx(expected)


def test_without_annealing_the_probability_stays():
    assert exploration_probability(10**12, 0.7, 0.2, float("inf")) == 0.7


@pytest.mark.parametrize(("samples", "expected"), [(0, 0.1), (50, 0.04), (100, 0.016), (200, 0.016)])
def test_the_deviation_falls_evenly_in_its_logarithm(samples, expected):
    assert annealed_std(samples, 0.1, 0.016, 100.0) == pytest.approx(expected)
