"""The stage ``transfer``: the trained policy in plain MuJoCo, beside the test, judged where a case has gates for it."""

import re

import pytest
import yaml

from tests.longcycle.conftest import CASES, TRAINED

GATE = {"measure": "test_episode_length", "op": ">=", "bound": 5, "source": "made up for a test"}


@pytest.fixture
def project(project):
    project.profiles(transfer_episodes=3, disturbed_episodes=4, transfer_processes=2, transfer_timeout=60,
                     enforce_gates=True)
    targets = {case: {"gates": [{**GATE, "measure": "test_return"}]} for case in CASES}
    (project.path / "targets.yaml").write_text(yaml.safe_dump(targets))
    return project


def with_gate(project):
    targets = yaml.safe_load((project.path / "targets.yaml").read_text())
    targets[CASES[0]]["transfer"] = [GATE]
    (project.path / "targets.yaml").write_text(yaml.safe_dump(targets))


def test_it_follows_the_test_of_a_trained_case_only(project):
    project.run()
    assert project.stages() == ["probe_train", "long_train", "test", "transfer", "viz"]
    assert "transfer" not in project.stages(CASES[1])
    flags = next(call["flags"] for call in project.calls() if call["stage"] == "transfer")
    assert (flags["test_episodes"], flags["disturbed_episodes"], flags["devices"]) == (["3"], ["4"], ["cpu", "cpu"])
    row = project.rows()[TRAINED]
    assert [row[name] for name in ("transfer_ok", "transfer_episode_length", "transfer_measures")] == [
        "1", "10.0", "survival=1.0"]
    assert (row["final_ok"], row["transfer_verdict"]) == ("1", "missing")
    table = re.search('<table class="grid">.*?</table>', (project.out / "index.html").read_text(), flags=re.DOTALL)[0]
    rows = [re.findall("<t[hd].*?>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in table.split("<tr")[1:]]
    assert rows[0][4:6] == ["test", "transfer"] and {len(row) for row in rows} == {len(rows[0])}


@pytest.mark.parametrize(("do", "verdict", "failed", "why"), [
    ("", "pass", "", ""), ("weak", "fail", "transfer", "gate"), ("crash", "missing", "transfer", "failed")])
def test_gates_of_its_own_decide(project, do, verdict, failed, why):
    with_gate(project)
    if do:
        project.rules({"stage": "transfer", "do": do})
    project.run("--cases", CASES[0])
    row = project.rows()[TRAINED]
    assert (row["transfer_verdict"], row["failed_stage"], row["failure_class"]) == (verdict, failed, why)
    assert row["final_ok"] == ("0" if failed else "1") and row["gate_verdict"] == "pass"
    assert project.stages()[-1] == "viz", "the film does not wait for it"


def test_without_gates_a_failed_transfer_is_only_shown(project):
    project.rules({"stage": "transfer", "do": "crash"})
    assert project.run("--cases", CASES[0]).ret == 0
    row = project.rows()[TRAINED]
    assert (row["transfer_ok"], row["final_ok"], row["failed_stage"]) == ("0", "1", "")


def test_a_new_gate_asks_for_the_stage_alone(project):
    """Records of before the stage: what was trained is not trained again."""
    project.profiles(transfer_episodes=0, enforce_gates=True)
    assert project.run("--cases", CASES[0]).ret == 0
    project.profiles(transfer_episodes=3, enforce_gates=True)
    with_gate(project)
    (project.path / "calls.jsonl").unlink()
    assert project.run("--cases", CASES[0]).ret == 0
    assert project.stages() == ["transfer"]
