"""Cases side by side (pytest-xdist): one a worker at a time, own devices, workers that die; ``--lf`` exactly."""

import os
import signal

import pytest
import yaml

from tests.longcycle.conftest import CASES, TRAINED
from tests.longcycle.test_resume import alive, group_alive, running, wait_for

VIEWS = ("view_motion_g1", "view_motion_go2", "view_motion_humanoid")
DOF = "dof_test_humanoid"


def parent(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


def call_of(project, case):
    """The last start of a case's process."""
    return next((call for call in reversed(project.calls()) if call["case"] == case), None)


def ended(project, case):
    path = project.out / "ledger.jsonl"
    return path.exists() and any(e["event"] == "case_end" and e["case"] == case for e in project.events_tolerant())


def test_no_case_waits_behind_a_long_one(project):
    """Four cases on two workers, the first one long: the others all run on the other worker meanwhile."""
    project.add_cases(*VIEWS)
    project.rules({"stage": "bootstrap_train", "case": DOF, "do": "slow"})
    result = project.run("-n", "2", "--cases", ",".join((DOF, *VIEWS)), "--nontrainable-max-samples", "1600")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*4/4 final_ok=1*"])
    order = [e["case"] for e in project.events() if e["event"] == "case_end"]
    assert order[-1] == DOF and sorted(order[:-1]) == sorted(VIEWS)
    start = next(e for e in project.events() if e["event"] == "session_start")
    assert start["command"][-2:] == ["--nontrainable-max-samples", "1600"], "the session's, not a worker's"


def test_what_takes_longest_begins_first(project):
    """Two workers: the two dearest trainings begin, then the cheap one, then what does not train."""
    project.add_cases("add_humanoid", "vault_humanoid", *VIEWS)
    targets = yaml.safe_load((project.path / "targets.yaml").read_text())
    targets["vault_humanoid"]["cost"], targets["add_humanoid"]["cost"] = 3.0, 2.0
    (project.path / "targets.yaml").write_text(yaml.safe_dump(targets))
    project.run("-n", "2", "--cases", ",".join((DOF, *VIEWS, TRAINED, "add_humanoid", "vault_humanoid")))
    begun = list(dict.fromkeys(e["case"] for e in project.events() if e["event"] == "stage_start"))
    assert set(begun[:2]) == {"vault_humanoid", "add_humanoid"}
    assert TRAINED in begun[2:4] and set(begun[2:]) == {TRAINED, DOF, *VIEWS}  # two begin side by side


def test_automatic_number_of_workers(project):
    result = project.run("-n", "auto", "--devices-train", "cuda:0", "--cases-per-device", "2")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["longcycle:*devices cuda:0 (2 cases each)*", "*2 workers*", "*3/3 final_ok=1*"])
    result = project.run("-n", "auto", "--cases-per-device", "0")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*--cases-per-device 0: at least 1*"])


def test_automatic_cases_share_a_device(project, monkeypatch):
    """A GPU of 20 GiB and many cores: two cases at once, counted by the controller and allowed by its workers."""
    program = project.path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ncase "$*" in *memory.total*) echo 20000;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    with (project.path / "conftest.py").open("a") as file:
        file.write("import os\nos.sched_getaffinity = lambda pid: range(64)\n")
    project.add_cases(*VIEWS)
    project.rules({"stage": "bootstrap_train", "do": "slow"})
    result = project.run("-n", "auto", "--cases", ",".join((DOF, *VIEWS)), "--devices-train", "cuda:0",
                         "--longcycle-profile", "full", "--root-out", "longcycle_smoke")
    result.stdout.fnmatch_lines(["longcycle:*devices cuda:0 (2 cases each)*", "*2 workers*"])
    assert max(map(len, held_at_starts(project))) == 2


def test_more_workers_than_cases(project):
    assert project.run("-n", "3", "--cases", f"{DOF},{CASES[2]}").ret == 0


def test_leases_are_disjoint(project):
    project.add_cases(*VIEWS)
    project.rules({"stage": "bootstrap_train", "do": "slow"})
    result = project.run("-n", "2", "--cases", ",".join((DOF, *VIEWS)), "--devices-nontrainable", "cuda:0,cuda:1")
    assert result.ret == 0
    held = held_at_starts(project)
    assert all(len(set(devices)) == len(devices) for devices in held), "two stages on one device"
    assert max(map(len, held)) == 2


def held_at_starts(project):
    """The devices of all running stages, whenever one started."""
    held, found = {}, []
    for event in project.events():
        if event["event"] == "stage_end":
            del held[event["case"]]
        elif event["event"] == "stage_start":
            held[event["case"]] = event["devices"][0]
            found.append(list(held.values()))
    return found


def test_cases_share_a_device_where_that_is_allowed(project):
    """Three workers, one GPU with two slots: two cases at a time, never three."""
    project.add_cases(*VIEWS)
    project.rules({"stage": "bootstrap_train", "do": "slow"})
    result = project.run("-n", "3", "--cases", ",".join((DOF, *VIEWS)), "--devices-train", "cuda:0",
                         "--cases-per-device", "2")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["longcycle:*devices cuda:0 (2 cases each)*; GPUs are shared in turns*"])
    held = held_at_starts(project)
    assert max(map(len, held)) == 2 and {device for devices in held for device in devices} == {"cuda:0"}


@pytest.mark.parametrize("continued", [[], ["--lf"]], ids=["first", "lf"])
def test_a_killed_worker_costs_its_case_alone(project, continued):
    """The lease of a worker that dies frees itself, the others go on, and --lf runs the one case again.

    The worker that replaces it knows of the case that has passed meanwhile, and yet selects what the others did.
    """
    project.add_cases(*VIEWS)
    cases = ("--cases", ",".join((DOF, *VIEWS)), "--devices-nontrainable", "cuda:0,cuda:1")
    project.rules({"stage": "bootstrap_train", "case": DOF, "do": "spawn", "times": 1})
    session = project.start("-n", "2", *continued, *cases)
    trainer = wait_for(lambda: (call := call_of(project, DOF)) and call["pid"])
    sleeper = int(wait_for(lambda: (project.path / "sleeper.pid").exists() and
                           (project.path / "sleeper.pid").read_text()))
    wait_for(lambda: any(ended(project, name) for name in VIEWS))
    os.kill(parent(parent(trainer)), signal.SIGKILL)  # trainer, guard, worker
    assert session.wait(60) == 1
    wait_for(lambda: not alive(trainer) and not alive(sleeper), 10.0)
    text = (project.path / "session.txt").read_text()
    assert f"crashed while running 'tests/acceptance/test_longcycle.py::test_longcycle[{DOF}]'" in text
    assert f"NOT RUN  {DOF}: interrupted_in_bootstrap_train" in text and "3/4 final_ok=1" in text
    end = next(e for e in project.events() if e["event"] == "stage_end" and e["case"] == DOF)
    assert end["outcome"] == "interrupted" and "worker that ran it died" in end["message"]
    assert project.progress()["status"] == "finished" and not project.progress()["running"]
    project.forget_calls()
    project.rules()
    result = project.run("-n", "2", "--lf", *cases)
    assert result.ret == 0 and {call["case"] for call in project.calls()} == {DOF}
    result.stdout.fnmatch_lines(["*4/4 final_ok=1*"])


# --lf: exactly what has not passed, whatever ended the session

KILLS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}


@pytest.mark.parametrize(("ending", "how"), [
    ("SIGINT", "xdist"), ("SIGTERM", "xdist"), ("SIGKILL", "xdist"), ("SIGKILL", "alone"), ("trainer killed", "alone"),
    ("failures", "xdist")])
def test_lf_runs_exactly_what_has_not_passed(project, ending, how):
    """One case passed, one was in the middle of its training; alone, the third never began.

    The other endings of a session without workers: test_resume.py.
    """
    workers = ["-n", "2"] if how == "xdist" else []
    options = [*workers, "--nontrainable-max-samples", "2000"]
    if ending in KILLS:
        project.rules({"stage": "bootstrap_train", "do": "slow"})
        session = project.start(*options)
        wait_for(lambda: ended(project, TRAINED) and (call := call_of(project, DOF)) and alive(call["pid"])
                 and running(project, "bootstrap_train"))
        if workers:
            wait_for(lambda: call_of(project, CASES[2]))
        session.send_signal(KILLS[ending])
        assert session.wait(30) != 0
        wait_for(lambda: not any(alive(call["pid"]) for call in project.calls()), 10.0)
        wait_for(lambda: not group_alive(session.pid), 10.0)  # workers, too, have noticed
        left = {DOF, CASES[2]}
    else:
        project.rules({"stage": "bootstrap_train", "case": DOF, "do": "killed" if "killed" in ending else "crash"})
        assert project.run(*options).ret == 1
        assert project.rows()[DOF]["failure_class"] == ("preempted" if "killed" in ending else "failed")
        left = {DOF}
    project.forget_calls()
    project.rules()
    result = project.run("--lf", *options)
    assert result.ret == 0
    result.assert_outcomes(passed=len(left), deselected=3 - len(left) if not workers else 0)
    result.stdout.fnmatch_lines([f"ok       {TRAINED}:*(reused)", "*3/3 final_ok=1*"])
    assert {call["case"] for call in project.calls()} == left
    project.forget_calls()
    result = project.run("--lf", *options)
    assert result.ret == 0 and not project.calls()
    result.stdout.fnmatch_lines(["*every selected case has passed already*", "*3/3 final_ok=1*"])
