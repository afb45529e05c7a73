"""Bounds from seeds and half-skilled policies, by hand; tables of tests; what is told of a missed gate."""

import json
import statistics

import pytest

from mimickit.longcycle import bounds
from mimickit.longcycle.bounds import Test, all_policies, bound_of, collected, main, merged, read_tests, stops, table_of
from mimickit.longcycle.judge import gate_words, judge_gates
from mimickit.longcycle.settings import TARGETS_FILE, Gate, Target, deviation, load_targets
from mimickit.util.failures import UserError

POLICIES = {
    "untrained": {"return": [10.0, 1.0], "body_pos_err": [0.3, 0.01], "coverage_err": [0.2, 0.0]},
    "frozen_pose": {"return": [300.0, 0.0], "body_pos_err": [0.2, 0.01]},
    "one_clip": {"coverage_err": [0.3, 0.0]},
    "half_budget": {"body_pos_err": [0.12, 0.0]}}


def test_three_deviations_beyond_the_worst_seed():
    """Deviation 10: 200 - 30 = 170, beyond half-way (10 + 210) / 2 = 110 from the untrained; the frozen pose is better
    than any seed, so others must stop it."""
    gate = bound_of("test_return", [200.0, 210.0, 220.0], POLICIES)
    assert (gate.measure, gate.op, gate.bound, gate.rule) == ("test_return", ">=", 170.0, "seeds")
    assert gate.baseline == {"untrained": 10.0} and gate.seeds == (200.0, 210.0, 220.0)


def test_half_way_from_the_best_half_skilled_policy():
    """Deviation 0.03: 0.13 + 0.09 = 0.22 is worse than half-way from 0.2 to 0.1. half_budget does not count here."""
    gate = bound_of("body_pos_err", [0.07, 0.10, 0.13], POLICIES)
    assert (gate.op, gate.bound, gate.rule, gate.baseline) == ("<=", 0.15, "half_way", {"frozen_pose": 0.2})


def test_a_policy_too_near_is_left_to_other_gates():
    """Half-way to 0.2 is 0.165, worse than which the worst seed is."""
    gate = bound_of("body_pos_err", [0.11, 0.11, 0.17], POLICIES)
    assert gate.baseline == {"untrained": 0.3} and gate.bound == pytest.approx(0.215)  # (0.3 + 0.13) / 2
    assert bound_of("body_pos_err", [0.4, 0.4, 0.4], POLICIES) is None, "nobody is worse"


def test_coverage_is_compared_with_half_skilled_policies():
    assert bound_of("coverage_err", [0.1, 0.1, 0.1], POLICIES).baseline == {"one_clip": 0.3}


def test_few_seeds_give_no_bound():
    assert bound_of("test_return", [200.0, 210.0], POLICIES) is None


@pytest.mark.parametrize(("value", "direction", "expected"), [
    (0.12345, 1.0, 0.124), (0.12345, -1.0, 0.123), (123.45, 1.0, 124.0), (0.15, 1.0, 0.15), (0.15, -1.0, 0.15),
    (0.0, 1.0, 0.0)])
def test_rounding_goes_the_lenient_way(value, direction, expected):
    assert bounds.rounded(value, direction) == expected


def test_seeds_that_agree_by_chance():
    assert deviation("body_pos_err", [0.1, 0.1, 0.1]) == pytest.approx(0.002)
    assert deviation("survival", [1.0, 1.0, 1.0]) == deviation("success_rate_fast", [1.0, 1.0]) == pytest.approx(0.01)
    assert deviation("test_return", [90.0, 100.0, 110.0]) == statistics.stdev([90, 100, 110]) == 10.0


def test_a_missed_gate_is_told_in_deviations():
    gate = Gate(measure="body_pos_err", op="<=", bound=0.1, rule="seeds", seeds=(0.08, 0.09, 0.1))
    verdict = judge_gates([gate], {"statistics": {"body_pos_err": {"mean": 0.125, "ci95": 0.001, "episodes": 64}}})
    assert verdict.verdict == "fail"
    assert verdict.detail == ("body_pos_err 0.125 ± 0.001 (64 episodes) misses <= 0.1 by 0.025, 2.5 deviations of the "
                              "seeds")
    holds = Gate(measure="test_return", op=">=", bound=1.0)
    both = judge_gates([holds, gate], {"test_return": 2.0, "body_pos_err": 0.125})
    failed = "body_pos_err 0.125 misses <= 0.1 by 0.025, 2.5 deviations of the seeds"
    assert both.detail == f"{failed}; test_return 2 >= 1", "what fails comes first"
    assert gate_words(both.verdict, both.detail) == f"fail: {failed}"
    assert gate_words("not_judged", "test_return 2 >= 1") == "not judged"
    limbs = gate.model_copy(update={"frozen_pose": 0.2})
    assert judge_gates([limbs], {"body_pos_err": 0.09}).detail == "body_pos_err 0.09 (0.45 of the frozen pose's) <= 0.1"
    one = gate.model_copy(update={"seeds": (0.08,)})
    assert judge_gates([one], {"body_pos_err": 0.125}).detail == "body_pos_err 0.125 misses <= 0.1 by 0.025"


def test_what_stops_a_half_skilled_policy():
    """Its interval counts for it; what it does not claim does not stop it."""
    gates = [Gate(measure="body_pos_err", op="<=", bound=0.15), Gate(measure="test_return", op=">=", bound=200.0),
             Gate(measure="coverage_err", op="<=", bound=0.1)]
    found = stops(gates, "frozen_pose", POLICIES)
    assert list(found) == ["body_pos_err"] and found["body_pos_err"].beyond == pytest.approx(0.04)
    near = [gates[0].model_copy(update={"bound": 0.195})]
    assert stops(near, "frozen_pose", POLICIES) == {} and bounds.open_to(near, POLICIES) == [
        "frozen_pose", "one_clip", "half_budget"]


def made(case, policy, *values):
    return [Test(case, policy, seed, {"return": value, "err": 1.0 / value}, {"samples": "8"})
            for seed, value in enumerate(values, 1)]


def test_tables_are_read_as_written(tmp_path):
    found = merged(made("a", "trained", 4.0, 2.0), made("a", "half_budget", 8.0), made("a", "trained", 5.0))
    assert [(test.policy, test.seed, test.measures["return"]) for test in found] == [
        ("half_budget", 1, 8.0), ("trained", 1, 5.0), ("trained", 2, 2.0)]
    (tmp_path / "t.tsv").write_text(table_of(found))
    assert read_tests(tmp_path / "t.tsv") == found
    (tmp_path / "short.tsv").write_text("case\tseed\tworlds\tlength\na\t3\t4096\t300\n")
    assert read_tests(tmp_path / "short.tsv") == [Test("a", "trained", 3, {"length": 300.0}, {"worlds": "4096"})]


@pytest.mark.parametrize(("row", "message"), [
    ("a\t\ttrained\t1", "line 2: no 'seed'"), ("a\t1\tbest\t1", "policy 'best'; known are trained, half_budget"),
    ("a\t1\ttrained\tx", "could not convert"), ("a\tx\ttrained\t1", "invalid literal"),
    ("a\t1\ttrained\tnan", "length is not finite")])
def test_wrong_tables(row, message, tmp_path):
    (tmp_path / "t.tsv").write_text(f"case\tseed\tpolicy\tlength\n{row}\n")
    with pytest.raises(UserError, match=message):
        read_tests(tmp_path / "t.tsv")


def test_policies_stopped_early_count_with_their_best_seed():
    tests = [*made("a", "half_budget", 4.0, 8.0, 2.0), *made("a", "trained", 100.0)]
    found = all_policies({"a": {"policies": {"untrained": {"return": [0.0, 0.0]}}}}, tests)
    assert found == {"a": {"untrained": {"return": [0.0, 0.0]},
                           "half_budget": {"return": [8.0, 0.0], "err": [0.125, 0.0]}}}


def test_collect(tmp_path, capsys):
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"test_return": 1.0, "measures": {"motion_dist": 0.5, "test_disc_reward": 1.0},
                                  "statistics": {"return": {"mean": 3.0, "ci95": 1.0, "episodes": 8}}}))
    out = tmp_path / "t.tsv"
    arguments = ["collect", f"amp_humanoid={result}", "--out", str(out)]
    assert main([*arguments, "--seed", "1", "--policy", "half_budget"]) == 0
    assert main([*arguments, "--seed", "2"]) == 0
    assert [(test.key, test.measures) for test in read_tests(out)] == [
        (("amp_humanoid", "half_budget", 1), {"motion_dist": 0.5, "return": 3.0}),
        (("amp_humanoid", "trained", 2), {"motion_dist": 0.5, "return": 3.0})]
    assert main(["collect", f"amp_humanoud={result}", "--out", str(out), "--seed", "1"]) == 2
    assert "unknown case 'amp_humanoud' (did you mean 'amp_humanoid'?)" in capsys.readouterr().err
    with pytest.raises(UserError, match="no test of a trainable case"):
        collected(f"amp_humanoid={tmp_path / 'none.json'}", 1, "trained")


def test_targets_are_read_as_written(tmp_path):
    gate = bound_of("test_return", [200.0, 210.0, 220.0], POLICIES)
    targets = {"a": Target(gates=(gate,), cost=1.5, open=("frozen_pose",)), "b": Target(gates=(Gate(
        measure="x", op="<", bound=0.1, source="made up: for a test"),))}
    file = tmp_path / "targets.yaml"
    file.write_text(bounds.text_of(targets))
    assert bounds.load_targets(file) == targets


@pytest.mark.parametrize(("options", "seeds"), [([], [1, 2, 7]), (["--replace"], [7])])
def test_write_takes_tables_over_and_computes_all(options, seeds, tmp_path, monkeypatch):
    files = {name: tmp_path / name for name in ("SEEDS_FILE", "TARGETS_FILE", "PAGE_FILE")}
    for name, file in files.items():
        monkeypatch.setattr(bounds, name, file)
    before = [*made("add_go2", "trained", 1.0, 2.0), *made("add_go2", "half_budget", 3.0),
              *made("amp_go2", "trained", 4.0)]
    files["SEEDS_FILE"].write_text(table_of(merged(before)))
    monkeypatch.setattr(bounds, "load_targets", lambda: load_targets(TARGETS_FILE))
    new = tmp_path / "new.tsv"
    new.write_text("case\tseed\tlength\nadd_go2\t7\t300\n")
    assert main(["write", str(new), *options]) == 0
    known = read_tests(files["SEEDS_FILE"])
    assert [test.seed for test in known if test.case == "add_go2" and test.policy == "trained"] == seeds
    assert len(known) == len(seeds) + 2, "other policies and cases stay"
    gates = {gate.measure: gate for gate in load_targets(files["TARGETS_FILE"])["add_go2"].gates}
    assert gates["test_episode_length"].rule == "provisional" and gates["test_episode_length"].seeds == (300.0,)
    assert "### add_go2" in files["PAGE_FILE"].read_text()
