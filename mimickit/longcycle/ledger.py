"""The record of a session: ``ledger.jsonl``, one event per line, flushed to disk. Every table is rebuilt from it.

Events (all with ``event``, ``time`` and, except for the session's, ``case``):

* ``session_start``: session, pid, profile, cases (names selected), command
* ``stage_start``, ``stage_end``: variant, num_envs, stage, fingerprint, key, degraded, devices, out_dir, log; the end
  adds the fields of StageResult, and stands for the whole stage where the line of its start is damaged
* ``case_waiting``: all devices the case may use are taken
* ``case_end``: row, the case's line in best_by_case.tsv
* ``case_reused``: the result of an earlier session is kept
* ``session_end``: status
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimickit.longcycle.devices import file_lock
from mimickit.longcycle.events import EventFile, to_line
from mimickit.util.files import read_json, write_json, write_tsv

STAGE_COLUMNS = {"probe": "probe_train", "long": "long_train", "test": "test", "transfer": "transfer", "viz": "viz"}
OLD_COLUMNS = (  # of the runner of MimicKit's reference snapshot (docs/old_runner.md), which come first

    "case", "method", "case_type", "variant", "agent_config", "num_envs", "probe_rc", "probe_ok", "probe_timeout",
    "long_rc", "long_ok", "long_timeout", "long_mode", "long_max_samples", "long_budget_hours",
    "long_budget_target_sec", "long_budget_elapsed_sec", "long_budget_reached", "long_budget_signal",
    "long_stop_reason", "alloc_profile_used", "alloc_variant", "alloc_num_envs", "alloc_agent_config", "alloc_source",
    "test_rc", "test_ok", "viz_rc", "viz_ok", "probe_elapsed_sec", "long_elapsed_sec", "test_elapsed_sec",
    "viz_elapsed_sec", "stage_elapsed_sec", "final_ok", "note", "out_dir", "probe_out_dir", "long_out_dir",
    "probe_train_log", "long_train_log", "test_log", "viz_log",
)
COLUMNS = (
    *OLD_COLUMNS, "learned",
    *(f"{short}_elapsed_s" for short in STAGE_COLUMNS),
    "samples", "samples_per_s", "test_return", "test_episode_length", "test_episodes", "test_measures",
    "transfer_ok", "transfer_episode_length", "transfer_measures",
    "gate_verdict", "gate_detail", "transfer_verdict", "transfer_detail",
    "viz_video", "failed_stage", "failure_class", "message", "degraded", "profile", "finished_at", "key", "session",
)
LEDGER = "ledger.jsonl"
ABOUT = ("variant", "num_envs", "fingerprint", "stage", "started")  # equal in the start and end of a stage


@dataclass
class AttemptState:
    """One attempt: the last event of each of its stages, in order of starting."""

    variant: str
    num_envs: int
    fingerprint: str
    about: dict[str, Any]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    train_seconds: float = 0.0  # of long_train, all sessions together

    def note(self) -> str:
        """``in_progress_probe`` ... ``ok``, or ``<class>_in_<stage>``, ``interrupted_in_<stage>``."""
        if not self.stages:
            return ""
        stage, last = list(self.stages.items())[-1]
        if last["event"] == "stage_start":
            return f"in_progress_{stage.split('_')[0]}"
        if last["outcome"] == "ok":
            return "ok" if stage == "viz" else f"{stage}_done"
        return f"{last['failure_class'] or last['outcome']}_in_{stage}"


@dataclass
class CaseState:
    """One case: its attempts in order, the row of its last recorded end, the running stage, and the devices it
    waits for."""

    attempts: dict[tuple[str, int], AttemptState] = field(default_factory=dict)
    row: dict[str, Any] | None = None
    running: dict[str, Any] | None = None
    waits_for: str = ""

    @property
    def passed(self) -> bool:
        return self.row is not None and str(self.row["final_ok"]) == "1"


@dataclass
class State:
    """What the ledger says in all."""

    cases: dict[str, CaseState] = field(default_factory=dict)
    session: dict[str, Any] = field(default_factory=dict)
    status: str = "starting"
    touched: set[str] = field(default_factory=set)  # cases that the last session ended or reused
    damaged: int = 0  # lines that were skipped

    def case(self, name: str) -> CaseState:
        return self.cases.setdefault(name, CaseState())


def replay(events: Iterable[Mapping[str, Any]], damaged: int = 0) -> State:
    """The state after all events, in order."""
    state = State(damaged=damaged)
    for event in events:
        kind = event["event"]
        if kind == "session_start":
            state.session, state.status, state.touched = dict(event), "starting", set()
            _nobody_waits(state)
        elif kind == "case_waiting":
            state.case(event["case"]).waits_for = event["devices"]
        elif kind == "session_end":
            state.status = event["status"]
            _nobody_waits(state)
        elif kind == "stage_start":
            state.status = "running"
            _start(state.case(event["case"]), dict(event))
        elif kind == "stage_end":
            case = state.case(event["case"])
            if case.running is None or any(case.running[name] != event[name] for name in ABOUT):
                _start(case, dict(event))  # the line of its start is damaged
            attempt = case.attempts[event["variant"], event["num_envs"]]
            attempt.stages[event["stage"]] = dict(event)
            attempt.train_seconds += event["elapsed_s"] if event["stage"] == "long_train" else 0.0
            case.running = None
        elif kind == "case_end":
            state.case(event["case"]).row = {**dict.fromkeys(COLUMNS, ""), **event["row"]}
            state.touched.add(event["case"])
        elif kind == "case_reused":
            state.touched.add(event["case"])
    return state


def damaged_lines(count: int) -> str:
    """The sentence about skipped lines."""
    lines = "1 damaged line was" if count == 1 else f"{count} damaged lines were"
    return f"{lines} passed over in {LEDGER}; what only {'it' if count == 1 else 'they'} told counts as not run"


def _nobody_waits(state: State) -> None:
    """No case waits after a session has ended, or before one begins (an earlier one may have been killed)."""
    for case in state.cases.values():
        case.waits_for = ""


def _start(case: CaseState, event: dict[str, Any]) -> None:
    rung = event["variant"], event["num_envs"]
    attempt = case.attempts.get(rung)
    if attempt is None or attempt.fingerprint != event["fingerprint"] or event["afresh"]:
        case.attempts.pop(rung, None)  # moves to the end
        attempt = case.attempts[rung] = AttemptState(*rung, event["fingerprint"], {})
    stage = event["stage"]
    attempt.about = {name: event[name] for name in ("devices", "degraded", "folder")}
    order = list(attempt.stages)
    for later in order[order.index(stage):] if stage in order else []:
        del attempt.stages[later]  # results of an earlier run's later stages no longer count
    attempt.stages[stage] = event
    case.row, case.running, case.waits_for = None, event, ""


def read_events(path: Path) -> list[dict[str, Any]]:
    """All valid events of a ledger; none without a file."""
    return EventFile(path).read().events


class Ledger:
    """The ledger of one root. Safe for several processes: appending and rebuilding hold a lock."""

    def __init__(self, out: Path, repo: Path) -> None:
        self.out, self.repo = out, repo
        self.path = out / LEDGER
        self._file = EventFile(self.path)

    def events(self) -> list[dict[str, Any]]:
        return self._file.read().events

    def state(self) -> State:
        content = self._file.read()
        return replay(content.events, content.damaged)

    def append(self, event: str, **fields: Any) -> None:
        """Write one event to disk, then update the tables."""
        line = to_line({"event": event, "time": time.time(), **fields})
        self.out.mkdir(parents=True, exist_ok=True)
        with file_lock(self.out / ".ledger.lock"):
            with self.path.open("a+b") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else b"\n" + line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            state = self.state()
            self.write_tables(state, [fields["case"]] if "case" in fields else [])

    def write_tables(self, state: State, changed_cases: Iterable[str]) -> None:
        """Rewrite the tables; ``attempts.json`` only of the changed cases."""
        write_json(self.out / "progress.json", progress(state, self.repo))
        write_tsv(self.out / "best_by_case.tsv", COLUMNS, rows(state))
        for name in changed_cases:
            case = state.case(name)
            write_json(self.out / "runs" / f"{name}_args" / "attempts.json", attempts_table(name, case))

    def refresh_progress(self) -> dict[str, Any]:
        """Rewrite ``progress.json`` with the running stages' newest numbers, and return it."""
        with file_lock(self.out / ".ledger.lock"):
            now = progress(self.state(), self.repo)
            write_json(self.out / "progress.json", now)
        return now


def rows(state: State) -> list[dict[str, Any]]:
    """Rows of best_by_case.tsv: every case with a recorded end, by name."""
    return [case.row for _, case in sorted(state.cases.items()) if case.row is not None]


def progress(state: State, repo: Path) -> dict[str, Any]:
    """Content of progress.json: counts over the selected cases, and the running stages."""
    selected = state.session.get("cases", [])
    ended = [name for name in selected if name in state.touched]
    passed = [name for name in ended if state.case(name).passed]
    running = [running_stage(name, state.case(name).running, repo) for name in selected if state.case(name).running]
    return {
        "status": state.status, "done": len(ended), "total": len(selected), "passed": len(passed),
        "failed": len(ended) - len(passed), "running": running,
        "waiting": {name: state.case(name).waits_for for name in selected if state.case(name).waits_for},
        "session": state.session.get("session", ""),
        "pid": state.session.get("pid"), "profile": state.session.get("profile", ""), "time": time.time(),
        **(running[0] if running else dict.fromkeys(("case", "stage", "rung", "samples", "samples_per_s", "eta_s"))),
    }


def running_stage(name: str, event: Mapping[str, Any], repo: Path) -> dict[str, Any]:
    """A running stage with the numbers of its own progress.json (None before it has written one)."""
    own = read_json(repo / event["out_dir"] / "progress.json")  # removed before a stage starts
    return {
        "case": name, "stage": event["stage"], "rung": f"{event['variant']}_e{event['num_envs']}",
        "samples": own.get("samples"), "max_samples": own.get("max_samples"), "phase": own.get("phase"),
        "samples_per_s": own.get("samples_per_s"), "eta_s": own.get("eta_s"), "since": event["time"],
    }


def attempts_table(name: str, case: CaseState) -> dict[str, Any]:
    """Content of attempts.json."""
    return {"case": f"{name}_args.txt", "attempts": [
        {
            "variant": a.variant, "num_envs": a.num_envs, "note": a.note(), "fingerprint": a.fingerprint, **a.about,
            "versions": next((s["result"]["versions"] for s in a.stages.values()
                              if s.get("result", {}).get("versions")), {}),
            "stages": {stage: {
                "outcome": s.get("outcome", "running"), "failure_class": s.get("failure_class", ""),
                "rc": s.get("rc"), "elapsed_s": s.get("elapsed_s"), "message": s.get("message", ""),
                "out_dir": s["out_dir"], "log": s["log"], "started": s.get("started", s["time"]),
                "result": s.get("result", {}),
            } for stage, s in a.stages.items()},
        } for a in case.attempts.values()
    ]}
