"""What the acceptance suite recorded, as plain data for pages and the history. The only reader of roots among them.

Verdicts, outcomes and gates come from the ledger and from :mod:`mimickit.longcycle.judge`; nothing is judged here.
"""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mimickit.cases import TRAIN_STAGES, VIEW_STAGES
from mimickit.config import load_yaml
from mimickit.longcycle.events import EventFile
from mimickit.longcycle.judge import STATISTICS, Sample, judge_gates, sample
from mimickit.longcycle.ledger import LEDGER, AttemptState, CaseState, State, replay, running_stage
from mimickit.longcycle.report import number
from mimickit.longcycle.roots import ENVIRONMENTS, rebased
from mimickit.longcycle.settings import BASELINES_FILE, TRANSFER, Gate, Target, load_targets
from mimickit.util.curves import Curves, joined, read_curves
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.files import read_json, read_tsv

OWN_FOLDERS = ("mimickit", "tests", "data", "args", "output", "tools", r"\.venv")
FOREIGN_PATH = re.compile(rf"(?<![\w.])/[^\s'\":]*?/(?=(?:{'|'.join(OWN_FOLDERS)})(?:/|$))")
GPU_IDENTITY = re.compile(r"\bGPU-[0-9a-f]+(?:-[0-9a-f]+)*")
CURVE_COLUMNS = {  # of log.txt, with what stands over the chart
    "Test_Return": "return of evaluations", "Test_Episode_Length": "episode length of evaluations, steps",
    "Body_Pos_Err": "body position error, m", "Motion_Err": "motion error, m", "Task_Reward_Mean": "task reward",
    "Disc_Reward_Mean": "discriminator reward", "Train_Return": "return while training",
    "Train_Episode_Length": "episode length while training, steps", "Kl_Div": "KL divergence of an update"}
MOST_CHARTS = 6
MOST_POINTS = 200  # of a curve
LOG_BYTES = 6_000  # shown of the end of a log
SILENT = 90.0  # s after which a session that has not written is taken for dead
LATEST = "\N{HORIZONTAL ELLIPSIS}"


# --- texts that leave the machine -------------------------------------------------------------------------------------


def without_machine(value: Any) -> Any:
    """Texts of a JSON value without the machine's folders and GPU identities.

    Paths begin at the repository; paths elsewhere are reduced to names.
    """
    if isinstance(value, str):
        text = GPU_IDENTITY.sub("GPU", FOREIGN_PATH.sub("", value))
        return Path(text).name if text.startswith("/") and " " not in text else text
    if isinstance(value, Mapping):
        return {key: without_machine(item) for key, item in value.items()}
    return [without_machine(item) for item in value] if isinstance(value, (list, tuple)) else value


def log_tail(path: Path) -> str:
    """The last lines of a log, as text without control characters; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_BYTES))
            data = file.read()
    except OSError:
        return ""
    text = data.decode(errors="replace")
    lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
    if size > LOG_BYTES:
        lines[0] = LATEST
    return without_machine("\n".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]", "", line)
                                     for line in lines)).strip()


# --- one root ---------------------------------------------------------------------------------------------------------


class Root:
    """A root as it is now. Reading it again (:meth:`refresh`) takes only what has changed.

    Raises:
        AssetMissingError: the folder is none of the suite's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._file = EventFile(self.path / LEDGER)
        self._read = -1
        self._files: dict[Path, tuple[tuple[int, int], Any]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what the session has written since."""
        content = self._file.read()
        if not content.events and not (self.path / "case_manifest.tsv").is_file():
            raise AssetMissingError(f"{self.path}: no {LEDGER} and no case_manifest.tsv there; give a folder below "
                                    "output/train that pytest -m longcycle has written")
        if len(content.events) != self._read:
            self._read = len(content.events)
            self.events = [rebased(event, str(self.path)) for event in content.events]
            self.state: State = replay(self.events, content.damaged)
            self.counts = Counter(event.get("case") for event in self.events)
            self.manifest = {row["case"].removesuffix("_args.txt"): row
                             for row in read_tsv(self.path / "case_manifest.tsv")}
            self.environments = {file.stem: read_json(file) for file in (self.path / ENVIRONMENTS).glob("*.json")}
            self.last_environment = read_json(self.path / "environment.json")
        self.progress = read_json(self.path / "progress.json")

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def cases(self) -> list[str]:
        """Names of all cases that any of its sessions selected or ran, sorted."""
        return sorted({*self.manifest, *self.state.session.get("cases", []), *self.state.cases})

    @property
    def alive(self) -> bool:
        """Whether a session works there, as far as its files tell."""
        written = self.progress.get("time", 0.0)
        return self.state.status in ("starting", "running") and time.time() - written < SILENT

    @property
    def seed(self) -> int | None:
        return (self.last_environment.get("sizes") or {}).get("rand_seed")

    def environment(self, case: str) -> dict[str, Any]:
        """What the session ran on that ended a case; of the last session where that is not known."""
        row = self.state.case(case).row if case in self.state.cases else None
        return self.environments.get(str((row or {}).get("session") or ""), self.last_environment)

    def cached(self, path: Path, read: Any) -> Any:
        """``read(path)``, again only when the file has changed; None without a file."""
        try:
            about = path.stat()
        except OSError:
            return None
        stamp = about.st_mtime_ns, about.st_size
        known = self._files.get(path)
        if known is None or known[0] != stamp:
            known = self._files[path] = stamp, read(path)
        return known[1]

    def entry(self, case: str) -> Entry:
        return Entry(self, case, self.state.cases.get(case, CaseState()))

    def runs(self, case: str) -> list[Curves]:
        """A curve an attempt: its trial and its training joined. None of a name that only the manifest knows."""
        found: list[Curves] = []
        if case not in self.state.cases:
            return found
        for attempt in sorted(path for path in (self.path / "runs" / f"{case}_args").glob("*_e*") if path.is_dir()):
            parts = [self.cached(attempt / stage / "log.txt", _curves) for stage in ("probe_train", "long_train")]
            parts = [part for part in parts if part is not None]
            if parts:
                found.append(joined(parts, attempt.name))
        return found


def _curves(path: Path) -> Curves | None:
    """A log with rows; None where there is none yet, or a torn one."""
    try:
        found = read_curves(path)
    except UserError:
        return None
    return found if len(found.columns.get("Samples", ())) else None


@dataclass
class Entry:
    """One case of one root."""

    root: Root
    case: str
    state: CaseState

    @property
    def method(self) -> str:
        return self.case.split("_")[0]

    @property
    def row(self) -> dict[str, Any]:
        return self.state.row or {}

    @cached_property
    def trainable(self) -> bool:
        kind = self.root.manifest.get(self.case, {}).get("case_type") or self.row.get("case_type")
        return kind != "nontrainable"

    @property
    def stage_names(self) -> tuple[str, ...]:
        names = TRAIN_STAGES if self.trainable else VIEW_STAGES
        if TRANSFER not in (*(self.attempt.stages if self.attempt else ()), (self.state.running or {}).get("stage")):
            return names
        return (*names[:-1], TRANSFER, names[-1])

    @property
    def attempt(self) -> AttemptState | None:
        """The attempt that counts: the row's, else the last."""
        attempts = self.state.attempts
        if self.state.row:
            return attempts.get((self.row["variant"], int(self.row["num_envs"])))
        return next(reversed(attempts.values()), None)

    @property
    def folder(self) -> Path | None:
        found = (self.row["variant"], self.row["num_envs"]) if self.state.row else \
            (self.attempt.variant, self.attempt.num_envs) if self.attempt else None
        return found and self.root.path / "runs" / f"{self.case}_args" / f"{found[0]}_e{found[1]}"

    @property
    def status(self) -> str:
        """``passed``, ``failed``, ``running``, ``waiting``, ``stopped`` (began, did not end) or ``open``."""
        if self.state.running and self.root.alive:
            return "running"
        if self.state.row:
            return "passed" if self.state.passed else "failed"
        if self.state.waits_for and self.root.alive:
            return "waiting"
        return "stopped" if self.state.attempts else "open"

    @property
    def test(self) -> dict[str, Any]:
        """The test's result: the file's, else what the ledger holds of it."""
        if self.folder and (found := self.root.cached(self.folder / "test.json", read_json)):
            return found
        event = self.attempt.stages.get("test", {}) if self.attempt else {}
        return event.get("result") or {}

    @property
    def transferred(self) -> dict[str, Any]:
        """The policy's result in plain MuJoCo; empty where it was not run there."""
        return (self.folder and self.root.cached(self.folder / "transfer.json", read_json)) or {}

    @property
    def film(self) -> Path | None:
        """The film of the attempt that counts; None where there is none, or the stage that makes it runs."""
        if self.folder is None or (self.state.running or {}).get("stage") == "viz":
            return None
        path = self.folder / "viz.mp4"
        return path if path.is_file() else None

    def running(self) -> dict[str, Any] | None:
        """The running stage with its own progress, None if nothing runs."""
        return running_stage(self.case, self.state.running, self.root.path) if self.status == "running" else None

    def stages(self, expected: Mapping[tuple[str, str], float]) -> list[dict[str, Any]]:
        """Every stage: ``name``, ``state`` (``ok``, ``failed``, ``running``, ``stopped`` or ``open``), ``seconds``
        taken or expected, ``share`` done in per cent, ``eta_s``, ``rate``, ``cause``, ``phase``."""
        attempt, running, found = self.attempt, self.running(), []
        for name in self.stage_names:
            event = attempt.stages.get(name, {}) if attempt else {}
            stage = {"name": name, "state": "open", "seconds": expected.get((self.case, name)), "share": None,
                     "eta_s": None, "rate": None, "cause": "", "phase": "", "message": ""}
            if running and running["stage"] == name:
                done, of = running["samples"], running["max_samples"]
                stage |= {"state": "running", "seconds": max(0.0, time.time() - running["since"]),
                          "eta_s": running["eta_s"] if running["phase"] == "training" else None,
                          "share": round(100 * done / of) if done and of and name != "probe_train" else None,
                          "rate": running["samples_per_s"], "phase": running["phase"] or "starting"}
            elif event.get("event") == "stage_start":
                stage |= {"state": "stopped", "seconds": None, "cause": "no end was recorded"}
            elif event:
                ok = event["outcome"] == "ok"
                stage |= {"state": "ok" if ok else "stopped" if event["outcome"] == "interrupted" else "failed",
                          "seconds": event["elapsed_s"], "cause": "" if ok else event["failure_class"]
                          or event["outcome"], "message": "" if ok else without_machine(event.get("message", ""))}
            found.append(stage)
        return found

    def attempts(self) -> list[dict[str, Any]]:
        """All attempts in order, each with its stages and why it ended."""
        return [{
            "name": f"{a.variant}, {a.num_envs} worlds a device", "note": a.note().replace("_", " "),
            "degraded": bool(a.about.get("degraded")), "devices": without_machine(list(a.about.get("devices", []))),
            "stages": [{"name": name, "outcome": event.get("failure_class") or event.get("outcome", "running"),
                        "seconds": event.get("elapsed_s"), "message": without_machine(event.get("message", ""))}
                       for name, event in a.stages.items()],
        } for a in self.state.attempts.values()]

    def logs(self) -> list[dict[str, str]]:
        """The ends of the logs of all stages of the attempt that counts."""
        if self.folder is None:
            return []
        found = []
        for name in self.stage_names:
            tail = self.root.cached(self.folder / f"{name}.log", log_tail)
            if not tail and self.attempt:
                tail = without_machine(self.attempt.stages.get(name, {}).get("tail") or "")
            if tail:
                found.append({"stage": name, "text": tail})
        return found

    def statistics(self) -> list[dict[str, Any]]:
        """The test's measures: name, mean, half the 95 % interval or None, and what else is known of the spread.

        ``transfer`` is the same measure in plain MuJoCo, None where it was not run there or does not exist there. What
        exists there alone (``survival_disturbed``) has None for everything else.
        """
        test, moved = self.test, self.transferred
        known = test.get("statistics") or {}
        bare = {name: {"mean": value} for name, value in (test.get("measures") or {}).items() if name not in known}
        there = {name: {} for name in moved.get("statistics") or {} if name not in known and name not in bare}
        return [{"name": name, **{key: about.get(key) for key in ("mean", "ci95", "std", "min", "max", "episodes")},
                 "median": (about.get("quantiles") or {}).get("50"), "transfer": sample(moved, name)}
                for name, about in {**known, **bare, **there}.items()]

    def command(self) -> list[str]:
        """The lines that run this case again as it ran."""
        about = self.root.environment(self.case)
        sizes = about.get("sizes") or {}
        words = ["pytest", "-m", "longcycle", "--cases", self.case, "--root-out", f"{self.case}_again"]
        if about.get("profile"):
            words += ["--longcycle-profile", about["profile"]]
        for name in ("rand_seed", "long_max_samples"):
            if sizes.get(name) is not None:
                words += [f"--{name.replace('_', '-')}", str(sizes[name])]
        commit = about.get("git_commit")
        return [*([f"git checkout {commit}"] if commit else []), "make setup", f".venv/bin/{shlex.join(words)}"]


# --- what gates ask for -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Yardsticks:
    """Gates by case, and what policies without skill reach."""

    targets: Mapping[str, Target] = field(default_factory=load_targets)

    @cached_property
    def baselines(self) -> Mapping[str, Any]:
        """Policies without skill, as in ``baselines.yaml``: a large file, which pages alone need."""
        return load_yaml(BASELINES_FILE)

    def gates(self, case: str) -> Sequence[Gate]:
        return self.targets[case].gates if case in self.targets else ()

    def without_skill(self, case: str, measure: str) -> list[tuple[str, float]]:
        """Policies without skill and the mean that each reaches."""
        policies = (self.baselines.get(case) or {}).get("policies") or {}
        name = STATISTICS.get(measure, measure)
        return [(policy, measures[name][0]) for policy, measures in policies.items() if name in measures]


def gate_bars(case: str, entries: Sequence[Entry], yardsticks: Yardsticks) -> list[dict[str, Any]]:
    """A bar a gate: what every root's policy reached, the bound, and policies without skill, on one axis.

    Places are in per cent from left to right, better to the right. ``holds`` is the judge's word for each value.
    """
    bars = []
    for gate in yardsticks.gates(case):
        found = [(entry, value) for entry in entries if (value := sample(entry.test, gate.measure)) is not None]
        poor = yardsticks.without_skill(case, gate.measure)
        ends = [gate.bound, *(mean for _, mean in poor)]
        for _, value in found:
            ends += [value.mean - (value.ci95 or 0.0), value.mean + (value.ci95 or 0.0)]
        low, high = min(ends), max(ends)
        margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = low - margin, high + margin

        def place(x: float, low: float = low, high: float = high, up: bool = gate.upwards) -> float:
            share = min(1.0, max(0.0, (x - low) / (high - low)))
            return round(100 * (share if up else 1 - share), 2)

        values = [{
            "root": entry.root.name, "seed": entry.root.seed, "text": in_words(value), "place": place(value.mean),
            "from": min(place(value.mean - (value.ci95 or 0)), place(value.mean + (value.ci95 or 0))),
            "to": max(place(value.mean - (value.ci95 or 0)), place(value.mean + (value.ci95 or 0))),
            "holds": judge_gates([gate], entry.test).verdict == "pass",
        } for entry, value in found]
        best = (max if gate.upwards else min)(poor, key=lambda known: known[1], default=None)
        bars.append({
            "measure": gate.measure, "op": gate.op, "bound": gate.bound, "bound_place": place(gate.bound),
            "source": gate.source or origin(gate), "values": values, "best_without_skill": best,
            "without_skill": [{"policy": name, "mean": mean, "place": place(mean)} for name, mean in poor],
        })
    return bars


def in_words(value: Sample) -> str:
    """A mean in four digits, its interval, and the episodes."""
    return str(value).replace(f"{value.mean:.6g}", number(value.mean), 1)


def origin(gate: Gate) -> str:
    """Where a computed bound comes from, in words."""
    words = [f"rule {gate.rule.replace('_', ' ')}"]
    if gate.seeds:
        words.append(f"seeds reached {', '.join(f'{value:g}' for value in gate.seeds)}")
    words += [f"{name.replace('_', ' ')} reaches {value:g}" for name, value in gate.baseline.items()]
    return "; ".join(words)


# --- curves -----------------------------------------------------------------------------------------------------------


def charts(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Learning curves over samples, a line for each attempt of each root; at most ``MOST_CHARTS``.

    Each is ``title``, ``x`` (label), and ``data``: the common abscissa, then one list a series of ``series``.
    """
    runs = []
    for entry in entries:
        seed = f"seed {entry.root.seed}, " if len(entries) > 1 and entry.root.seed is not None else \
            f"{entry.root.name}, " if len(entries) > 1 else ""
        runs += [(f"{seed}{run.label}", run) for run in entry.root.runs(entry.case)]
    found = []
    for column, title in CURVE_COLUMNS.items():
        lines = [(label, *run.line("Samples", column)) for label, run in runs if column in run.columns]
        lines = [line for line in lines if len(line[1]) and np.any(line[2][np.isfinite(line[2])])]
        if lines and len(found) < MOST_CHARTS:
            found.append({"title": title, "x": "samples", "series": [{"label": label} for label, _, _ in lines],
                          "data": aligned([(x, y) for _, x, y in lines])})
    return found


def aligned(lines: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[list[float | None]]:
    """Lines on a common abscissa: [its values, ordinates of the first line, ...]; None where a line has no point."""
    thinned = []
    for x, y in lines:
        keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
        thinned.append({float(a): float(f"{b:.5g}") if np.isfinite(b) else None
                        for a, b in zip(x[keep], y[keep], strict=True)})
    across = sorted(set().union(*thinned))
    return [across, *([line.get(x) for x in across] for line in thinned)]
