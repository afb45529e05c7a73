"""What people know from the runner of MimicKit's reference snapshot: its ladders, its table's columns, its check that
modules import. docs/old_runner.md maps every option and column to what it is here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mimickit.cases import Case
from mimickit.longcycle.commands import Attempt
from mimickit.longcycle.settings import AMP_PI_PLUS, DEFAULT_LADDER, PI_PLUS, Settings
from mimickit.longcycle.stages import BUDGET_REACHED, StageResult
from mimickit.util.failures import UserError

STAGES = {"probe": "probe_train", "long": "long_train", "test": "test", "viz": "viz"}
COLUMNS = (
    "case", "method", "case_type", "variant", "agent_config", "num_envs", "probe_rc", "probe_ok", "probe_timeout",
    "long_rc", "long_ok", "long_timeout", "long_mode", "long_max_samples", "long_budget_hours",
    "long_budget_target_sec", "long_budget_elapsed_sec", "long_budget_reached", "long_budget_signal",
    "long_stop_reason", "alloc_profile_used", "alloc_variant", "alloc_num_envs", "alloc_agent_config", "alloc_source",
    "test_rc", "test_ok", "viz_rc", "viz_ok", "probe_elapsed_sec", "long_elapsed_sec", "test_elapsed_sec",
    "viz_elapsed_sec", "stage_elapsed_sec", "final_ok", "note", "out_dir", "probe_out_dir", "long_out_dir",
    "probe_train_log", "long_train_log", "test_log", "viz_log",
)
IMPORTING = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})")
"""


def ladder_name(case: Case) -> str:
    """Which of the older runner's three ladders is a case's."""
    return {"amp_pi_plus": AMP_PI_PLUS, "add_pi_plus": PI_PLUS, "deepmimic_pi_plus_ppo": PI_PLUS}.get(
        case.name, DEFAULT_LADDER)


def require_modules(names: Sequence[str], python: str = sys.executable) -> None:
    """Import modules in a process of their own.

    Raises:
        UserError: some cannot be imported; the message names all of them and why.
    """
    done = subprocess.run([python, "-c", IMPORTING, *names], capture_output=True, text=True, check=False)
    missing = done.stdout.splitlines()
    if done.returncode != 0:
        missing.append(f"the check itself ended with exit code {done.returncode}: {done.stderr.strip()[-200:]}")
    if missing:
        raise UserError(f"--require-deps: {python} cannot import {'; '.join(missing)}")


def columns(settings: Settings, attempt: Attempt, stages: Mapping[str, StageResult], long_elapsed_s: float
            ) -> dict[str, Any]:
    """The columns that the older table has and ours has not by itself.

    Args:
        attempt: the one that counts.
        stages: how its stages ended, by name.
        long_elapsed_s: s that ``long_train`` took in all sessions together.
    """
    case = attempt.case
    ran = {short: done for short, name in STAGES.items()
           if (done := stages.get(attempt.train_stage if short == "long" else name)) and done.outcome != "not_run"}
    seconds = {short: done.elapsed_s for short, done in ran.items()}
    row: dict[str, Any] = {
        "agent_config": attempt.agent_config, "long_mode": settings.long_mode if case.trainable else "max_samples",
        **{f"{short}_timeout": int(ran[short].failure_class == "timeout") for short in ("probe", "long")
           if short in ran},
        **{f"{short}_elapsed_sec": value for short, value in seconds.items()},
        "stage_elapsed_sec": round(sum(seconds.values()), 2),
        "long_stop_reason": (ran["long"].stop_reason or "long_exit") if "long" in ran else "",
        **_allocation(settings, case, attempt),
    }
    if row["long_mode"] == "max_samples":
        profile = settings.profile
        row["long_max_samples"] = profile.long_max_samples if case.trainable else profile.nontrainable_max_samples
        return row
    target = 3600.0 * settings.long_budget_hours
    reached = long_elapsed_s >= target or row["long_stop_reason"].startswith(BUDGET_REACHED)
    return row | {
        "long_budget_hours": settings.long_budget_hours, "long_budget_target_sec": target,
        "long_budget_elapsed_sec": round(long_elapsed_s, 2), "long_budget_reached": int(reached),
        "long_budget_signal": settings.long_budget_signal,
    }


def _allocation(settings: Settings, case: Case, attempt: Attempt) -> dict[str, Any]:
    if not case.trainable:
        return {"alloc_profile_used": 0, "alloc_source": "nontrainable"}
    given = settings.allocation.get(case.name)
    if given is None:
        return {"alloc_profile_used": 0, "alloc_source": "auto"}
    used = (attempt.rung.variant, attempt.rung.num_envs) == (given.variant, given.num_envs)
    return {"alloc_profile_used": int(used), "alloc_variant": given.variant, "alloc_num_envs": given.num_envs,
            "alloc_agent_config": given.agent_config, "alloc_source": "profile" if used else "ladder_fallback"}
