"""What can go wrong, by name: exceptions, exit codes and the failure file every process leaves behind.

Three kinds of end exist for a run:

* exit 0: done (or stopped on request with everything saved; ``result.json`` tells which);
* exit 2: the user's input was wrong. :class:`UserError`, one paragraph on stderr, no traceback;
* exit 1: something failed. The process writes ``failures/rank_<r>.json`` into its run folder first, so that a
  supervisor can tell the root cause from the processes that merely died with it.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from pathlib import Path
from typing import Literal, get_args

from mimickit.util.files import write_json

FailureClass = Literal[
    "oom_gpu", "oom_host", "cuda_fault", "nccl", "hang", "timeout", "nan", "overflow", "asset_missing",
    "config", "disk", "preempted", "viz_gl", "no_result", "failed",
]
FAILURE_CLASSES: tuple[str, ...] = get_args(FailureClass)

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2


class MimicKitError(Exception):
    """Base of the errors this project raises on purpose; carries its failure class."""

    failure_class: FailureClass = "failed"


class UserError(MimicKitError):
    """Wrong input. The message says what was given, what is allowed and where; exit code 2, no traceback."""

    failure_class: FailureClass = "config"


class AssetMissingError(UserError):
    """One or more input files do not exist; the message lists all of them and how to obtain them."""

    failure_class: FailureClass = "asset_missing"


class DisplayError(UserError):
    """Off-screen rendering is not possible here; the message names the packages to install."""

    failure_class: FailureClass = "viz_gl"


class NonFiniteError(MimicKitError):
    """A NaN or infinity appeared in observations, rewards, losses or parameters."""

    failure_class: FailureClass = "nan"


class SolverOverflowError(MimicKitError):
    """The solver dropped contacts or constraints because a buffer was too small."""

    failure_class: FailureClass = "overflow"


def classify(error: BaseException) -> FailureClass:
    """Name the failure class of an exception, from its type first and its text only where libraries leave no type."""
    if isinstance(error, MimicKitError):
        return error.failure_class
    text = f"{type(error).__name__}: {error}".lower()
    if type(error).__name__ == "OutOfMemoryError" or "cuda out of memory" in text or "failed to allocate" in text:
        return "oom_gpu" if "cuda" in text else "oom_host"
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "cannot allocate memory" in text:
        return "oom_host"
    if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
        return "disk"
    if "nccl" in text or type(error).__name__.startswith("Dist"):
        return "nccl"
    if "cuda error" in text or "cudaerror" in text or "illegal memory access" in text or "device-side assert" in text:
        return "cuda_fault"
    return "failed"


def write_failure(run_dir: Path, rank: int, error: BaseException) -> Path:
    """Write ``failures/rank_<rank>.json`` into ``run_dir``: class, type, message, traceback, time, pid. Atomic."""
    path = Path(run_dir) / "failures" / f"rank_{rank}.json"
    write_json(path, {
        "failure_class": classify(error),
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "rank": rank,
        "pid": os.getpid(),
        "time": time.time(),
    })
    return path


def read_failures(run_dir: Path) -> list[dict]:
    """All failure files of a run folder, earliest first (the first one is the root cause)."""
    found = []
    for path in sorted(Path(run_dir).glob("failures/rank_*.json")):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda f: f.get("time", float("inf")))
