"""What people and job systems see: the progress line, why a case failed, the summary, its page, JUnit properties."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mimickit.cases import Case
from mimickit.longcycle.judge import Verdict, gate_words
from mimickit.longcycle.ledger import STAGE_COLUMNS, CaseState, State, damaged_lines
from mimickit.longcycle.settings import Settings
from mimickit.longcycle.stages import TAIL_LINES, StageResult
from mimickit.util.assets import SHIPPED

PLOTTER = "tools/plot_log.py"  # in a checkout


def counts(cases: Sequence[Case], passed: set[str]) -> str:
    """``32/32 final_ok=1 | trainable 25/25 | nontrainable 7/7 | add 5/5 amp 9/9 ...``"""
    def of(group: Sequence[Case]) -> str:
        return f"{sum(case.name in passed for case in group)}/{len(group)}"

    types = [f"{kind} {of(group)}" for kind in ("trainable", "nontrainable")
             if (group := [case for case in cases if case.case_type == kind])]
    methods = [f"{method} {of([case for case in cases if case.method == method])}"
               for method in sorted({case.method for case in cases})]
    return " | ".join([f"{of(cases)} final_ok=1", *types, " ".join(methods)])


def by_end(state: State, cases: Sequence[Case], reused: set[str]) -> tuple[list[Case], list[Case], list[Case]]:
    """The session's cases that passed, that failed, and that have no end."""
    known = state.touched | reused
    passed = [case for case in cases if case.name in known and state.case(case.name).passed]
    failed = [case for case in cases if case.name in state.touched and case not in passed]
    return passed, failed, [case for case in cases if case not in passed and case not in failed]


def summary(state: State, cases: Sequence[Case], reused: set[str], settings: Settings,
            resumable: bool = True) -> list[str]:
    """The lines at the end of a session: a result per case, what failed or never ran, and last the counts."""
    passed, failed, never = by_end(state, cases, reused)
    lines = [passed_line(case, state.case(case.name), case.name in reused) for case in passed]
    lines += [failed_line(state.case(case.name).row) for case in failed]
    lines += [never_line(case, state.case(case.name)) for case in never]
    if settings.deferred:
        lines.append(deferred_line(settings))
    if state.damaged:
        lines.append(damaged_lines(state.damaged))
    if not settings.profile.enforce_gates:
        lines.append(f"profile {settings.profile_name}: learning is not judged")
    lines += whereabouts(settings, state, passed, bool(never or failed), resumable)
    return [*lines, counts(cases, {case.name for case in passed})]


def deferred_line(settings: Settings) -> str:
    """Which cases wait for another night; empty when none does."""
    return f"deferred by --budget-gpu-hours: {', '.join(settings.deferred)}" if settings.deferred else ""


def whereabouts(settings: Settings, state: State, passed: Sequence[Case], unfinished: bool,
                resumable: bool) -> list[str]:
    """Where the files are, and the next command to run."""
    root, python = settings.relative(settings.out), settings.relative(sys.executable)
    lines = [f"in {root}: index.html (the page), summary.md, best_by_case.tsv; below runs/<case>_args/*/: logs, "
             "models, viz.mp4"]
    if unfinished and resumable:
        command = state.session.get("command") or ["", "-m", "longcycle"]
        options = [word for word in command[1:] if word not in ("--lf", "--last-failed")]
        lines.append(f"continue: {shlex.join([python, '-m', 'pytest', *options, '--lf'])}")
    elif (SHIPPED / PLOTTER).is_file() and (trained := [case for case in passed if case.trainable]):
        folder = state.case(trained[0].name).row["long_out_dir"]
        lines.append(f"curves: {python} {PLOTTER} {folder}")
    return lines


def markdown(state: State, cases: Sequence[Case], reused: set[str], settings: Settings) -> str:
    """The summary as a page for job systems: counts, cases x stages with times and verdicts, failures and their
    logs."""
    passed, failed, never = by_end(state, cases, reused)
    lines = [f"## longcycle: {counts(cases, {case.name for case in passed}) if cases else 'no case was selected'}", "",
             f"Profile {settings.profile_name}, files in `{settings.relative(settings.out)}`.", ""]
    if not settings.profile.enforce_gates:
        lines[2] += " Learning is not judged."
    if settings.deferred:
        lines[2] += f" {deferred_line(settings)[0].upper()}{deferred_line(settings)[1:]}."
    if cases:
        head = ["case", *STAGE_COLUMNS, "envs", "samples", "samples/s", "return", "gate", "verdict"]
        lines += [table_line(head), table_line(["---"] * len(head))]
    for case in cases:
        row, words = state.case(case.name).row, unfinished(state.case(case.name))
        if case in never or row is None:
            lines.append(table_line([case.name, *[""] * (len(head) - 2),
                                     f"**not run**{f' ({words})' if words else ''}"]))
            continue
        verdict = "ok" if case in passed else f"**{row['failure_class']} in {row['failed_stage']}**"
        lines.append(table_line([
            case.name, *(stage_cell(row, short) for short in STAGE_COLUMNS), row["num_envs"], number(row["samples"]),
            number(row["samples_per_s"]), number(row["test_return"]),
            gate_words(row["gate_verdict"], row["gate_detail"]), verdict + labels(row, case.name in reused)]))
    if failed:
        lines += ["", "### Failed", ""]
        lines += [f"- **{case.name}**: {row['failed_stage']}, class `{row['failure_class']}`: "
                  f"{''.join(str(row['message']).splitlines()[:1])} (log: `{log_of(row)}`)"
                  for case in failed if (row := state.case(case.name).row)]
    return "\n".join(lines) + "\n"


def table_line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str("" if cell is None else cell).replace("|", "\\|") for cell in cells) + " |"


def stage_cell(row: Mapping[str, Any], short: str) -> str:
    """``1:23``, ``**failed** 1:23``, or nothing for a stage that did not run."""
    ok, seconds = str(row.get(f"{short}_ok")), row.get(f"{short}_elapsed_s")  # older rows lack later stages
    if ok not in ("0", "1"):
        return ""
    return f"{'' if ok == '1' else '**failed** '}{duration(seconds)}"


def add_to_job_summary(page: str) -> None:
    """Append a page to the job summary on GitHub; does nothing elsewhere."""
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{page}\n")


def properties(case: Case, row: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """JUnit properties of a case: its end, numbers, gate verdict, and the outcome and time of each stage."""
    if row is None:
        return [("outcome", "not_run")]
    times = [seconds for short in STAGE_COLUMNS if isinstance(seconds := row.get(f"{short}_elapsed_s"), (int, float))]
    found = {
        "outcome": "ok" if str(row["final_ok"]) == "1" else row["failure_class"], "failed_stage": row["failed_stage"],
        "elapsed_s": round(sum(times), 2), "samples": row["samples"], "samples_per_s": row["samples_per_s"],
        "variant": row["variant"], "num_envs": row["num_envs"], "degraded": row["degraded"],
        "test_return": row["test_return"], "gate_verdict": row["gate_verdict"], "gate_detail": row["gate_detail"],
    }
    for short in STAGE_COLUMNS:
        stage = case.train_stage if short == "long" else STAGE_COLUMNS[short]
        if stage in case.stages or str(row.get(f"{short}_ok")) in ("0", "1"):
            found[stage] = {"1": "ok", "0": "failed"}.get(str(row[f"{short}_ok"]), "not_run")
            found[f"{stage}_elapsed_s"] = row[f"{short}_elapsed_s"]
    if found.get(row["failed_stage"]) == "failed":
        found[row["failed_stage"]] = row["failure_class"]
    return [(name, "" if value is None else str(value)) for name, value in found.items()]


def passed_line(case: Case, state: CaseState, reused: bool) -> str:
    row = state.row
    measures = (f"return {number(row['test_return'])}, episode length {number(row['test_episode_length'])} "
                f"in {number(row['test_episodes'])} episodes")
    judged = "learning not judged" if row["gate_verdict"] == "not_judged" else f"gate {row['gate_verdict']}"
    words = [f"{row['variant']}_e{row['num_envs']}", measures, judged]
    if row.get("samples_per_s"):
        words.insert(1, f"{number(row['samples'])} samples at {number(row['samples_per_s'])}/s")
    return f"ok       {case.name}: {', '.join(words)}{labels(row, reused)}"


def labels(row: Mapping[str, Any], reused: bool) -> str:
    """Remarks on a case's end, in brackets."""
    accepted = row["message"] if str(row["final_ok"]) == "1" else ""
    words = [accepted, "degraded" if row["degraded"] else "", "reused" if reused else ""]
    return "".join(f" ({word})" for word in words if word)


def failed_line(row: Mapping[str, Any]) -> str:
    name = row["case"].removesuffix("_args.txt")
    first = str(row["message"]).splitlines()[:1]
    return f"FAILED   {name}: {row['failed_stage']} {row['failure_class']}: {''.join(first)} (log: {log_of(row)})"


def never_line(case: Case, state: CaseState) -> str:
    note = unfinished(state)
    return f"NOT RUN  {case.name}{f': {note}' if note else ''}"


def unfinished(state: CaseState) -> str:
    """How far a case without an end came; empty when it never began."""
    return next((attempt.note() for attempt in reversed(state.attempts.values())), "")


def log_of(row: Mapping[str, Any]) -> str:
    """The log of the failed stage."""
    stage = row["failed_stage"]
    return row.get(f"{'long_train' if stage == 'bootstrap_train' else stage}_log") or row["out_dir"]


def explain(case: Case, verdict: Verdict, stages: Mapping[str, StageResult], row: Mapping[str, Any] | None,
            repo: Path) -> str:
    """Why a case did not pass: stage, class, root cause, the log and its last lines."""
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
    lines = [head, *([f"not run: {', '.join(not_run)}"] if not_run else []), *([f"log: {log}"] if log else [])]
    return "\n".join([*lines, *(f"  | {line}" for line in tail.splitlines())])


def live_line(progress: Mapping[str, Any], ages: Mapping[tuple[str, str], float], left_s: float,
              columns: int | None) -> str:
    """``[3/32] about 12:40 left | add_smpl long_train 45%, 1:12 | ...``: cases done, then what runs, as space
    allows.

    Args:
        ages: seconds for which a stage has run, by (case, stage).
        left_s: seconds until the session's end.
        columns: width there is; None: any.
    """
    wide = columns is None or columns > 100
    parts = [running_part(run, ages.get((run["case"], run["stage"]), 0.0), wide) for run in progress["running"]]
    parts += [f"{case} waits for a free device ({devices})" for case, devices in progress["waiting"].items()]
    if not parts:
        return ""
    line = f"[{progress['done']}/{progress['total']}] about {duration(left_s)} left"
    for shown, part in enumerate(parts):
        more = f" | +{len(parts) - shown} more"
        last = shown == len(parts) - 1
        if columns is not None and len(f"{line} | {part}") + (0 if last else len(more)) > columns:
            return line + (more if shown else f" | {part}")
        line += f" | {part}"
    return line


def running_part(run: Mapping[str, Any], age: float, with_rate: bool) -> str:
    """``add_smpl long_train 45%, 1:12``: case, stage, share or phase, time so far, samples/s."""
    words = [run["case"], run["stage"]]
    if run["samples"] and run["max_samples"] and run["stage"] != "probe_train":
        words.append(f"{100 * run['samples'] / run['max_samples']:.0f}%")
    elif run["phase"] and run["phase"] not in ("training", "testing"):
        words.append(f"({run['phase']})")
    rate = f", {number(run['samples_per_s'])}/s" if with_rate and run["samples_per_s"] else ""
    return f"{' '.join(words)}, {duration(age)}{rate}"


def ended_lines(events: Sequence[Mapping[str, Any]], progress: Mapping[str, Any], every_stage: bool) -> list[str]:
    """A line for each case that ended, and for its stages: all of them, or only those that failed."""
    lines = []
    for event in events:
        if event["event"] == "stage_end" and (every_stage or event["outcome"] != "ok"):
            lines.append(f"{event['case']} {event['stage']}: {event['failure_class'] or event['outcome']} after "
                         f"{duration(event['elapsed_s'])}")
        elif event["event"] == "case_end":
            row = event["row"]
            end = "ok" if str(row["final_ok"]) == "1" else f"FAILED: {row['failure_class']} in {row['failed_stage']}"
            lines.append(f"[{progress['done']}/{progress['total']}] {event['case']} {end}")
    return lines


def number(value: Any) -> str:
    """``30.0M``, ``61.2k``, ``19.4``; text unchanged, ``-`` for nothing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value) if value else "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{value:.4g}"


def duration(seconds: Any) -> str:
    """``4:05``, ``2:04:05``; ``-`` for anything but a finite number."""
    if not isinstance(seconds, (int, float)) or seconds != seconds or abs(seconds) == float("inf"):
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
