"""What code this is: the versions of the packages whose behaviour shows in results, and the commit of a checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose behaviour shows in results."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("mimickit", "torch", "newton", "warp-lang", "mujoco-warp", "mujoco", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit(repo: Path) -> str | None:
    """Commit of a checkout, or of the archive it was unpacked from (``git archive``, GitHub's download)."""
    file = repo / ".git_archival.txt"
    archived = re.fullmatch(r"node: ([0-9a-f]{40})\n", file.read_text()) if file.is_file() else None
    return archived[1] if archived else git(repo, "rev-parse", "HEAD")


def git(repo: Path, *command: str) -> str | None:
    """Output of a git command in a checkout; None where the folder itself is not one."""
    return output(["git", "-C", str(repo), *command]) if (repo / ".git").exists() else None


def output(command: list[str]) -> str | None:
    """Standard output of a command; None when it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
