"""Content of ``environment.json``: what the session ran on. Nothing heavy is imported: versions come from metadata."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimickit.longcycle.devices import gpu_names
from mimickit.longcycle.settings import Settings

PACKAGES = ("torch", "newton", "warp-lang", "mujoco-warp", "mujoco", "numpy", "pytest")


def describe(settings: Settings, command: Sequence[str]) -> dict[str, Any]:
    """Commit, versions, GPUs, driver, environment of the stages, options and command line."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "command": list(command),
        "git_commit": commit(settings.repo),
        "git_changed": bool(git(settings.repo, "status", "--porcelain")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES},
        "driver": driver_version(),
        "gpus": gpu_names(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "profile": settings.profile_name,
        "profile_reason": settings.profile_reason,
        "sizes": settings.profile.model_dump(),
        "devices": list(settings.pool),
        "devices_per_case": settings.per_case,
        "engine_config": settings.engine_config,
        "runner": list(settings.runner),
        "train_env": dict(settings.train_env),
        "viz_env": dict(settings.viz_env),
        "long_mode": settings.long_mode,
        "long_budget_hours": settings.long_budget_hours,
        "long_success_policy": settings.long_success_policy,
    }


def commit(repo: Path) -> str | None:
    """Commit of a checkout, or of the archive (``git archive``, GitHub's download) that it was unpacked from."""
    file = repo / ".git_archival.txt"
    archived = re.fullmatch(r"node: ([0-9a-f]{40})\n", file.read_text()) if file.is_file() else None
    return archived[1] if archived else git(repo, "rev-parse", "HEAD")


def git(repo: Path, *command: str) -> str | None:
    """What git says of a checkout; None of another folder, whatever repository that may lie in."""
    return output(["git", "-C", str(repo), *command]) if (repo / ".git").exists() else None


def version(package: str) -> str | None:
    """Installed version of a package, None when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver_version() -> str | None:
    """Version of the NVIDIA driver, None without one."""
    path = Path("/proc/driver/nvidia/version")
    if path.is_file():
        return path.read_text().splitlines()[0]
    return output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def smallest_gpu() -> float:
    """Memory in GiB of the smallest GPU; 0 where nvidia-smi does not say."""
    told = output(["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]) or ""
    return min(map(float, re.findall(r"^\d+$", told, flags=re.MULTILINE)), default=0.0) / 1024


def output(command: list[str]) -> str | None:
    """A command's output, None when it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
