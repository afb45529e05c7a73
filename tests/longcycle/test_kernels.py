"""Kernels are compiled before the first case, once, and what the session says about how long it takes."""

import fcntl
import io
import json
import os
import pty
import signal
import struct
import termios
from types import SimpleNamespace

import pytest

from mimickit.cases import VIEW_STAGES, Case
from mimickit.longcycle import live, report
from mimickit.longcycle.estimate import Estimate
from mimickit.longcycle.guard import descendants
from mimickit.longcycle.ledger import Ledger, State, replay
from mimickit.longcycle.live import LiveLine, SessionProgress
from tests.longcycle.conftest import CASES, TRAINED
from tests.longcycle.test_resume import alive, wait_for

# Stands in for mimickit/kernels.py: notes what it was asked for; fails, or makes the markers.
COMPILER = """
import json, os, sys, pathlib
job = pathlib.Path(sys.argv[1]); asked = json.loads(job.read_text())
with open("compiles.jsonl", "a") as file:
    started = os.path.exists("calls.jsonl")
    file.write(json.dumps({**asked, "cases_began": started, "mps": os.environ.get("CUDA_MPS_PIPE_DIRECTORY")}) + "\\n")
if os.path.exists("broken"):
    sys.exit("the compiler is broken")
if os.path.exists("slow"):
    import time; time.sleep(1000)
pathlib.Path("cache").mkdir(exist_ok=True)
markers = {name: [os.path.abspath(f"cache/{name.replace('/', '_')}")] for name in asked["runs"]}
for files in markers.values():
    for file in files:
        pathlib.Path(file).touch()
(job.parent / "result.json").write_text(json.dumps({
    "mode": "compile", "ok": True, "markers": markers, "compiled": len(markers)}))
"""


@pytest.fixture
def compiling(project):
    """A project whose sessions compile, with a compiler that does not."""
    (project.path / "compiler.py").write_text(COMPILER)
    with (project.path / "conftest.py").open("a") as file:
        file.write("import mimickit.longcycle.kernels as kernels, mimickit.longcycle.settings as settings\n"
                   "kernels.PROGRAM = (sys.executable, 'compiler.py')\n"
                   "settings.Settings.compiles = True\n")
    project.compiles = lambda: [json.loads(line) for line in (project.path / "compiles.jsonl").read_text().splitlines()]
    return project


def test_kernels_are_compiled_once_and_before_the_first_case(compiling):
    result = compiling.run("-n", "2")
    assert result.ret == 0
    (job,) = compiling.compiles()
    assert not job["cases_began"] and job["devices"] == ["cpu"] and job["mps"] == "/nonexistent"
    assert set(job["runs"]) == {f"{TRAINED}/probe_train", f"{TRAINED}/viz",  # its test has several worlds too
                                *(f"{case}/{stage}" for case in CASES[1:] for stage in VIEW_STAGES)}
    flags = job["runs"][f"{TRAINED}/probe_train"]
    assert flags[flags.index("--num_envs") + 1] == "8" and f"args/{TRAINED}_args.txt" in flags
    assert not any(event.get("stage") == "kernels" for event in compiling.events()), "it counts for no case"
    result.stdout.fnmatch_lines(["kernels: checking*kernels/kernels.log)", "kernels: 8 compiled in *"])


def test_only_what_is_not_compiled_and_will_run_is(compiling):
    cases = ("--cases", ",".join(CASES[1:]))
    assert compiling.run(*cases).ret == 0
    (compiling.path / f"cache/{CASES[1]}_viz").unlink()  # somebody emptied the cache
    assert compiling.run("--lf", *cases).ret == 0
    assert len(compiling.compiles()) == 1, "nothing was left to run"
    assert compiling.run("--resume-skip-status", "none", *cases).ret == 0
    assert set(compiling.compiles()[1]["runs"]) == {f"{CASES[1]}/{stage}" for stage in VIEW_STAGES}


def test_compiling_ends_with_an_interrupted_session(compiling):
    (compiling.path / "slow").touch()
    session = compiling.start("-n", "2")
    wait_for(lambda: (compiling.path / "compiles.jsonl").exists())
    guards = descendants(session.pid)
    session.send_signal(signal.SIGINT)
    assert session.wait(30) == pytest.ExitCode.INTERRUPTED and not compiling.calls()
    assert not [pid for pid in guards if alive(pid)]


def test_cases_run_where_nothing_could_be_compiled_ahead(compiling):
    (compiling.path / "broken").touch()
    result = compiling.run("--cases", TRAINED)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["kernels: could not be compiled ahead (failed: *); the cases compile for themselves*"])


# --- how long it takes


def case(name, trainable=True):
    return Case(name, f"args/{name}_args.txt", trainable, 8, "train", "", "", "agent.yaml" if trainable else "")


@pytest.fixture
def estimate():
    """Two cases at once on two cores; add_smpl costs 3."""
    profile = SimpleNamespace(stage_seconds={"probe_train": 10, "long_train": 100, "test": 10, "viz": 10,
                                             "bootstrap_train": 5})
    costs = {"add_smpl": 3.0}
    settings = SimpleNamespace(pool=("cpu", "cpu"), profile=profile, profile_name="smoke", resume_skip_status="ok",
                               stages=lambda case: case.stages, cost=lambda case: costs.get(case.name, 1.0))
    return Estimate(settings, workers=2, cores=2)


def ended(name, stage, seconds, outcome="ok"):
    about = {"case": name, "variant": "default", "num_envs": 8, "stage": stage, "fingerprint": "f", "afresh": False,
             "devices": [], "degraded": False, "folder": "", "time": 0.0, "started": 0.0}
    return [{"event": "stage_start", **about}, {"event": "stage_end", **about, "elapsed_s": seconds, "outcome": outcome,
                                                "failure_class": ""}]


CASES_OF_IT = [case("add_smpl"), case("amp_humanoid"), case("view_motion_smpl", trainable=False)]


def test_costs_make_the_first_estimate(estimate):
    """330 + 130 + 25 s: two at once take as long as the longest; three workers' shares of two cores are smaller."""
    assert estimate.left(CASES_OF_IT, State(), set(), {}, {}) == 330.0
    assert estimate.left(CASES_OF_IT[1:], State(), set(), {}, {}) == 130.0
    assert estimate.left([*CASES_OF_IT[1:], case("a"), case("b")], State(), set(), {}, {}) == (3 * 130 + 25) / 2
    assert "costs in targets.yaml" in estimate.basis(CASES_OF_IT, State())


def test_what_was_recorded_counts_more(estimate):
    """Where a stage took twice as long as planned, the others will too; what has ended is not waited for."""
    state = replay(ended("amp_humanoid", "probe_train", 20.0))
    assert estimate.left(CASES_OF_IT[1:2], state, set(), {}, {}) == 2 * 120.0
    assert estimate.basis(CASES_OF_IT[1:2], state).startswith("1 of 4 stages as they went before")
    running = {("amp_humanoid", "long_train"): None}
    ages = {("amp_humanoid", "long_train"): 50.0}
    assert estimate.left(CASES_OF_IT[1:2], state, set(), running, ages) == 150.0 + 40.0
    assert estimate.left(CASES_OF_IT[1:2], state, set(), {("amp_humanoid", "long_train"): 7.0}, ages) == 7.0 + 40.0
    late = {("amp_humanoid", "long_train"): 400.0}
    assert estimate.left(CASES_OF_IT[1:2], state, set(), running, late) == 100.0 + 20.0 * (20 + 500) / 110
    state.touched.add("amp_humanoid")
    assert estimate.left(CASES_OF_IT[1:2], state, set(), {}, {}) == 0.0
    estimate.settings.resume_skip_status = "none"
    state.touched.clear()
    assert estimate.left(CASES_OF_IT[1:2], state, set(), {}, {}) == 20.0 + 240.0, "everything is run again"


# --- the line


def progress(count):
    run = {"stage": "long_train", "phase": "training", "samples": 450, "max_samples": 1000, "samples_per_s": 88000.0,
           "eta_s": 9.0, "rung": "tuned_e8", "since": 0.0}
    return {"done": 3, "total": 32, "waiting": {}, "running": [{**run, "case": f"add_case_{i}"} for i in range(count)]}


@pytest.mark.parametrize("columns", [40, 79, 120, None])
def test_a_line_fits_and_says_how_much_is_done(columns):
    ages = {(f"add_case_{i}", "long_train"): 72.0 for i in range(8)}
    line = report.live_line(progress(8), ages, 760.0, columns)
    assert line.startswith("[3/32] about 12:40 left | ")
    if columns is None:
        assert line.count("45%, 1:12, 88.0k/s") == 8
    elif columns > 50:
        assert len(line) <= columns and line.endswith(" more")
    assert report.live_line(progress(0), {}, 0.0, columns) == ""


def test_a_phase_is_told_where_nothing_is_counted_yet():
    told = progress(1)
    told["running"][0] |= {"phase": "waiting for kernels", "samples": None, "samples_per_s": None}
    assert "add_case_0 long_train (waiting for kernels), 0:00" in report.live_line(told, {}, 5.0, None)


def test_a_file_gets_a_line_a_minute_and_what_has_ended(monkeypatch):
    now, looks = [0.0], iter([("a", []), ("b", []), ("c", ["one ended"]), ("d", []), ("", ["two ended"])])
    monkeypatch.setattr("mimickit.longcycle.live.time.monotonic", lambda: now[0])
    file = io.StringIO()
    live = LiveLine(lambda columns: next(looks), file)
    for seconds in (0.0, 30.0, 45.0, 61.0, 70.0):
        now[0] = seconds
        live.show()
    assert file.getvalue() == "\na\none ended\nd\ntwo ended\n"


def test_a_terminal_gets_one_line_that_fits():
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    looks = iter([("a" * 50, []), ("b", ["case ended"]), ("c", [])])
    with os.fdopen(follower, "w", buffering=1) as terminal:
        live = LiveLine(lambda columns: next(looks), terminal)
        for _ in range(3):
            live.show()
        text = os.read(leader, 1000).decode()
    os.close(leader)
    assert text == "\r\n" + "a" * 19 + "\r\x1b[Kcase ended\r\nb\r\x1b[Kc"


def test_a_stage_that_is_tried_again_begins_anew(tmp_path, estimate, monkeypatch):
    """What is told and estimated of it is the new attempt's time, not that of both."""
    clock = [0.0]
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    ledger = Ledger(tmp_path, tmp_path)
    ledger.append("session_start", cases=["amp_humanoid"])
    watch = SessionProgress(ledger, CASES_OF_IT[1:2], estimate)
    about = {"key": {}, "out_dir": "x", "log": "x", "started": 0.0}
    start, end = ({**event, **about} for event in ended("amp_humanoid", "probe_train", 20.0, "failed"))
    for event in (start, end):
        del event["time"]
    ledger.append(**start)
    watch.look(80)
    clock[0] = 20.0
    assert "probe_train, 0:20" in watch.look(80)[0]
    ledger.append(**end)
    ledger.append(**start)
    assert "probe_train, 0:00" in watch.look(80)[0]
    clock[0] = 25.0
    assert "probe_train, 0:05" in watch.look(80)[0]
