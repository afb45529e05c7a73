"""What the suite asks of a test stage, and how a gate reads the statistics it gets."""

import json
from pathlib import Path

import pytest

from mimickit.cases import discover
from mimickit.longcycle import judge
from mimickit.longcycle.cases import read_inputs
from mimickit.longcycle.commands import Attempt
from mimickit.longcycle.ladder import Rung
from mimickit.longcycle.settings import DEFAULT_ENGINE, Gate, Settings, load_profiles

ROOT = Path(__file__).resolve().parents[2]
CASES = {case.name: case for case in discover(ROOT)}
STATISTICS = {
    "return": {"mean": 9.0, "ci95": 0.25, "std": 4.0, "episodes": 1024},
    "survival": {"mean": 1.0, "ci95": None, "std": None, "episodes": 1},
    "broken": {"mean": "nan", "ci95": 0.1, "episodes": 4},
}


def spec_of(tmp_path, name, trained_in=4096, **changes):
    """The test stage of a case under the full profile with changes."""
    profile = load_profiles().profiles["full"].model_copy(update=changes)
    settings = Settings(
        repo=ROOT, out=tmp_path, profile_name="full", profile_reason="", profile=profile, targets={}, train_env={},
        viz_env={}, pool=("cpu",), per_case=1)
    inputs = read_inputs(ROOT, CASES[name], DEFAULT_ENGINE)
    return Attempt(settings, CASES[name], inputs, Rung("default", trained_in), trained_in, ("cpu",)).spec("test")


def flag(spec, name):
    return spec.argv[spec.argv.index(f"--{name}") + 1] if f"--{name}" in spec.argv else None


def test_many_environments_for_statistics(tmp_path):
    spec = spec_of(tmp_path, "deepmimic_humanoid_ppo", test_envs=1024)
    assert [flag(spec, name) for name in ("num_envs", "test_episodes", "statistics_episodes")] == ["1024", "10", "1024"]
    assert spec.key["test_envs"] == 1024
    small = spec_of(tmp_path, "deepmimic_humanoid_ppo", trained_in=64, test_envs=1024)  # training had no room for more
    assert [flag(small, name) for name in ("num_envs", "test_episodes", "statistics_episodes")] == ["64", "10", "1024"]
    few = spec_of(tmp_path, "deepmimic_humanoid_ppo", test_envs=4)
    assert [flag(few, name) for name in ("num_envs", "test_episodes", "statistics_episodes")] == ["10", "10", None]


def test_nothing_learned_needs_no_statistics(tmp_path):
    spec = spec_of(tmp_path, "view_motion_humanoid", test_envs=1024)
    assert (flag(spec, "num_envs"), flag(spec, "statistics_episodes")) == ("10", None)


@pytest.mark.parametrize(("measure", "result", "expected"), [
    ("test_return", {"test_return": 7.0}, ("pass", "test_return 9 ± 0.25 (1024 episodes) >= 8")),  # not the first ten
    ("survival", {}, ("fail", "survival 1 (1 episode) misses >= 8 by 7")),
    ("coverage_err", {"measures": {"coverage_err": 8.5}}, ("pass", "coverage_err 8.5 >= 8")),  # has no interval
    ("broken", {"measures": {"broken": 9.0}}, ("missing", "broken is missing or not a finite number")),
])
def test_gates_read_all_episodes(measure, result, expected):
    gate = Gate(measure=measure, op=">=", bound=8.0, source="made up for a test")
    found = judge.judge_gates([gate], {**result, "statistics": STATISTICS})
    assert (found.verdict, found.detail) == expected


def test_statistics_count_as_numbers_that_have_to_be_finite():
    assert judge.nonfinite_values(json.loads(json.dumps({"statistics": STATISTICS}))) == ["statistics.broken.mean"]
