"""Where gates stand between no skill and what was trained."""

import pytest

from mimickit.longcycle.bounds import lines, table
from mimickit.longcycle.settings import Gate, Target

BASELINES = {"clip": {"policies": {
    "untrained": {"length": [10.0, 1.0], "body_pos_err": [0.3, 0.01], "survival": [0.0, 0.0]},
    "random": {"length": [8.0, 1.0], "body_pos_err": [0.4, 0.01], "survival": [0.0, 0.0]}}}}
TARGETS = {"clip": Target(gates=(Gate(measure="test_episode_length", op=">=", bound=150, source="x"),))}


def result(length, err):
    return {"statistics": {"length": {"mean": length, "ci95": 1.0, "episodes": 8}}, "measures": {
        "body_pos_err": err, "survival": 0.0}}


def test_bounds_stand_between_no_skill_and_the_worst_seed():
    length, err = lines([{"clip": result(290.0, 0.1)}, {"clip": result(210.0, 0.08)}, {"clip": {}}], TARGETS, BASELINES)
    assert (length.measure, length.no_skill, length.trained, length.bound) == (
        "test_episode_length", 10.0, [290.0, 210.0], 150)
    assert length.place == pytest.approx(0.7) and length.at(0.5) == pytest.approx(110.0)
    assert (err.measure, err.no_skill, err.bound, err.place) == ("body_pos_err", 0.3, None, None)
    assert err.at(0.5) == pytest.approx(0.2)
    assert len(table([length, err], 0.7)) == 3


def test_nothing_is_proposed_where_training_brought_nothing():
    length, err = lines([{"clip": result(9.0, 0.5)}], TARGETS, BASELINES)
    assert length.at(0.7) is None and err.at(0.7) is None and "-" in table([length], 0.7)[1]


def test_cases_without_a_test_or_a_baseline_are_left_out():
    assert lines([{"clip": {}, "other": result(1.0, 1.0)}], TARGETS, BASELINES) == []
