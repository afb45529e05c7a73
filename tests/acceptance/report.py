"""What the terminal shows: the live line, why a case failed, the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.acceptance.cases import Case
from tests.acceptance.judge import Verdict
from tests.acceptance.ledger import CaseState, State
from tests.acceptance.settings import Settings
from tests.acceptance.stages import TAIL_LINES, StageResult


def counts(cases: Sequence[Case], passed: set[str]) -> str:
    """``32/32 final_ok=1 | trainable 25/25 | nontrainable 7/7 | add 5/5 amp 9/9 ...``"""
    def of(group: Sequence[Case]) -> str:
        return f"{sum(case.name in passed for case in group)}/{len(group)}"

    types = [f"{kind} {of(group)}" for kind in ("trainable", "nontrainable")
             if (group := [case for case in cases if case.case_type == kind])]
    methods = [f"{method} {of([case for case in cases if case.method == method])}"
               for method in sorted({case.method for case in cases})]
    return " | ".join([f"{of(cases)} final_ok=1", *types, " ".join(methods)])


def summary(state: State, cases: Sequence[Case], reused: set[str], settings: Settings) -> list[str]:
    """The lines at the end of a session: results per case, what failed, what never ran, and last the counts."""
    passed = {case.name for case in cases if case.name in state.touched | reused and state.case(case.name).passed}
    lines = [f"tables: {settings.relative(settings.out)}/best_by_case.tsv, attempts and logs below runs/"]
    lines += [passed_line(case, state.case(case.name), case.name in reused) for case in cases if case.name in passed]
    failed = [case for case in cases if case.name in state.touched and case.name not in passed]
    lines += [failed_line(state.case(case.name).row) for case in failed]
    never = [case for case in cases if case.name not in state.touched | passed]
    lines += [never_line(case, state.case(case.name)) for case in never]
    if not settings.profile.enforce_gates:
        lines.append(f"profile {settings.profile_name}: learning gates are reported, not enforced")
    if never or failed:
        lines.append("continue with: pytest -m longcycle --lf (and the same options)")
    return [*lines, counts(cases, passed)]


def passed_line(case: Case, state: CaseState, reused: bool) -> str:
    row = state.row
    measures = f"return {number(row['test_return'])}, episode length {number(row['test_episode_length'])}"
    words = [f"{row['variant']}_e{row['num_envs']}", measures, f"gate {row['gate_verdict']}"]
    if row.get("samples_per_s"):
        words.insert(1, f"{number(row['samples'])} samples at {number(row['samples_per_s'])}/s")
    labels = f"{' (degraded)' if row['degraded'] else ''}{' (reused)' if reused else ''}"
    return f"ok       {case.name}: {', '.join(words)}{labels}"


def failed_line(row: Mapping[str, Any]) -> str:
    name = row["case"].removesuffix("_args.txt")
    first = str(row["message"]).splitlines()[:1]
    return f"FAILED   {name}: {row['failed_stage']} {row['failure_class']}: {''.join(first)} (log: {log_of(row)})"


def never_line(case: Case, state: CaseState) -> str:
    note = next((a.note() for a in reversed(state.attempts.values())), "")
    return f"NOT RUN  {case.name}{f': {note}' if note else ''}"


def log_of(row: Mapping[str, Any]) -> str:
    """The log of the stage that a row names as failed."""
    stage = row["failed_stage"]
    return row.get(f"{'long_train' if stage == 'bootstrap_train' else stage}_log") or row["out_dir"]


def explain(case: Case, verdict: Verdict, stages: Mapping[str, StageResult], row: Mapping[str, Any] | None,
            repo: Path) -> str:
    """Why a case did not pass: stage, class, root cause, last lines of the log, where the log is."""
    if verdict.final_ok:
        return ""
    stage = stages.get(verdict.failed_stage)
    log, tail = (stage.log, stage.tail) if stage is not None else ("", "")
    if stage is None and row is not None:  # reused from an earlier session
        log = log_of(row)
        if (repo / log).is_file():
            tail = "\n".join((repo / log).read_text(errors="replace").splitlines()[-TAIL_LINES:])
    head = f"{case.name}: stage {verdict.failed_stage} failed, class {verdict.failure_class}: {verdict.message}"
    not_run = [name for name in case.stages if name in stages and stages[name].outcome == "not_run"]
    lines = [head, *([f"not run: {', '.join(not_run)}"] if not_run else []), f"log: {log}"]
    return "\n".join([*lines, *(f"  | {line}" for line in tail.splitlines())])


def live_line(progress: Mapping[str, Any]) -> str:
    """One line about what runs now."""
    done = f"[{progress['done'] + 1}/{progress['total']}]" if progress["total"] else ""
    parts = []
    for run in progress["running"]:
        words = [done, run["case"], run["stage"], run["rung"]]
        if run["phase"] and run["phase"] != "training":
            words.append(f"({run['phase']})")
        if run["samples"] is not None:
            of = f"/{number(run['max_samples'])}" if run["max_samples"] else ""
            words.append(f"{number(run['samples'])}{of} samples")
        if run["samples_per_s"]:
            words.append(f"{number(run['samples_per_s'])}/s")
        if run["eta_s"]:
            words.append(f"ETA {duration(run['eta_s'])}")
        parts.append(" ".join([*words, f"running {duration(progress['time'] - run['since'])}"]))
    return " | ".join(parts)


def number(value: Any) -> str:
    """``30.0M``, ``61.2k``, ``19.4``; text as it is, ``-`` for nothing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value) if value else "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{value:.4g}"


def duration(seconds: Any) -> str:
    """``4:05``, ``2:04:05``; ``-`` for what is no number."""
    if not isinstance(seconds, (int, float)) or seconds != seconds or abs(seconds) == float("inf"):
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
