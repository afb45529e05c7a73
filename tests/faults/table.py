"""Provokes real faults in real runs of the acceptance suite and measures what becomes of them.

    python -m tests.faults.table                                    every fault the CPU can have
    python -m tests.faults.table --faults dead_rank,hang --out faults.jsonl
    python -m tests.faults.table --devices cuda:0,cuda:1 --brief    on two GPUs; ends a run once its next stage starts

For each fault: a project of links to this one is made in a scratch folder, one case runs through the suite with
``faulty_run.py`` as its runner, the ledger is read, and what is left behind is looked for. Then the cause is removed
and ``--lf`` has to bring the case to its end. Prints a table; exit code 1 when a row is not what it has to be.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from mimickit.longcycle.ladder import MEMORY, TRANSIENT
from mimickit.longcycle.ledger import Ledger
from mimickit.request_reader import read_devices
from mimickit.util.args import Args
from mimickit.util.failures import EXIT_USER_ERROR, UserError
from tests.faults.faulty_run import CGROUP, ROOT, Fault
from tests.faults.single_stage import processes_left

CASE = "deepmimic_humanoid_ppo"
ROOT_OUT = "faults"
CLIP = "data/motions/humanoid/humanoid_spinkick.pkl"
STEPS = 8  # per iteration
DISK_MIB = 192  # size of the small disk
SESSION_TIMEOUT = 400.0  # s
MAIN_STACK = re.compile(r"line \d+ in <module>")  # faulthandler's last line of a main thread (a traceback has a comma)


@dataclass(frozen=True)
class Scenario:
    """A fault, and what has to become of it.

    Attributes:
        fault: injected into the run program; None: the project itself is spoilt before it starts.
        failure_class: as recorded; ``interrupted`` for a session that was ended.
        needs: ``gpu``, ``ranks`` (two processes), ``cgroup`` (the right to make control groups), ``mount``.
        to_session: signal for pytest itself, sent when the fault's line appears in the journal.
        spoil: context manager that does something to the project until the cause is removed.
    """

    fault: Fault | None
    failure_class: str
    needs: frozenset[str] = frozenset()
    to_session: int | None = None
    spoil: Callable[[Project], contextlib.AbstractContextManager[None]] = lambda project: contextlib.nullcontext()

    @property
    def then(self) -> str:
        """What the suite does next by itself: ``smaller`` rung, the same ``again``, or the case's ``end``."""
        if self.failure_class in MEMORY:
            return "smaller"
        return "again" if self.failure_class in TRANSIENT else "end"


@contextlib.contextmanager
def without_clip(project: Project) -> Iterator[None]:
    clip = project.path / CLIP
    aside = clip.with_suffix(".aside")
    clip.rename(aside)
    yield
    aside.rename(clip)


@contextlib.contextmanager
def small_disk(project: Project) -> Iterator[None]:
    """A file system of its own for all output; the cause is removed by removing what fills it."""
    output = project.path / "output"
    output.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(output)], check=True)
    project.undo.callback(subprocess.run, ["umount", "-l", str(output)], check=True)
    yield
    (output / "filler").unlink()


RANKS = frozenset({"ranks"})
SCENARIOS: dict[str, Scenario] = {
    "host_oom": Scenario(Fault("host_oom", when="engine", stage="probe_train", rank=None), "oom_host"),
    "host_oom_one_rank": Scenario(Fault("host_oom"), "oom_host", RANKS),
    "oom_killer": Scenario(Fault("oom_killer"), "oom_host", frozenset({"ranks", "cgroup"})),
    "gpu_oom_physics": Scenario(
        Fault("gpu_oom_physics", when="engine", stage="probe_train", rank=None), "oom_gpu", frozenset({"gpu"})),
    "gpu_oom_learning": Scenario(
        Fault("gpu_oom_learning", when="agent", stage="probe_train", rank=None), "oom_gpu", frozenset({"gpu"})),
    "device_assert": Scenario(Fault("device_assert"), "cuda_fault", frozenset({"gpu"})),
    "illegal_access": Scenario(Fault("illegal_access"), "cuda_fault", frozenset({"gpu"})),
    "connection_cut": Scenario(Fault("cut"), "nccl", RANKS),
    "rank_exits": Scenario(Fault("exit"), "nccl", RANKS),
    "dead_rank": Scenario(Fault("kill_rank"), "preempted", RANKS),
    "crashed_rank": Scenario(Fault("crash"), "failed", RANKS),
    "stopped_rank": Scenario(Fault("stop_rank"), "hang"),
    "hang": Scenario(Fault("hang"), "hang"),
    "nan": Scenario(Fault("nan"), "nan"),
    "overflow": Scenario(Fault("overflow", when="engine", stage="test", rank=0), "overflow"),
    "missing_clip": Scenario(None, "asset_missing", spoil=without_clip),
    "disk_full": Scenario(Fault("fill_disk", rank=0), "disk", frozenset({"mount"}), spoil=small_disk),
    "file_limit": Scenario(Fault("small_files", rank=0), "disk"),
    "preempted": Scenario(Fault("preempt", rank=0), "preempted"),
    "trainer_killed": Scenario(Fault("kill_trainer", rank=0), "preempted"),
    "guard_killed": Scenario(Fault("kill_guard", rank=0), "preempted"),
    "session_sigint": Scenario(Fault("note", rank=0), "interrupted", to_session=signal.SIGINT),
    "session_sigterm": Scenario(Fault("note", rank=0), "interrupted", to_session=signal.SIGTERM),
    "session_sigkill": Scenario(Fault("note", rank=0), "interrupted", to_session=signal.SIGKILL),
}

@dataclass
class Row:
    """What became of one fault. Times in s from the fault (a spoilt project: from the stage's start).

    Attributes:
        end_s: until the failed stage's end was recorded; gone_s: until no process of the session is left, where the
            session itself was ended.
        then: ``smaller``, ``again``, ``end``, as the suite went on by itself.
        lost_samples: collected before the fault and not in the checkpoint that training went on from, in this session
            or after ``--lf``.
        processes_left, gpu_left_mib: after the session; stacks: processes whose stacks are in the log.
        lf: outcome after the cause was removed: ``passed``, ``failed`` or ``not run``.
        problems: what differs from what has to be.
    """

    fault: str
    devices: str
    failure_class: str = ""
    message: str = ""
    stage: str = ""
    end_s: float | None = None
    gone_s: float | None = None
    then: str = ""
    samples_per_iteration: list[int] = field(default_factory=list)
    degraded: bool = False
    lost_samples: int | None = None
    processes_left: int = 0
    gpu_left_mib: int | None = None  # None: not measured
    stacks: int = 0
    stray_files: list[str] = field(default_factory=list)
    lf: str = "not run"
    lf_stages: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    problems: list[str] = field(default_factory=list)


class Project:
    """A folder of links to this checkout, in which the suite runs a case, or some, with small sizes."""

    def __init__(self, path: Path, devices: list[str], options: argparse.Namespace,
                 cases: Sequence[str] = (CASE,)) -> None:
        self.path, self.devices, self.options, self.cases = path, devices, options, cases
        self.out = path / "output/train" / ROOT_OUT
        self.ledger = Ledger(self.out, path)
        self.fault_file = path / "fault.json"
        self.journal_file = path / "fault.jsonl"
        self.undo = contextlib.ExitStack()
        for folder, _, names in os.walk(ROOT / "data"):
            target = path / Path(folder).relative_to(ROOT)
            target.mkdir(parents=True)
            for name in names:
                (target / name).symlink_to(Path(folder, name))
        args = [("args", f"{case}_args.txt") for case in cases]
        for folder, name in (*args, ("tests/acceptance", "test_longcycle.py")):
            (path / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / folder / name, path / folder)
        (path / "pytest.ini").write_text('[pytest]\ntestpaths = tests\nmarkers =\n    longcycle: a case\n')
        (path / "conftest.py").write_text('pytest_plugins = ["mimickit.longcycle.plugin"]\n')
        (path / "profiles.yaml").write_text(yaml.safe_dump(self.profiles()))

    @property
    def samples_per_iteration(self) -> int:
        return self.options.num_envs * STEPS * len(self.devices)

    def profiles(self) -> dict[str, Any]:
        data = yaml.safe_load((ROOT / "tests/acceptance/profiles.yaml").read_text())
        options, per_iteration = self.options, self.samples_per_iteration
        data["profiles"]["smoke"].update({
            "env_ladder": [options.num_envs, options.num_envs // 2], "long_max_samples": 8 * per_iteration,
            "output_samples": 2 * per_iteration, "max_episode_steps": 20, "video_width": 160, "video_height": 120,
            "hang_seconds": options.hang_seconds, "stop_grace": options.grace,
            **dict.fromkeys(("probe_timeout", "long_timeout", "test_timeout", "viz_timeout"), 300),
        })
        return data

    def start(self, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "pytest", "-m", "longcycle", "--longcycle-profile", "smoke",
                   "--longcycle-profiles", "profiles.yaml", "--root-out", ROOT_OUT, "--cases", ",".join(self.cases),
                   "--devices-train", ",".join(self.devices),
                   "--runner", f"{{python}} {ROOT / 'tests/faults/faulty_run.py'}", *more]
        search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with (self.path / "session.txt").open("ab") as output:
            return subprocess.Popen(command, cwd=self.path, stdout=output, stderr=subprocess.STDOUT,
                                    env={**os.environ, "PYTHONPATH": search, "FAULT_FILE": str(self.fault_file)})

    def journal(self, event: str) -> list[dict[str, Any]]:
        lines = self.journal_file.read_text().splitlines() if self.journal_file.exists() else []
        return [entry for line in lines if (entry := json.loads(line))["event"] == event]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.ledger.events() if event["event"] == kind]


# --- one fault --------------------------------------------------------------------------------------------------------


def run_scenario(name: str, scenario: Scenario, project: Project) -> Row:
    """Provoke the fault, wait for the session's end, remove the cause, continue with ``--lf``."""
    row, brief = Row(name, ",".join(project.devices)), project.options.brief
    begin, memory = time.monotonic(), gpu_memory(project.devices)
    fault = adapted(scenario, project)
    with scenario.spoil(project):
        if fault is not None:
            project.fault_file.write_text(json.dumps(asdict(fault)))
        seen_enough = (lambda: went_on_after_failure(project)) if brief and not scenario.to_session else None
        wait(project.start(), project, scenario.to_session, seen_enough)
        row.processes_left = settled(lambda: len(processes_left(project.fault_file)))
        if scenario.to_session:
            row.gone_s = round(time.monotonic() - project.journal("fault")[0]["monotonic"], 1)
        row.gpu_left_mib = settled(lambda: grown(memory, gpu_memory(project.devices))) if memory else None
        project.fault_file.unlink(missing_ok=True)
    before = len(project.events("stage_start"))
    if scenario.to_session != signal.SIGKILL:
        describe_end(row, scenario, project)
    if brief and scenario.to_session:
        wait(project.start("--lf"), project, None, lambda: len(project.journal("start")) > 2)  # probe, long, again
    elif not brief:
        row.lf = "passed" if wait(project.start("--lf"), project) == 0 else "failed"
        row.lf_stages = [event["stage"] for event in project.events("stage_start")[before:]]
    if scenario.to_session == signal.SIGKILL:  # what the killed session could not record
        describe_end(row, scenario, project)
    row.lost_samples = lost_samples(project)
    row.stray_files = sorted({path.name for path in project.out.rglob(".*") if ".tmp" in path.name})
    row.wall_s = round(time.monotonic() - begin, 1)
    row.problems = problems(row, scenario, project)
    if project.options.keep:
        print(f"  files in {project.path}")
    return row


def adapted(scenario: Scenario, project: Project) -> Fault | None:
    """The fault at this run's sizes: memory runs out above half the environments; ranks that are there."""
    fault, changes = scenario.fault, {}
    if fault is None:
        return None
    if scenario.failure_class in MEMORY:
        changes.update(above_envs=project.options.num_envs // 2, times=10**6)
    if fault.rank is not None:
        changes["rank"] = min(fault.rank, len(project.devices) - 1)
    if project.options.brief and fault.stage == "long_train" and not scenario.to_session:
        changes.update(stage="probe_train", iteration=2)
    return replace(fault, **changes)


def wait(session: subprocess.Popen, project: Project, number: int | None = None,
         seen_enough: Callable[[], bool] | None = None) -> int:
    """Wait for a session's end; its exit code. ``number``: sent to it when the fault is there; ``seen_enough``: ends
    it by SIGTERM when true.
    """
    deadline, line = time.monotonic() + SESSION_TIMEOUT, ""
    while session.poll() is None:
        assert time.monotonic() < deadline, f"the session did not end: {project.path}"
        if number is not None and project.journal("fault"):
            session.send_signal(number)
            number = None
        if seen_enough is not None and seen_enough():
            session.send_signal(signal.SIGTERM)
            seen_enough = None
        line = report_progress(project, line)
        time.sleep(0.05)
    return session.returncode


def went_on_after_failure(project: Project) -> bool:
    """Whether a stage has failed and another has been started."""
    kinds = [(event["event"], event.get("outcome")) for event in project.ledger.events()]
    return ("stage_end", "failed") in kinds and kinds[-1][0] == "stage_start"


def report_progress(project: Project, last: str) -> str:
    events = project.ledger.events()
    if not events or events[-1]["event"] not in ("stage_start", "stage_end"):
        return last
    event = events[-1]
    about = "" if event["event"] == "stage_start" else f": {event['outcome']} {event['failure_class']}"
    line = f"  {event['stage']} e{event['num_envs']}{about}"
    if line != last:
        print(line, flush=True)
    return line


def settled(measure: Callable[[], int], seconds: float = 10.0) -> int:
    """The value once it is 0, or after some patience: the kernel takes a moment to clean up."""
    deadline = time.monotonic() + seconds
    while (value := measure()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def describe_end(row: Row, scenario: Scenario, project: Project) -> None:
    """Fill in how the fault's stage ended, and how the suite went on."""
    ends = [event for event in project.events("stage_end") if event["outcome"] != "ok"]
    cases = project.events("case_end")
    faults = project.journal("fault")
    if ends:
        end = ends[0]
        row.failure_class, row.message = end["failure_class"] or end["outcome"], without_folders(end["message"])
        row.stage = end["stage"]
        row.end_s = round(end["time"] - (faults[0]["time"] if faults else end["started"]), 1)
        if scenario.to_session == signal.SIGKILL:
            row.end_s = None  # recorded by the next session
        with (project.path / end["log"]).open(errors="replace") as log:
            row.stacks = sum(bool(MAIN_STACK.search(line)) for line in log)
        after = [e for e in project.events("stage_start") if e["time"] > end["time"]]
        session_end = next((e["time"] for e in project.events("session_end") if e["time"] > end["time"]), math.inf)
        row.then = "" if scenario.to_session else went_on(end, [e for e in after if e["time"] < session_end])
    elif cases:
        end = cases[0]
        verdict = end["row"]
        row.failure_class, row.message = verdict["failure_class"], without_folders(verdict["message"])
        row.stage, row.then = verdict["failed_stage"], "end"
        row.end_s = round(end["time"] - faults[0]["time"], 1) if faults else None
    row.degraded = bool(cases) and bool(cases[0]["row"]["degraded"])
    row.samples_per_iteration = [samples_per_iteration(path) for path in sorted(
        project.out.glob("runs/*/*/*_train/run_config.yaml"), key=lambda path: path.stat().st_mtime)]


def without_folders(text: str) -> str:
    """Absolute paths as file names alone."""
    return re.sub(r"(?<![\w.])/[^\s:'\]]*/", "", text)


def went_on(end: dict[str, Any], after: list[dict[str, Any]]) -> str:
    if not after:
        return "end"
    same = after[0]["stage"] == end["stage"] and after[0]["num_envs"] == end["num_envs"]
    return "again" if same else "smaller" if after[0]["num_envs"] < end["num_envs"] else "on"


def samples_per_iteration(run_config: Path) -> int:
    data = yaml.safe_load(run_config.read_text())
    return data["agent"]["steps_per_iter"] * data["world_size"] * int(data["args"]["num_envs"][0])


def lost_samples(project: Project) -> int | None:
    """Samples at the fault that training had to collect again; None where training was not hit."""
    faults = project.journal("fault")
    if not faults or faults[0]["samples"] is None:
        return None
    again = [entry for entry in project.journal("start") if entry["time"] > faults[0]["time"]]
    return max(faults[0]["samples"] - again[0]["samples"], 0) if again else None


def problems(row: Row, scenario: Scenario, project: Project) -> list[str]:
    """What is not as it has to be."""
    found, brief = [], project.options.brief

    def expect(what: str, value: Any, wanted: Any) -> None:
        if value != wanted:
            found.append(f"{what} is {value!r}, not {wanted!r}")

    expect("class", row.failure_class, scenario.failure_class)
    if scenario.to_session is None:
        expect("then", row.then, scenario.then)
    expect("processes left", row.processes_left, 0)
    expect("GPU memory left", row.gpu_left_mib or 0, 0)
    if not brief:  # the next checkpoint removes them
        expect("files left half written", row.stray_files, [])
    if scenario.failure_class == "hang":
        expect("processes whose stacks are in the log", row.stacks, len(project.devices))
    if not brief:
        expect("--lf", row.lf, "passed")
    if set(row.samples_per_iteration) - {project.samples_per_iteration}:
        found.append(f"samples per iteration {row.samples_per_iteration}, not {project.samples_per_iteration}")
    if scenario.then == "smaller" and not brief:
        expect("degraded", row.degraded, True)
    lost = 0 if scenario.then == "smaller" else row.lost_samples or 0  # a smaller rung begins anew
    if lost > 2 * project.samples_per_iteration:
        found.append(f"{lost} samples lost, though checkpoints come every second iteration")
    return found


# --- machine ----------------------------------------------------------------------------------------------------------


def abilities(devices: list[str]) -> set[str]:
    """What this machine can have, in the words of Scenario.needs."""
    has = set()
    if devices[0].startswith("cuda"):
        has.add("gpu")
    if len(devices) > 1:
        has.add("ranks")
    if os.geteuid() == 0:
        has.add("mount")
        v2 = (CGROUP / "cgroup.controllers").exists()
        group = (CGROUP if v2 else CGROUP / "memory") / f"faults_table_{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / ("memory.max" if v2 else "memory.limit_in_bytes")).exists():
                has.add("cgroup")
            group.rmdir()
    return has


def remove_groups() -> None:
    """The control groups of processes that the memory killer took."""
    for group in [*CGROUP.glob("faulty_run_*"), *CGROUP.glob("memory/faulty_run_*")]:
        with contextlib.suppress(OSError):  # somebody lives in it
            group.rmdir()


def grown(before: list[int], after: list[int]) -> int:
    """The largest growth in MiB, in steps of 16."""
    return max(b - a for a, b in zip(before, after)) // 16 * 16


def gpu_memory(devices: list[str]) -> list[int]:
    """MiB in use on each of the GPUs; empty on the CPU, or where nvidia-smi is missing."""
    numbers = ",".join(name.partition(":")[2] for name in devices if name.startswith("cuda"))
    if not numbers or shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", f"--id={numbers}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                          capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


# --- table ------------------------------------------------------------------------------------------------------------


def markdown(rows: list[Row]) -> str:
    """The rows as a table for people."""
    lines = ["| fault | class | end (s) | then | lost samples | left | --lf |", "|" + " --- |" * 7]
    for row in rows:
        left = f"{row.processes_left} processes" + (f", {row.gpu_left_mib} MiB" if row.gpu_left_mib else "")
        seconds = row.end_s if row.end_s is not None else row.gone_s
        lf = f"{row.lf}: {', '.join(row.lf_stages)}" if row.lf_stages else row.lf
        cells = (row.fault, row.failure_class, seconds, row.then, row.lost_samples, left, lf)
        lines.append(f"| {' | '.join('-' if cell is None else str(cell) for cell in cells)} |")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.table", description=__doc__.split("\n")[0])
    parser.add_argument("--faults", metavar="A,B",
                        help=f"of {', '.join(SCENARIOS)} (default: all this machine can have)")
    parser.add_argument("--devices", default="cpu,cpu", metavar="D,D", help="training devices: cpu or cuda:N (cpu,cpu)")
    parser.add_argument("--num-envs", type=int, default=8, metavar="N", help="worlds per device, at least 2 (8)")
    parser.add_argument("--hang-seconds", type=float, default=15.0, metavar="S", help="longest silence (15)")
    parser.add_argument("--grace", type=float, default=10.0, metavar="S", help="s from SIGTERM to SIGKILL (10)")
    parser.add_argument("--brief", action="store_true",
                        help="hit probe_train; end a session once it went on to its next stage; no --lf then")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append one JSON line a fault")
    parser.add_argument("--keep", action="store_true", help="keep the scratch folders")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and its children do
    try:
        devices, names = check(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    rows = []
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}", flush=True)
        scratch = Path(tempfile.mkdtemp(prefix="faults_"))
        project = Project(scratch / "project", devices, options)
        try:
            row = run_scenario(name, SCENARIOS[name], project)
        finally:
            project.undo.close()
            remove_groups()
            if not options.keep:
                shutil.rmtree(scratch)
        rows.append(row)
        verdict = "as it has to be" if not row.problems else f"WRONG: {'; '.join(row.problems)}"
        print(f"  {row.failure_class} after {row.end_s} s ({row.message}); {verdict}", flush=True)
        if options.out is not None:
            write_row(options.out, row, options)
    print(f"\n{markdown(rows)}")
    return 1 if any(row.problems for row in rows) else 0


def check(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The devices and the faults that the options ask for.

    Raises:
        UserError: the suite could not run with the options, or this machine cannot have a fault.
    """
    devices = list(read_devices(Args({"devices": tuple(options.devices.split(","))})))
    if options.num_envs < 2:  # the ladder's next rung has half of them
        raise UserError(f"--num-envs {options.num_envs}: at least 2")
    has = abilities(devices)
    names = options.faults.split(",") if options.faults else [n for n, s in SCENARIOS.items() if s.needs <= has]
    for name in names:
        if name not in SCENARIOS:
            raise UserError(f"--faults {name}: allowed are {', '.join(SCENARIOS)}")
        if missing := SCENARIOS[name].needs - has:
            raise UserError(f"--faults {name} needs {', '.join(sorted(missing))}, which is not here")
    return devices, names


def write_row(path: Path, row: Row, options: argparse.Namespace) -> None:
    from mimickit.run import versions

    about = {
        "date": datetime.date.today().isoformat(), "case": CASE, "num_envs": options.num_envs, "steps_per_iter": STEPS,
        "hang_seconds": options.hang_seconds, "grace": options.grace, "brief": options.brief,
        "cpus": os.cpu_count(), "system": platform.system(), "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**asdict(row), **about}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
