"""Root folders of sessions: where they are and what they recorded, also after they were moved or copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from mimickit.longcycle.devices import try_lock
from mimickit.longcycle.ledger import LEDGER, read_events
from mimickit.util.failures import UserError

BASE = Path("output/train")
SESSION_LOCK = ".session.lock"
ENVIRONMENTS = "environments"  # what each session ran on, <session>.json


def root_path(text: str, repo: Path) -> Path:
    """A root that need not exist yet: a name below output/train, or a path (with a slash)."""
    return Path(text).absolute() if "/" in text.rstrip("/") or text in (".", "..") else repo / BASE / text


def find_root(text: str, repo: Path) -> Path:
    """A root with recorded results: a name below output/train, or a path.

    Raises:
        UserError: neither has a ledger.
    """
    tried = list(dict.fromkeys([repo / BASE / text, Path(text).absolute()]))
    for path in tried:
        if (path / LEDGER).is_file():
            return path
    raise UserError(f"{text}: no recorded results: no {LEDGER} in {' or '.join(map(str, tried))}")


def recorded_profile(root: Path) -> str | None:
    """The profile of a root's last session, None when it names none."""
    names = [event.get("profile") for event in read_events(root / LEDGER) if event["event"] == "session_start"]
    return names[-1] if names else None


def lock_session(root: Path) -> IO[str] | None:
    """Take the lock of a working session; None when it is held. Close the file to release it."""
    return try_lock(root / SESSION_LOCK)


def rebased(event: Mapping[str, Any], root: str) -> dict[str, Any]:
    """A case's event with its paths below ``root``, wherever the root was when it was recorded."""
    row = event.get("row") or {}
    before, runs, _ = str(event.get("folder") or row.get("out_dir") or "").rpartition("/runs/")
    return _moved(event, before, root) if runs and before != root else dict(event)


def _moved(value: Any, before: str, after: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _moved(entry, before, after) for key, entry in value.items()}
    if isinstance(value, list):
        return [_moved(entry, before, after) for entry in value]
    if isinstance(value, str) and value.startswith(f"{before}/"):
        return after + value[len(before):]
    return value
