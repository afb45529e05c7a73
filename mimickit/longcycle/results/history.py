"""The history of nights: ``output/history/history.jsonl``, one line a session, only ever appended to.

Kinds of lines (docs/results_page.md describes every key):

* ``night``: what a session was, and of every case that ended in it: verdict, measures with intervals, rates, GPU hours.
* ``accept``: from here on the level of these cases is what it should be; drift is measured from it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mimickit.longcycle.devices import file_lock
from mimickit.longcycle.judge import STATISTICS
from mimickit.longcycle.results import drift
from mimickit.longcycle.results.data import Entry, Root, Yardsticks, without_machine
from mimickit.util.failures import UserError
from mimickit.util.files import fsync, plain

HISTORY = Path("output/history/history.jsonl")
SCHEMA = 1
LATEST = 253_402_300_799.0  # s since 1970: the end of the year 9999
RATE = "samples_per_s"
FULL = "full"


class _Line(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=(), allow_inf_nan=False)


class Measure(_Line):
    """A mean of a night's test, half its 95 % interval if known, and the episodes behind it."""

    mean: float
    ci95: float | None = None
    episodes: int | None = None


class GateNow(_Line):
    """A gate as it was then."""

    measure: str
    op: Literal[">=", "<=", ">", "<"]
    bound: float


class CaseNight(_Line):
    """A case that ended in a session."""

    final_ok: bool
    learned: bool | None = None
    note: str = ""
    variant: str = ""
    num_envs: int = 0
    degraded: bool = False
    samples: float | None = None
    samples_per_s: float | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    gpu_hours: float = 0.0
    measures: dict[str, Measure] = Field(default_factory=dict)
    gates: list[GateNow] = Field(default_factory=list)


class Night(_Line):
    """A session."""

    kind: Literal["night"] = "night"
    schema_: Literal[1] = Field(SCHEMA, alias="schema")
    time: float = Field(ge=0, le=LATEST)
    session: str
    root: str
    profile: str
    seed: int | None = None
    commit: str | None = None
    changed: bool = False
    versions: dict[str, str | None] = Field(default_factory=dict)
    gpus: list[str] = Field(default_factory=list)
    devices: int = 0
    wall_s: float = 0.0
    gpu_hours: float = 0.0
    status: str = "finished"
    deferred: list[str] = Field(default_factory=list)
    cases: dict[str, CaseNight] = Field(default_factory=dict)

    @property
    def machine(self) -> str:
        """What rates are comparable on."""
        return f"{self.devices} x {', '.join(dict.fromkeys(self.gpus)) or 'CPU'}"


class Accept(_Line):
    """A level that somebody has accepted."""

    kind: Literal["accept"] = "accept"
    time: float = Field(ge=0, le=LATEST)
    cases: list[str]
    reason: str


# --- writing ----------------------------------------------------------------------------------------------------------


def night_of(root: Root, yardsticks: Yardsticks | None = None, whole: bool = False,
             deferred: Sequence[str] = ()) -> Night:
    """A root's last session as a line of the history.

    Args:
        whole: every case of the root with a recorded end, not only those that ended in its last session; for roots
            that were merged or brought from elsewhere.
    """
    yardsticks = yardsticks or Yardsticks()
    events = root.events
    begin = max((i for i, event in enumerate(events) if event["event"] == "session_start"), default=0)
    ended = {event["case"] for event in (events if whole else events[begin:]) if event["event"] == "case_end"}
    about = without_machine(root.last_environment)
    devices = {device for device in about.get("devices") or [] if device != "cpu"}
    wall = events[-1]["time"] - events[begin]["time"] if events else 0.0
    cases = {name: case_night(root.entry(name), yardsticks) for name in sorted(ended) if root.entry(name).row}
    hours = {name: sum(case.seconds.values()) / 3600 for name, case in cases.items()}
    used = wall * len(devices) / 3600
    if whole and devices:  # sessions of several machines: what the stages took
        used = sum(hours.values())
    total = sum(hours.values())
    for name, case in cases.items():
        case.gpu_hours = round(used * hours[name] / total, 5) if total else 0.0
    return Night(
        time=events[-1]["time"] if events else time.time(), session=root.state.session.get("session", ""),
        root=root.name, profile=about.get("profile") or root.state.session.get("profile", ""), seed=root.seed,
        commit=about.get("git_commit"), changed=bool(about.get("git_changed")), versions=about.get("versions") or {},
        gpus=list(map(str, about.get("gpus") or [])), devices=len(devices), wall_s=round(wall, 1),
        gpu_hours=round(used, 4), status=root.state.status, deferred=list(deferred), cases=cases)


def case_night(entry: Entry, yardsticks: Yardsticks) -> CaseNight:
    """A case's end, with every measure of its test that is a finite number."""
    row, measures = entry.row, {}
    for line in entry.statistics():
        if isinstance(line["mean"], (int, float)) and math.isfinite(line["mean"]):
            measures[line["name"]] = Measure(mean=line["mean"], ci95=number(line["ci95"]), episodes=line["episodes"])
    attempt = entry.attempt
    seconds = {name: float(event["elapsed_s"]) for name, event in (attempt.stages if attempt else {}).items()
               if event["event"] == "stage_end"}
    learned = {"1": True, "0": False}.get(str(row.get("learned")))
    return CaseNight(
        final_ok=str(row["final_ok"]) == "1", learned=learned, note=str(row.get("note") or ""),
        variant=row.get("variant") or "", num_envs=int(row.get("num_envs") or 0),
        degraded=str(row.get("degraded")) == "1", samples=number(row.get("samples")),
        samples_per_s=number(row.get(RATE)), seconds=seconds, measures=measures,
        gates=[GateNow(measure=gate.measure, op=gate.op, bound=gate.bound) for gate in yardsticks.gates(entry.case)])


def number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def append(path: Path, line: Night | Accept) -> bool:
    """Add a line to a history and flush it to disk; False when it holds that session already."""
    with file_lock(path):
        if isinstance(line, Night) and any(night.session == line.session and night.root == line.root
                                           for night in read(path).nights):
            return False
        data = json.dumps(plain(line.model_dump(by_alias=True)), separators=(",", ":"))
        with path.open("ab+") as file:
            if file.seek(0, 2):
                file.seek(-1, 2)
                data = data if file.read(1) == b"\n" else f"\n{data}"  # half a line of a power cut stays alone
            file.write(f"{data}\n".encode())
            file.flush()
        fsync(path)
    return True


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """One measure of one case over nights that can be compared.

    Attributes:
        at: the place of each value's night among all nights.
        nights: what :func:`mimickit.longcycle.results.drift.watch` says of each.
    """

    case: str
    measure: str
    upwards: bool
    bound: float | None
    at: tuple[int, ...]
    nights: tuple[drift.Night, ...]

    @property
    def verdict(self) -> drift.Verdict:
        return self.nights[-1].verdict if self.nights else "few"

    @property
    def change(self) -> float | None:
        """What the nights since the drift began differ from the reference by, as a share of it."""
        begin = drift.since(self.nights)
        if begin is None or not self.nights[begin].mean:
            return None
        late = [night.value for night in self.nights[begin:]]
        return (sum(late) / len(late) - self.nights[begin].mean) / abs(self.nights[begin].mean)


@dataclass(frozen=True)
class History:
    """All lines of a history, in order of time; lines that are damaged, or of another schema, are counted and
    skipped."""

    nights: tuple[Night, ...]
    accepted: tuple[Accept, ...] = ()
    damaged: int = 0

    def only(self, profile: str) -> History:
        """The nights of one profile."""
        return History(tuple(night for night in self.nights if night.profile == profile), self.accepted, self.damaged)

    def watched(self) -> History:
        """The nights of profile ``full``, where there are any: what somebody tried at a small size says nothing."""
        return self.only(FULL) if any(night.profile == FULL for night in self.nights) else self

    def skipped(self) -> str:
        """What was skipped, in words; empty when nothing was."""
        if not self.damaged:
            return ""
        lines = "1 line was" if self.damaged == 1 else f"{self.damaged} lines were"
        return f"{lines} skipped: damaged, or of a schema other than {SCHEMA}"

    @property
    def cases(self) -> list[str]:
        return sorted({name for night in self.nights for name in night.cases})

    @cached_property
    def series(self) -> dict[str, tuple[Series, ...]]:
        """By case: its rate and every measure that a gate of its last night asks for."""
        return {case: tuple(self.series_of(case)) for case in self.cases}

    def series_of(self, case: str) -> Iterable[Series]:
        with_case = [(i, night) for i, night in enumerate(self.nights) if case in night.cases]
        last = with_case[-1][1]
        same = [(i, night) for i, night in with_case if night.profile == last.profile
                and not night.cases[case].degraded and _budget(night.cases[case]) == _budget(last.cases[case])]
        fresh = max((line.time for line in self.accepted if case in line.cases), default=float("-inf"))
        for gate in last.cases[case].gates:
            name = STATISTICS.get(gate.measure, gate.measure)
            found = [(i, night.time, measure) for i, night in same
                     if (measure := night.cases[case].measures.get(name)) is not None]
            yield _watched(case, name, gate.op in (">=", ">"), gate.bound, fresh,
                           [(i, at, measure.mean, measure.ci95 or 0.0) for i, at, measure in found])
        yield _watched(case, RATE, True, None, fresh, [
            (i, night.time, night.cases[case].samples_per_s, 0.0) for i, night in same
            if night.machine == last.machine and night.cases[case].samples_per_s])

    def verdict(self, case: str) -> str:
        """``failed`` when its last end was, else ``drift``, ``better``, ``few`` or ``steady``."""
        if not next(night.cases[case] for night in reversed(self.nights) if case in night.cases).final_ok:
            return "failed"
        found = {series.verdict for series in self.series[case]}
        return next((word for word in ("drift", "better", "steady") if word in found), "few")

    def last_good(self) -> int | None:
        """The last night in which every case passed, and after which nothing that drifts now began to; None if there
        is none."""
        begun = [series.at[drift.since(series.nights)] for found in self.series.values() for series in found
                 if series.verdict == "drift"]
        good = [i for i, night in enumerate(self.nights) if night.cases and i < min(begun, default=len(self.nights))
                and all(case.final_ok for case in night.cases.values())]
        return good[-1] if good else None


def _budget(case: CaseNight) -> int:
    """Samples a training was given, to half a million."""
    return round((case.samples or 0.0) / 5e5)


def _watched(case: str, measure: str, upwards: bool, bound: float | None, fresh: float,
             found: Sequence[tuple[int, float, float, float]]) -> Series:
    begin = sum(at <= fresh for _, at, _, _ in found)
    nights = drift.watch([value for _, _, value, _ in found], upwards, [error for *_, error in found], begin)
    return Series(case, measure, upwards, bound, tuple(i for i, *_ in found), tuple(nights))


def read(path: Path) -> History:
    """A history; an empty one without a file."""
    nights, accepted, damaged = [], [], 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            data = json.loads(text)
            if data.get("kind") == "accept":
                accepted.append(Accept.model_validate(data))
            else:
                nights.append(Night.model_validate(data))
        except (ValueError, AttributeError, ValidationError):
            damaged += bool(text.strip())
    return History(tuple(sorted(nights, key=lambda night: night.time)), tuple(accepted), damaged)


def accept(path: Path, cases: Sequence[str], reason: str) -> None:
    """Take the present level of cases as what it should be from now on.

    Raises:
        UserError: no such case in the history, or no reason.
    """
    known = read(path).cases
    if unknown := [case for case in cases if case not in known]:
        raise UserError(f"--accept {unknown[0]}: no such case in {path}; there are {', '.join(known) or 'none'}")
    if not reason.strip():
        raise UserError("--accept: say why: --reason TEXT")
    append(path, Accept(time=time.time(), cases=list(cases), reason=reason))


def changes(before: Night, after: Night) -> list[str]:
    """What differs between two nights besides their results, in words."""
    found = []
    if before.commit != after.commit:
        found.append(f"commit {str(before.commit)[:12]} → {str(after.commit)[:12]}")
    if after.changed:
        found.append("local changes that are not committed")
    names = sorted({*before.versions, *after.versions})
    found += [f"{name} {before.versions.get(name) or 'none'} → {after.versions.get(name) or 'none'}" for name in names
              if before.versions.get(name) != after.versions.get(name)]
    for what in ("machine", "profile", "seed"):
        if getattr(before, what) != getattr(after, what):
            found.append(f"{what} {getattr(before, what)} → {getattr(after, what)}")
    for case in sorted(before.cases.keys() & after.cases.keys()):
        old, new = ({gate.measure: f"{gate.op} {gate.bound:g}" for gate in night.cases[case].gates}
                    for night in (before, after))
        found += [f"gate {case} {name}: {old.get(name, 'none')} → {new.get(name, 'none')}"
                  for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return found


def verdicts(history: History) -> Mapping[str, str]:
    """The verdict of every case of a history."""
    return {case: history.verdict(case) for case in history.cases}
