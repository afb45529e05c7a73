"""What can go wrong, by name: exceptions, exit codes and the failure file every process leaves behind.

Three kinds of end exist for a run:

* exit 0: done (or stopped on request with everything saved; ``result.json`` tells which);
* exit 2: the user's input was wrong. :class:`UserError`, one paragraph on stderr, no traceback;
* exit 1: something failed. The process writes ``failures/rank_<r>.json`` into its run folder first, so that a
  supervisor can tell the root cause from the processes that merely died with it.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, get_args

from mimickit.util.files import read_json, write_json

FailureClass = Literal[
    "oom_gpu", "oom_host", "cuda_fault", "nccl", "no_start", "hang", "timeout", "nan", "overflow", "asset_missing",
    "config", "disk", "preempted", "viz_gl", "no_result", "failed",
]
FAILURE_CLASSES: tuple[str, ...] = get_args(FailureClass)

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
P = ParamSpec("P")


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


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_NO_MEMORY = re.compile(
    r"out of memory|failed to (cuda )?(m|c)?alloc|can(no|')t allocate memory|bad_alloc|alloc_failed")
# The loader's words about a library, which may be one of CUDA; after a colon it gives another reason.
_NO_ADDRESS_SPACE = re.compile(r"failed to map segment from shared object(?!:)")
_GPU = re.compile(r"cuda|cublas|cudnn|cusolver|nccl")
_GPU_FAULT = re.compile(
    r"cuda error( \d+)?(:| detected)|cudaerror|illegal memory access|device-side assert|launch failure")
_CONNECTION = re.compile(r"nccl|gloo|connection (closed|reset) by peer")


def classify(error: BaseException) -> FailureClass:
    """Name the failure class of an exception, from its type first and its text only where libraries leave no type.

    An exception that says nothing is judged by the one it was raised from.
    """
    classes = [_classify(one) for one in _chain(error)]
    return next((name for name in classes if name != "failed"), "failed")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _classify(error: BaseException) -> FailureClass:
    if isinstance(error, MimicKitError):
        return error.failure_class
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return "disk"
    text = f"{type(error).__name__}: {error}".lower()
    no_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if no_memory or _NO_ADDRESS_SPACE.search(text):
        return "oom_host"
    if type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(text):
        return "oom_gpu" if _GPU.search(text) else "oom_host"
    if _GPU_FAULT.search(text):
        return "cuda_fault"
    if type(error).__name__.startswith("Dist") or _CONNECTION.search(text):
        return "nccl"
    return "failed"


def failure_file(run_dir: Path, rank: int) -> Path:
    """Where a process says why it failed."""
    return Path(run_dir) / "failures" / f"rank_{rank}.json"


def write_failure(run_dir: Path, rank: int, error: BaseException) -> Path:
    """Write ``failures/rank_<rank>.json`` into ``run_dir``: class, type, message, traceback, time, pid. Atomic.

    Where even that cannot be written (a full disk), says so on stderr: the run's first error must not be hidden.
    """
    path = failure_file(run_dir, rank)
    try:
        write_json(path, {
            "failure_class": classify(error),
            "type": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
            "rank": rank,
            "pid": os.getpid(),
            "time": time.time(),
        })
    except OSError as problem:
        print(f"{path} could not be written: {problem}", file=sys.stderr)
    return path


def read_failures(run_dir: Path) -> list[dict[str, Any]]:
    """All failure files of a run folder, earliest first. See :func:`root_cause`."""
    files = sorted(Path(run_dir).glob("failures/rank_*.json"))
    found = [failure for file in files if (failure := read_json(file))]
    return sorted(found, key=lambda f: f.get("time", float("inf")))


def root_cause(failures: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The failure that brought the others about: the earliest that is more than a lost connection; None of none.

    A process that ends takes its connections with it, so the others fail with class ``nccl``, sometimes before it has
    written its own file.
    """
    telling = [failure for failure in failures if failure.get("failure_class") not in ("nccl", "failed")]
    return next(iter([*telling, *failures]), None)


def explains_mistakes(main: Callable[P, int]) -> Callable[P, int]:
    """``main`` that answers a mistake with one message on stderr and exit code 2, without a traceback.

    Mistakes are a UserError, and a file that the system refuses to read or write ("FILE: reason").
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(error, file=sys.stderr)
        except OSError as error:
            file = error.filename2 or error.filename
            if file is None or not error.strerror:
                raise
            print(f"{file}: {error.strerror}", file=sys.stderr)
        return EXIT_USER_ERROR

    return wrapped
