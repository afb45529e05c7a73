"""Run a stage as a process group of its own, watch it, and tell how it ended from its exit code and its files."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mimickit.longcycle import guard
from mimickit.util.alive import WAITING
from mimickit.util.failures import EXIT_USER_ERROR, FAILURE_CLASSES, classify, read_failures, root_cause
from mimickit.util.files import read_json
from mimickit.util.manifest import describe_file
from mimickit.util.processes import WATCHED

Outcome = Literal["ok", "failed", "interrupted", "not_run"]
POLL = 0.05  # s
KILL_WAIT = 15.0  # s for the guard to kill everything below it
TERM_WAIT = 10.0  # s between SIGTERM and SIGKILL of a training that outlived its grace
TAIL_LINES = 15
USED_UP = ("budget", "used up")
BUDGET_REACHED, GRACE_TERM, FORCE_KILL = "long_budget_reached_", "long_budget_grace_term", "long_budget_force_kill"

NO_SPACE = 2**20  # bytes; with less the disk counts as full
KILLED, ENDED = 128 + signal.SIGKILL, (128 + signal.SIGTERM, 128 + signal.SIGINT)
CRASHES = {128 + s: s.name for s in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)}

# Last resort, for processes that died before they could write failures/rank_<r>.json: (pattern in the log, class).
LOG_SIGNS = (
    *((rf"^error \({name}\): .*", name) for name in FAILURE_CLASSES),  # the run program's own message
    (r"^error: .* is in use by .*: wait for it", "preempted"),  # by the rest of an attempt that was killed
    (r"CUDA out of memory|cuda.*failed to allocate|CUDA_ERROR_OUT_OF_MEMORY|CUDA error( 2)?: out of memory", "oom_gpu"),
    (r"MemoryError|[Cc]an(no|')t allocate memory|bad_alloc", "oom_host"),
    (r"illegal memory access|device-side assert|CUDA_ERROR_|CUDA error", "cuda_fault"),
    # The driver crashes when the next graph is launched before the fault of an earlier kernel was told (H200, 580.159).
    (r"^Fatal Python error: .*(?=(?:\n.*)*?\nCurrent thread .*\n  File \".*/torch/cuda/)", "cuda_fault"),
    (r"NCCL (error|WARN)|ncclUnhandled|ProcessGroupNCCL.*(timeout|aborted)|third_party/gloo/", "nccl"),
    (r"No space left on device|Disk quota exceeded", "disk"),
)


@dataclass(frozen=True)
class TimeBudget:
    """The hours of a training: after ``seconds`` it is sent ``signal`` and has ``grace`` seconds to end, then it
    gets SIGTERM and ``TERM_WAIT`` more.

    They count from the start of the process, but the signal waits until training has begun.
    """

    seconds: float
    signal: str  # SIGINT or SIGTERM
    grace: float

    def used_up(self, elapsed: float, spec: StageSpec) -> bool:
        return elapsed > self.seconds and "samples" in read_json(spec.out_dir / "progress.json")


@dataclass(frozen=True)
class StageSpec:
    """What to run and how to watch it.

    Attributes:
        stage: name of the stage.
        argv: the command; cwd: where it runs; env: what is added to the environment.
        out_dir: the stage's own folder; log: its log file, appended to; result_file: what it writes at the end.
        mode: ``train`` or ``test``; the result must say the same.
        timeout: s, 0 for none; hang_seconds: oldest heartbeat allowed, 0 for any.
        startup_seconds: longest silence of a process that has not yet joined the others; 0 for any.
        ranks: processes that must give signs of life.
        key: what the outcome depends on; an earlier outcome under another key does not count.
        budget: hours after which a training ends.
    """

    stage: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    out_dir: Path
    log: Path
    result_file: Path
    mode: str
    timeout: float
    hang_seconds: float
    startup_seconds: float
    ranks: int
    grace: float
    key: Mapping[str, Any] = field(default_factory=dict)
    budget: TimeBudget | None = None


@dataclass(frozen=True)
class StageResult:
    """How a stage ended. ``result``: content of its result file, or {}; ``stop_reason``: see :func:`end_budget`."""

    stage: str
    outcome: Outcome
    failure_class: str = ""
    message: str = ""
    rc: int | None = None
    elapsed_s: float = 0.0
    result: Mapping[str, Any] = field(default_factory=dict)
    log: str = ""
    tail: str = ""
    reused: bool = False
    stop_reason: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    def to_event(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_event(cls, event: Mapping[str, Any], reused: bool = False) -> StageResult:
        known = {name: event[name] for name in cls.__dataclass_fields__ if name in event}
        return cls(**{**known, "reused": reused})


def run_stage(spec: StageSpec, record: Callable[[StageResult], None],
              stop_requested: Callable[[], bool] = lambda: False) -> StageResult:
    """Run a stage to its end.

    ``record`` is called exactly once, also when waiting is interrupted (Ctrl-C, SIGTERM, pytest-timeout): then the
    stage gets SIGTERM and ``grace`` seconds to write a checkpoint, whatever is left is killed, the outcome is
    ``interrupted``, and the interruption is raised again. ``stop_requested`` returning True counts as Ctrl-C.
    """
    begin, oom_before = time.monotonic(), oom_kills()
    try:
        prepare(spec)
        offset = log_header(spec)
        process = start(spec)
    except OSError as error:
        not_started = StageResult(spec.stage, "failed", classify(error), f"could not be started: {error}")
        record(not_started)
        return not_started
    except BaseException as interruption:
        record(StageResult(spec.stage, "interrupted", message=f"stopped by {type(interruption).__name__}"))
        raise

    stop_reason = ""

    def finish(outcome: Outcome, failure_class: str, message: str) -> StageResult:
        done = StageResult(spec.stage, outcome, failure_class, message, exit_code(process.returncode),
                           round(time.monotonic() - begin, 2), read_json(spec.result_file), str(spec.log),
                           log_tail(spec.log, offset), stop_reason=stop_reason)
        record(done)
        return done

    try:
        ending = watch(process, spec, stop_requested)
        if ending == USED_UP:
            ending, stop_reason = None, end_budget(process, spec.budget, stop_requested)
        if ending is not None:
            ending = with_stopped(*ending, process)
            guard.dump_stacks(process.pid)
            time.sleep(0.5)
            stop(process, spec.grace)
        kill(process)
        guard.kill_stage(spec.out_dir)  # what a killed guard left; the files are judged afterwards
    except BaseException as interruption:
        stop(process, spec.grace)
        guard.kill_stage(spec.out_dir)
        finish("interrupted", "", f"stopped by {str(interruption) or type(interruption).__name__}")
        raise
    if ending is not None:
        return finish("failed", *ending)
    if stop_reason in (GRACE_TERM, FORCE_KILL):
        return finish("failed", "timeout", f"its hours were used up, but it did not end within {spec.budget.grace:g} s "
                                           f"of {spec.budget.signal} ({stop_reason})")
    asked = stop_reason.startswith(BUDGET_REACHED)
    return finish(*judge_end(spec, process.returncode, offset, oom_kills() > oom_before, asked))


def end_budget(process: subprocess.Popen, budget: TimeBudget, stop_requested: Callable[[], bool]) -> str:
    """Send the signal for used-up hours, wait for the end, and return how the training ended.

    ``long_budget_reached_<SIGNAL>``, ``long_budget_signal_failed_<SIGNAL>`` (it had just ended by itself),
    ``long_budget_grace_term`` (by the SIGTERM after its grace) or ``long_budget_force_kill``.
    """
    for number, patience, reason in (
        (signal.Signals[budget.signal], budget.grace, f"{BUDGET_REACHED}{budget.signal}"),
        (signal.SIGTERM, TERM_WAIT, GRACE_TERM),
    ):
        if process.poll() is not None:
            return f"long_budget_signal_failed_{budget.signal}"
        process.send_signal(number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if stop_requested():
                raise KeyboardInterrupt
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
                return reason
    kill(process)
    return FORCE_KILL


def start(spec: StageSpec) -> subprocess.Popen:
    """Start the guard, which starts the command."""
    with spec.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, *spec.argv], cwd=spec.cwd,
            env={**os.environ, **spec.env, WATCHED: str(spec.out_dir.absolute())},
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def exit_code(returncode: int) -> int:
    """The command's exit code; 128 + signal where a signal ended the guard itself."""
    return returncode if returncode >= 0 else 128 - returncode


def prepare(spec: StageSpec) -> None:
    """Make the folder; remove what an earlier run of the stage left: processes, result, failures, heartbeats."""
    guard.kill_stage(spec.out_dir)
    spec.out_dir.mkdir(parents=True, exist_ok=True)
    spec.result_file.unlink(missing_ok=True)
    (spec.out_dir / "progress.json").unlink(missing_ok=True)
    for folder in ("failures", "heartbeat"):
        shutil.rmtree(spec.out_dir / folder, ignore_errors=True)


def watch(process: subprocess.Popen, spec: StageSpec, stop_requested: Callable[[], bool]) -> tuple[str, str] | None:
    """Wait for the end; (class, message) on a timeout or hang, ``USED_UP`` when the budget is.

    Time spent waiting for kernels that others compile does not count.
    """
    signs, lost, before = Signs(spec, time.monotonic()), 0.0, time.monotonic()
    while process.poll() is None:
        if stop_requested():
            raise KeyboardInterrupt
        now = time.monotonic()
        signs.look(now)
        lost, before = lost + (now - before if signs.phase == WAITING else 0.0), now
        if spec.timeout and now - signs.begin - lost > spec.timeout:
            return "timeout", f"still running after {spec.timeout:g} s{signs.while_phase}"
        if ending := signs.silence(now):
            return ending
        if spec.budget is not None and spec.budget.used_up(now - signs.begin, spec):
            return USED_UP
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL)
    return None


class Signs:
    """Signs of life of a stage's processes: when their files changed, by this process's monotonic clock.

    Modification times come from the wall clock, which may be set at any time.
    """

    def __init__(self, spec: StageSpec, begin: float) -> None:
        self.spec, self.begin = spec, begin
        self.changed: dict[str, tuple[int, float]] = {}  # a file's modification time, and when it was first seen
        self.phase = ""  # of progress.json

    def look(self, now: float) -> None:
        """Note which files have changed."""
        for path in (*(self.spec.out_dir / "heartbeat").glob("*"), self.spec.out_dir / "progress.json"):
            with contextlib.suppress(OSError):  # not there yet, or just being replaced
                stamp = path.stat().st_mtime_ns
                if self.changed.get(path.name, (None,))[0] != stamp:
                    self.changed[path.name] = stamp, now
                    if path.name == "progress.json":
                        self.phase = str(read_json(path).get("phase") or "")

    @property
    def while_phase(self) -> str:
        """`` (compiling)``, for messages."""
        return f" ({self.phase})" if self.phase else ""

    def silence(self, now: float) -> tuple[str, str] | None:
        """(class, message) when the silence means a hang, or ``no_start`` of a process that never came up."""
        spec = self.spec
        seen = {name: now - since for name, (_, since) in self.changed.items()}
        late = {name: age for name, age in seen.items() if name.startswith("rank_") and age > spec.hang_seconds > 0}
        if late:
            return "hang", (f"no sign of life from {', '.join(sorted(late))} for {max(late.values()):.0f} s"
                            f"{self.while_phase}")
        first = seen.get("start", now - self.begin)  # of the launcher
        silent = [age for rank in range(spec.ranks) if f"rank_{rank}" not in seen
                  and (age := seen.get(f"start_{rank}", first)) > spec.startup_seconds > 0]
        if silent:
            return "no_start", (f"{len(silent)} of {spec.ranks} processes did not start: no sign of life for "
                                f"{max(silent):.0f} s{self.while_phase}")
        return None


def with_stopped(failure_class: str, message: str, process: subprocess.Popen) -> tuple[str, str]:
    """Add to the message which processes were stopped (SIGSTOP, a debugger)."""
    stopped = ", ".join(map(str, guard.descendants(process.pid, states="Tt")))
    return failure_class, f"{message}; stopped by a signal: process {stopped}" if stopped else message


def stop(process: subprocess.Popen, grace: float) -> None:
    """Ask the command to end (SIGTERM), wait up to ``grace`` seconds, kill the rest. A second Ctrl-C kills at once."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(grace)
    except subprocess.TimeoutExpired:
        pass
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """Close the guard's pipe, which makes it kill everything below it; kill the group if even the guard hangs."""
    process.stdin.close()
    try:
        process.wait(KILL_WAIT)
    except subprocess.TimeoutExpired:
        guard.kill_descendants(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def judge_end(spec: StageSpec, rc: int, offset: int, oom_killed: bool, asked: bool = False) -> tuple[Outcome, str, str]:
    """(outcome, failure class, message) of a process that has ended. ``asked``: it was sent a signal to end."""
    result, failures = read_json(spec.result_file), read_failures(spec.out_dir)
    good = rc == 0 or (asked and rc in ENDED)
    if good and not result:
        return "failed", "no_result", f"exit code {rc}, but no readable {spec.result_file.name}"
    if good and result.get("mode") != spec.mode:
        return "failed", "no_result", f"the result is of mode {result.get('mode')!r}, expected {spec.mode!r}"
    if good and result.get("ok") is True:
        return "ok", "", str(result.get("outcome", ""))
    root = root_cause(failures)
    if root is not None and root.get("failure_class") not in ("nccl", "failed"):
        return "failed", *told(root)
    if rc < 0 and not oom_killed:  # the guard itself was killed
        return "failed", "preempted", f"the stage's guard was killed from outside by {signal.Signals(-rc).name}"
    rc = exit_code(rc)
    if rc in ENDED:
        return "failed", "preempted", f"stopped from outside by {signal.Signals(rc - 128).name}"
    if rc == KILLED and oom_killed:
        return "failed", "oom_host", "a process was killed by the system: out of memory"
    if rc == KILLED:
        return "failed", "preempted", "a process was killed from outside by SIGKILL"
    if root is not None and rc not in CRASHES:
        return "failed", *told(root)
    text = log_since(spec.log, offset)
    for pattern, name in LOG_SIGNS:
        if name == "nccl" and rc in CRASHES and rc != 128 + signal.SIGABRT:
            continue  # said by the ranks that lost the crashed one (NCCL and gloo themselves abort)
        if found := re.search(pattern, text, flags=re.MULTILINE):
            return "failed", name, f"exit code {rc}; the log says: {found.group()}"
    if rc != 0 and (free := free_space(spec.out_dir)) < NO_SPACE:
        return "failed", "disk", f"exit code {rc}, and only {free} bytes are free where {spec.out_dir.name} is"
    if rc in CRASHES:
        return "failed", "failed", f"a process crashed ({CRASHES[rc]}), see the log"
    if rc == EXIT_USER_ERROR:
        return "failed", "config", "wrong input, see the log"
    if rc == 0:
        return "failed", "failed", f"the result says ok={result.get('ok')}"
    return "failed", "failed", f"exit code {rc} without a failure file"


def told(failure: Mapping[str, Any]) -> tuple[str, str]:
    """(class, message) of a failure file."""
    name = failure.get("failure_class")
    return name if name in FAILURE_CLASSES else "failed", f"{failure.get('type')}: {failure.get('message')}"


def free_space(path: Path) -> int:
    """Bytes that users may still write to the file system of ``path``."""
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def with_checkpoint_policy(result: StageResult, spec: StageSpec, target_reached: bool) -> StageResult:
    """The ``budget_checkpoint`` policy: training that reached its budget and left a model counts, however it ended.

    Exceptions are failures of the training itself (NaN, memory, wrong input, a full disk).
    """
    forgivable = ("failed", "timeout", "hang", "no_start", "nccl", "cuda_fault", "preempted", "no_result")
    if result.outcome == "failed" and result.failure_class in forgivable and target_reached \
            and (model := spec.out_dir / "model.pt").is_file():
        known = read_json(spec.out_dir / "progress.json")
        return replace(result, outcome="ok", message=f"accepted with a checkpoint at its budget ({result.message})",
                       result={**{name: known.get(name) for name in ("samples", "samples_per_s")}, **result.result,
                               "model": describe_file(model)})
    return result


def log_header(spec: StageSpec) -> int:
    """Append time and command to the log; returns the position where this run's own lines begin."""
    spec.log.parent.mkdir(parents=True, exist_ok=True)
    with spec.log.open("ab") as log:
        settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in spec.env.items())
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        log.write(f"=== {stamp} {spec.stage}: {settings} {shlex.join(spec.argv)}\n".encode())
        return log.tell()


def log_since(path: Path, offset: int, limit: int = 1_000_000) -> str:
    """Text of a log from ``offset``, at most its last ``limit`` bytes."""
    with path.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(offset, end - limit))
        return log.read().decode(errors="replace")


def log_tail(path: Path, offset: int) -> str:
    """The last lines of a log, of this run only."""
    return "\n".join(log_since(path, offset, 20_000).splitlines()[-TAIL_LINES:])


def oom_kills() -> int:
    """Processes that the system has killed for lack of memory since boot; 0 where it does not say."""
    with contextlib.suppress(OSError):
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), flags=re.MULTILINE)
        return int(found.group(1)) if found else 0
    return 0
