"""What a session ran on (``environment.json``). Versions come from metadata; no heavy package is imported."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimickit.longcycle.devices import gpu_names
from mimickit.longcycle.settings import Settings
from mimickit.util.failures import UserError
from mimickit.util.versions import commit, git, output

PACKAGES = ("torch", "newton", "warp-lang", "mujoco-warp", "mujoco", "numpy", "pytest")
IMPORTING = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})")
"""



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


def require_modules(names: Sequence[str], python: str = sys.executable) -> None:
    """Import modules in a process of their own.

    Raises:
        UserError: some cannot be imported; the message says which and why.
    """
    done = subprocess.run([python, "-c", IMPORTING, *names], capture_output=True, text=True, check=False)
    missing = done.stdout.splitlines()
    if done.returncode != 0:
        missing.append(f"the check itself ended with exit code {done.returncode}: {done.stderr.strip()[-200:]}")
    if missing:
        raise UserError(f"--require-deps: {python} cannot import {'; '.join(missing)}")
