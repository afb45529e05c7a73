"""A case's line in ``best_by_case.tsv``. docs/old_runner.md says what the columns are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from mimickit.cases import Case
from mimickit.longcycle.commands import Attempt
from mimickit.longcycle.judge import Verdict, measure
from mimickit.longcycle.ledger import STAGE_COLUMNS
from mimickit.longcycle.settings import TRANSFER, Settings
from mimickit.longcycle.stages import BUDGET_REACHED, StageResult


def case_row(attempt: Attempt, stages: Mapping[str, StageResult], verdict: Verdict, trained_s: float) -> dict[str, Any]:
    """The line of a case that has ended. A nontrainable case's ``bootstrap_train`` stands in the ``long`` columns.

    Args:
        attempt: the one that counts; stages: how its stages ended, by name.
        trained_s: s that ``long_train`` took in all sessions together.
    """
    settings, case = attempt.settings, attempt.case
    train, relative = case.train_stage, settings.relative
    ran = {short: done for short, name in STAGE_COLUMNS.items()
           if (done := stages.get(train if short == "long" else name)) and done.outcome != "not_run"}
    learned, tested, moved = (stages[name].result if name in stages else {} for name in (train, "test", TRANSFER))
    row: dict[str, Any] = {
        "case": case.file, "method": case.method, "case_type": case.case_type, "variant": attempt.rung.variant,
        "agent_config": attempt.agent_config, "num_envs": attempt.rung.num_envs, "degraded": int(attempt.degraded),
        "profile": settings.profile_name, "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "samples": learned.get("samples"), "samples_per_s": learned.get("samples_per_s"),
        **{name: tested.get(name) for name in ("test_return", "test_episode_length", "test_episodes")},
        "test_measures": _measures(tested),
        "transfer_episode_length": moved.get("test_episode_length"), "transfer_measures": _measures(moved),
        **verdict_columns(settings, case, verdict, attempt.degraded),
        "out_dir": relative(attempt.folder),
        "probe_out_dir": relative(attempt.folder / "probe_train") if case.trainable else "",
        "long_out_dir": relative(attempt.folder / train),
        "probe_train_log": relative(attempt.log("probe_train")) if case.trainable else "",
        "long_train_log": relative(attempt.log(train)), "test_log": relative(attempt.log("test")),
        "viz_log": relative(attempt.log("viz")), "viz_video": relative(attempt.folder / "viz.mp4"),
        "stage_elapsed_sec": round(sum(done.elapsed_s for done in ran.values()), 2),
        **_budget(settings, case, ran, trained_s), **_allocation(settings, case, attempt),
    }
    for short in STAGE_COLUMNS:
        done = ran.get(short)
        row |= {f"{short}_ok": int(done.ok) if done else "", f"{short}_rc": done.rc if done else None,
                f"{short}_elapsed_s": done.elapsed_s if done else None}
        if done:
            row[f"{short}_elapsed_sec"] = done.elapsed_s
        if done and short in ("probe", "long"):
            row[f"{short}_timeout"] = int(done.failure_class == "timeout")
    if trained_s:
        row["long_elapsed_s"] = round(trained_s, 2)
    if verdict.final_ok and "long" in ran and ran["long"].failure_class:
        row["message"] = ran["long"].message  # accepted with a checkpoint, and why
    return row


def verdict_columns(settings: Settings, case: Case, verdict: Verdict, degraded: bool) -> dict[str, Any]:
    """The columns that a verdict decides.

    ``learned`` is 1 or 0, ``-`` where nothing is learned or gates do not decide; ``note`` is ``ok`` or
    ``<class>_in_<stage>``, with ``degraded`` when a smaller rung was needed.
    """
    judged = case.trainable and settings.profile.enforce_gates
    note = "ok" if verdict.final_ok else f"{verdict.failure_class}_in_{verdict.failed_stage}"
    return {
        "gate_verdict": verdict.gate.verdict, "gate_detail": verdict.gate.detail,
        "transfer_verdict": verdict.transfer.verdict, "transfer_detail": verdict.transfer.detail,
        "final_ok": int(verdict.final_ok),
        "learned": int(verdict.gate.verdict == "pass") if judged else "-",
        "note": f"{note} degraded" if degraded else note, "failed_stage": verdict.failed_stage,
        "failure_class": verdict.failure_class, "message": verdict.message,
    }


def _measures(result: Mapping[str, Any]) -> str:
    """``body_pos_err=0.03 survival=1``."""
    return " ".join(f"{name}={measure(result, name)}" for name in result.get("measures") or {})


def _budget(settings: Settings, case: Case, ran: Mapping[str, StageResult], trained_s: float) -> dict[str, Any]:
    """What training was to end by, samples or hours, and how it ended."""
    profile, reason = settings.profile, (ran["long"].stop_reason or "long_exit") if "long" in ran else ""
    if not case.trainable or settings.long_mode == "max_samples":
        return {"long_mode": "max_samples", "long_stop_reason": reason,
                "long_max_samples": profile.long_max_samples if case.trainable else profile.nontrainable_max_samples}
    target = 3600.0 * settings.long_budget_hours
    return {
        "long_mode": settings.long_mode, "long_stop_reason": reason, "long_budget_hours": settings.long_budget_hours,
        "long_budget_target_sec": target, "long_budget_elapsed_sec": round(trained_s, 2),
        "long_budget_reached": int(trained_s >= target or reason.startswith(BUDGET_REACHED)),
        "long_budget_signal": settings.long_budget_signal,
    }


def _allocation(settings: Settings, case: Case, attempt: Attempt) -> dict[str, Any]:
    """Whether the attempt was that of an allocation profile."""
    given = settings.allocation.get(case.name)
    if given is None or not case.trainable:
        return {"alloc_profile_used": 0, "alloc_source": "auto" if case.trainable else "nontrainable"}
    used = (attempt.rung.variant, attempt.rung.num_envs) == (given.variant, given.num_envs)
    return {"alloc_profile_used": int(used), "alloc_variant": given.variant, "alloc_num_envs": given.num_envs,
            "alloc_agent_config": given.agent_config, "alloc_source": "profile" if used else "ladder_fallback"}
