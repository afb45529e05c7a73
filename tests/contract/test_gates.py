"""Gates mean skill: no policy without any passes one. Its numbers are in tests/acceptance/baselines.yaml."""

import pytest

from mimickit.cases import discover
from mimickit.config import load_yaml
from mimickit.longcycle.bounds import BASELINES_FILE, margins
from mimickit.longcycle.settings import Gate, load_profiles, load_targets
from mimickit.util.assets import SHIPPED
from mimickit.util.failures import UserError
from tools.measure_baselines import RANDOM_SCALES, digits

CASES = [case.name for case in discover(SHIPPED) if case.trainable]
BASELINES = load_yaml(BASELINES_FILE)
TARGETS = load_targets()


def gate(op, bound, measure="test_return"):
    return Gate(measure=measure, op=op, bound=bound, source="made up for a test")


def test_margins():
    """Mean 4 with interval 0.5: bound 5 leaves 0.5, an eighth of the mean; the closest policy comes first."""
    policies = {"lazy": {"return": [2.0, 0.1], "err": [1.0, 0.25]}, "lucky": {"return": [4.0, 0.5], "err": [0.5, 0.0]}}
    first, second = margins(gate(">=", 5.0), policies)
    assert (first.policy, first.beyond, first.relative) == ("lucky", 0.5, 0.125)
    assert (second.policy, second.beyond) == ("lazy", pytest.approx(2.9))
    assert margins(gate(">", 4.2), policies)[0].beyond < 0.0  # within the interval
    assert margins(gate("<=", 0.4, "err"), policies)[0].relative == pytest.approx(0.2)
    assert margins(gate("<", 0.6, "err"), policies)[0].beyond < 0.0
    assert margins(gate("<", -1.0), {"zero": {"return": [0.0, 0.0]}})[0].relative == float("inf")
    short = {**policies, "fallen at once": {"return": [0.0, 0.0]}}  # has no err: cannot pass
    assert [margin.policy for margin in margins(gate("<", 0.1, "err"), short)] == ["lazy", "lucky"]
    with pytest.raises(UserError, match="no measure 'survival', only err, return"):
        margins(gate(">", 0.5, "survival"), policies)


def test_every_trainable_case_was_measured():
    assert sorted(BASELINES) == CASES
    for name, entry in BASELINES.items():
        assert set(entry["policies"]) == {"untrained", *(f"random_{scale}" for scale in RANDOM_SCALES)}, name
        assert entry["episodes"] >= 64 and entry["versions"] and entry["date"], name


@pytest.mark.parametrize("name", CASES)
def test_no_policy_without_skill_passes_a_gate(name):
    """Not only not all of them: none, and with the 95 % interval on the policy's side."""
    for each in TARGETS[name].gates:
        if each.measure == "coverage_err":  # the more episodes, the more is covered by chance
            assert BASELINES[name]["episodes"] >= load_profiles().profiles["full"].test_envs
        closest = margins(each, BASELINES[name]["policies"])[0]
        assert closest.beyond > 0.0, f"{name}: {each.measure} {each.op} {each.bound:g}, but {closest}"


def test_few_digits():
    assert (digits(0.123456), digits(1234.56), digits(0.0)) == (0.1235, 1235.0, 0.0)
