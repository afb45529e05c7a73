"""Interruptions and continuing: nothing is lost, nothing runs twice, nothing is left behind."""

import json
import os
import platform
import signal
import time
from pathlib import Path

import pytest

from mimickit.longcycle.devices import file_lock
from mimickit.util.files import read_json, read_tsv
from tests.longcycle.conftest import CASES, TRAINED


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return value


def running(project, stage):
    """The pid of a stage's process once it trains, else None."""
    calls = [call for call in project.calls() if call["stage"] == stage]
    beats = list(project.out.glob(f"runs/*/*/{stage}/heartbeat/rank_0"))
    return calls[-1]["pid"] if calls and beats else None


def trained(project, stage, case=TRAINED):
    """Samples that a stage has trained with by now."""
    own = project.out.glob(f"runs/{case}_args/*/{stage}/progress.json")
    return max((read_json(path).get("samples", 0) for path in own), default=0)


def alive(pid):
    return bool(process_state(pid)) and process_state(pid)[0] != "Z"


def group_alive(group):
    """Whether a process of the group still runs."""
    states = (process_state(path.name) for path in Path("/proc").glob("[0-9]*"))
    return any(state and state[0] != "Z" and int(state[2]) == group for state in states)


def process_state(pid):
    """What proc(5) says after a process' name: state, parent, group ...; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 2), (signal.SIGTERM, 2)])
def test_interrupted_then_lf(project, number, code):
    project.rules({"stage": "long_train", "do": "slow", "times": 1})
    session = project.start("--long-max-samples", "100000")
    pid = wait_for(lambda: running(project, "long_train"))
    wait_for(lambda: trained(project, "long_train"))
    session.send_signal(number)
    assert session.wait(20) == code
    assert not alive(pid)
    assert project.progress()["status"] == "interrupted"
    text = (project.path / "session.txt").read_text()
    assert f"NOT RUN  {TRAINED}: interrupted_in_long_train" in text and f"NOT RUN  {CASES[2]}" in text
    assert "0/3 final_ok=1" in text
    stopped = max(int(path.read_text()) for path in project.out.glob("runs/*/*/long_train/checkpoints/*/samples"))
    project.forget_calls()
    project.rules()

    result = project.run("--lf", "--long-max-samples", "100000")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*3/3 final_ok=1*"])
    assert project.stages() == ["long_train", "test", "viz"]
    assert project.calls()[0]["resumed"] == stopped > 0
    assert project.calls()[0]["flags"]["resume"][0].endswith("/long_train")
    assert "overwrite" not in project.calls()[0]["flags"], "it goes on in its own folder"
    ends = [event["elapsed_s"] for event in project.events()
            if event["event"] == "stage_end" and event["case"] == TRAINED and event["stage"] == "long_train"]
    assert len(ends) == 2 and float(project.rows()[TRAINED]["long_elapsed_s"]) == pytest.approx(sum(ends), abs=0.02)
    assert "=== " in (project.out / f"runs/{TRAINED}_args/default_e8/long_train.log").read_text().split("says hello")[1]


def guard_of(pid):
    """The guard above a stage's command."""
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


def start_with_sleeper(project, stage, case, *options, **rule):
    """A session in whose stage a grandchild of the trainer's sleeps; and the two processes."""
    project.rules({"stage": stage, "do": "spawn", **rule})
    session = project.start("--cases", case, *options)
    trainer = wait_for(lambda: running(project, stage))
    return session, trainer, int(wait_for(lambda: (project.path / "sleeper.pid").read_text()))


def test_a_killed_guard_takes_its_stage_along_and_the_stage_is_tried_again(project):
    """Nobody goes on beside the successor, also no grandchild in a session of its own."""
    session, trainer, sleeper = start_with_sleeper(project, "long_train", TRAINED, times=1)
    os.kill(guard_of(trainer), signal.SIGKILL)
    wait_for(lambda: len(project.stages()) > 2)
    assert not alive(trainer) and not alive(sleeper), "what the guard watched ends before its successor starts"
    assert session.wait(30) == 0
    ends = [e for e in project.events() if e["event"] == "stage_end" and e["stage"] == "long_train"]
    assert [(e["outcome"], e["failure_class"]) for e in ends] == [("failed", "preempted"), ("ok", "")]
    assert "the stage's guard was killed" in ends[0]["message"]


def test_what_outlived_a_killed_session_and_its_guard_ends_before_a_successor(project):
    session, trainer, sleeper = start_with_sleeper(project, "long_train", TRAINED, times=1)
    guard = guard_of(trainer)
    os.kill(session.pid, signal.SIGSTOP)
    os.kill(guard, signal.SIGKILL)
    session.kill()
    session.wait()
    wait_for(lambda: not alive(trainer))
    assert alive(sleeper), "nobody is left who knows of it"
    half = [project.out / name for name in (".progress.json.ab12.tmp", f"runs/{TRAINED}_args/.attempts.json.x_.tmp")]
    for path in half:
        path.write_text("half")
    assert project.run("--lf", "--cases", TRAINED).ret == 0
    assert not alive(sleeper) and not any(path.exists() for path in half)


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_sigkill_leaves_no_process_and_can_be_continued(project, options):
    session, trainer, sleeper = start_with_sleeper(project, "long_train", TRAINED, *options, times=1)
    session.kill()
    session.wait()
    wait_for(lambda: not alive(trainer) and not alive(sleeper), 10.0)
    assert project.progress()["status"] == "running"
    project.forget_calls()
    project.rules()
    result = project.run("--lf", "--cases", TRAINED)
    assert result.ret == 0
    assert project.stages() == ["long_train", "test", "viz"]
    ends = [e for e in project.events() if e["event"] == "stage_end" and e["stage"] == "long_train"]
    assert [e["outcome"] for e in ends] == ["interrupted", "ok"]
    assert "was killed" in ends[0]["message"] and ends[0]["elapsed_s"] >= 0


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_session_that_outlives_its_test_is_ended(project, options):
    """These tests' own care for the machine."""
    session, trainer, sleeper = start_with_sleeper(project, "bootstrap_train", CASES[1], *options)
    project.end()
    wait_for(lambda: not group_alive(session.pid) and not alive(trainer) and not alive(sleeper), 10.0)


def test_a_hung_process_group_is_killed_whole(project):
    project.rules({"stage": "bootstrap_train", "do": "spawn"})
    project.profiles(hang_seconds=1, stop_grace=1)
    project.run("--cases", CASES[1])
    assert not alive(int((project.path / "sleeper.pid").read_text()))


def test_lf_runs_what_has_not_passed_and_keeps_training(project):
    project.rules({"stage": "test", "case": TRAINED, "do": "crash"})
    result = project.run()
    assert result.ret == 1
    assert project.stages() == ["probe_train", "long_train", "test"]
    project.forget_calls()
    project.rules()
    result = project.run("--lf")
    assert result.ret == 0
    assert [(c["case"], c["stage"]) for c in project.calls()] == [(TRAINED, "test"), (TRAINED, "viz")]
    result.stdout.fnmatch_lines([f"ok *{CASES[1]}*(reused)", "*3/3 final_ok=1*"])
    project.forget_calls()
    result = project.run("--lf")
    assert result.ret == 0 and not project.calls()
    result.stdout.fnmatch_lines(["*every selected case has passed already*", "*3/3 final_ok=1*"])


def test_the_same_root_continues_and_skip_status_chooses(project):
    project.rules({"stage": "viz", "case": TRAINED, "do": "crash"})
    project.run()
    project.forget_calls()
    result = project.run()  # ok: passed cases are reused, the failed one restarts at viz
    assert [(c["case"], c["stage"]) for c in project.calls()] == [(TRAINED, "viz")]
    result.assert_outcomes(passed=2, failed=1)
    project.forget_calls()
    result = project.run("--resume-skip-status", "all")
    assert not project.calls() and result.ret == 1
    result.stdout.fnmatch_lines([f"*{TRAINED}: stage viz failed*", "*log: *viz.log*", "*2/3 final_ok=1*"])
    project.rules()
    project.run("--resume-skip-status", "none", "--cases", TRAINED)
    assert project.stages() == ["probe_train", "long_train", "test", "viz"]
    assert project.calls()[0]["resumed"] == 0


def test_changed_inputs_do_not_reuse_results(project):
    project.run("--cases", TRAINED)
    project.forget_calls()
    (project.path / "data/char.xml").write_text("<mujoco><!-- heavier --></mujoco>")
    assert project.run("--cases", TRAINED).ret == 0
    assert project.stages() == ["probe_train", "long_train", "test", "viz"]


def test_more_samples_continue_training(project):
    project.run("--cases", TRAINED)
    project.forget_calls()
    assert project.run("--cases", TRAINED, "--long-max-samples", "2000").ret == 0
    assert project.stages() == ["long_train", "test", "viz"]
    assert project.calls()[0]["resumed"] == 1024


def test_memory_rungs_are_remembered_after_an_interruption(project):
    project.rules({"stage": "probe_train", "above_envs": 16, "do": "oom"},
                  {"stage": "test", "do": "crash", "times": 1})
    ladder = ["--cases", TRAINED, "--env-ladder", "64,16"]
    assert project.run(*ladder).ret == 1
    project.forget_calls()
    project.rules()
    assert project.run(*ladder, "--lf").ret == 0
    assert project.stages() == ["test", "viz"]


def test_a_test_that_runs_out_of_memory_does_not_repeat_training(project):
    project.rules({"stage": "test", "do": "oom"})
    ladder = ["--cases", TRAINED, "--env-ladder", "64,16"]
    assert project.run(*ladder).ret == 1 and project.rows()[TRAINED]["note"] == "oom_gpu_in_test"
    project.forget_calls()
    project.rules()
    assert project.run(*ladder, "--lf").ret == 0
    assert project.stages() == ["test", "viz"] and project.rows()[TRAINED]["note"] == "ok"


def test_other_inputs_climb_the_ladder_anew(project):
    project.rules({"stage": "probe_train", "above_envs": 16, "do": "oom"})
    ladder = ["--cases", TRAINED, "--env-ladder", "64,16"]
    assert project.run(*ladder).ret == 0
    project.forget_calls()
    project.rules()
    (project.path / "data/engines/newton_engine.yaml").write_text(
        "engine_name: newton\nenv_spacing: 6\n")
    assert project.run(*ladder).ret == 0
    assert {call["num_envs"] for call in project.calls() if "train" in call["stage"]} == {64}


@pytest.mark.parametrize(("options", "again"), [
    (["--env-ladder", "64"], True), (["--probe-iters", "3"], True), (["--test-timeout", "19"], False),
    (["--hang-seconds", "0"], False),
])
def test_results_are_reused_while_sizes_are_the_same(project, options, again):
    """Sizes decide, patience does not."""
    project.run("--cases", TRAINED)
    project.forget_calls()
    result = project.run("--cases", TRAINED, "--lf", *options)
    assert result.ret == 0 and (project.path / "calls.jsonl").exists() == again
    if not again:
        result.stdout.fnmatch_lines(["*every selected case has passed already*"])


def test_a_root_remembers_all_its_cases_and_sessions(project):
    """A session over some cases adds to what others recorded, and every row names the session that it is of."""
    project.run()
    before = project.rows()
    project.run("--cases", CASES[1], "--probe-iters", "3")
    assert {row["case"].removesuffix("_args.txt") for row in read_tsv(project.out / "case_manifest.tsv")} == set(CASES)
    rows = project.rows()
    assert rows[TRAINED] == before[TRAINED] and rows[CASES[1]]["session"] != before[CASES[1]]["session"]
    for row in rows.values():
        environment = json.loads((project.out / f"environments/{row['session']}.json").read_text())
        assert ("--probe-iters" in environment["command"]) == (row["case"] == f"{CASES[1]}_args.txt")


def test_a_busy_device_is_told(project):
    """Another session holds the only GPU: the wait has a line and an entry in progress.json, and ends with the lock."""
    locks = project.path / "output/.device_locks" / platform.node()
    with file_lock(locks / "cuda-0.lock"):
        session = project.start("--cases", CASES[1], "--devices-nontrainable", "cuda:0")
        wait_for(lambda: (project.out / "progress.json").exists()
                 and project.progress()["waiting"] == {CASES[1]: "cuda:0"})
        wait_for(lambda: f"{CASES[1]} waits for a free device (cuda:0)" in (project.path / "session.txt").read_text())
        assert not project.calls()
    assert session.wait(30) == 0
    assert project.progress()["waiting"] == {}


def test_an_interrupted_session_leaves_nobody_in_the_queue(project):
    with file_lock(project.path / "output/.device_locks" / platform.node() / "cuda-0.lock"):
        session = project.start("--cases", CASES[1], "--devices-nontrainable", "cuda:0")
        wait_for(lambda: (project.out / "progress.json").exists()
                 and project.progress()["waiting"] == {CASES[1]: "cuda:0"})
        session.send_signal(signal.SIGINT)
        assert session.wait(30) == pytest.ExitCode.INTERRUPTED
    assert project.progress()["status"] == "interrupted" and project.progress()["waiting"] == {}


def test_two_sessions_do_not_share_a_root(project):
    project.rules({"stage": "long_train", "do": "slow"})
    first = project.start("--cases", TRAINED, "--long-max-samples", "1000000")
    wait_for(lambda: running(project, "long_train"))
    second = project.run("--cases", TRAINED)
    assert second.ret != 0
    second.stderr.fnmatch_lines(["*another session works in output/train/longcycle_smoke*"])
    os.kill(first.pid, signal.SIGINT)
    first.wait(20)


def test_live_progress_reaches_the_terminal(project):
    project.rules({"stage": "long_train", "do": "slow"})
    session = project.start("--cases", TRAINED, "--long-max-samples", "2000")
    session.wait(20)
    text = (project.path / "session.txt").read_text()
    lines = text.splitlines()
    live = next(line for line in lines if "left | " in line)
    assert live.startswith("[0/1] about ") and f"left | {TRAINED} " in live, "none is done yet"
    assert sum("left | " in line for line in lines) == 1, "a line a minute, and a line for what has ended"
    ended = [line for line in lines if " after 0:0" in line]
    assert [line.split()[1] for line in ended] == ["probe_train:", "long_train:", "test:", "viz:"]
    assert f"[1/1] {TRAINED} ok" in lines


def test_xdist_interrupt_ends_stages_with_a_checkpoint(project):
    project.rules({"stage": "long_train", "do": "slow"})
    session = project.start("-n", "2", "--cases", f"{TRAINED},{CASES[1]}", "--long-max-samples", "1000000")
    pid = wait_for(lambda: running(project, "long_train"))
    wait_for(lambda: trained(project, "long_train"))
    session.send_signal(signal.SIGTERM)
    assert session.wait(30) != 0
    assert not alive(pid)
    ends = [e for e in project.events() if e["event"] == "stage_end" and e["stage"] == "long_train"]
    assert [e["outcome"] for e in ends] == ["interrupted"]
    assert ends[0]["result"]["outcome"] == "interrupted"


def spoil_checkpoints(folder):
    """One bit of each, in the manifest of one and the shared part of the other."""
    for number, path in enumerate(sorted((folder / "checkpoints").iterdir())):
        spoil(path / ("shared.pt", "manifest.json")[number % 2])


def spoil(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("spoilt", "stages", "resumed"), [
    (["long_train"], ["long_train", "test", "viz"], [256]),
    (["long_train", "probe_train"], ["probe_train", "long_train", "test", "viz"], [0, 256])])
def test_damaged_checkpoints_are_not_continued(project, spoilt, stages, resumed):
    """long_train, else probe_train, else afresh: what is complete decides, not what is there."""
    project.rules({"stage": "long_train", "do": "slow"})
    session = project.start("--cases", TRAINED, "--long-max-samples", "100000")
    folder = project.out / f"runs/{TRAINED}_args/default_e8"
    wait_for(lambda: list(folder.glob("long_train/checkpoints/*/manifest.json.sha256")))
    session.send_signal(signal.SIGINT)
    session.wait(20)
    for stage in spoilt:
        spoil_checkpoints(folder / stage)
    project.forget_calls()
    project.rules()
    assert project.run("--lf", "--cases", TRAINED, "--long-max-samples", "100000").ret == 0
    assert project.stages() == stages
    assert [call["resumed"] for call in project.calls()][:len(resumed)] == resumed


def test_a_damaged_model_is_not_tested(project):
    """Its training goes on from its checkpoint, where nothing is left to do, and writes it anew."""
    project.rules({"stage": "viz", "do": "crash"})
    assert project.run("--cases", TRAINED).ret == 1
    project.rules()
    model = project.out / f"runs/{TRAINED}_args/default_e8/long_train/model.pt"
    whole = model.read_bytes()
    spoil(model)
    project.forget_calls()
    assert project.run("--cases", TRAINED, "--lf").ret == 0
    assert project.stages() == ["long_train", "test", "viz"]
    assert project.calls()[0]["resumed"] == 1024 and model.read_bytes() == whole
