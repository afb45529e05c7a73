"""Events of ``ledger.jsonl``: their schema, and how they are written and read.

Each line carries a checksum, so that a flipped bit is not taken for a result; lines of older versions have none and
are only validated. ledger.py lists the kinds.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

CHECKSUM = "crc32"

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # also as a path
CaseName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # also as a folder's name
Stage = Literal["probe_train", "long_train", "bootstrap_train", "test", "transfer", "viz"]


class _Data(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


class _Event(_Data):
    time: float


class _CaseEvent(_Event):
    case: CaseName


class _SessionStart(_Event):
    cases: list[CaseName]
    session: Text = ""
    profile: Text = ""
    passed_before: list[CaseName] = []


class _SessionEnd(_Event):
    status: Text


class _CaseWaiting(_CaseEvent):
    devices: Text


class _StageEvent(_CaseEvent):
    variant: Text
    num_envs: int
    stage: Stage
    fingerprint: Text
    key: dict[str, Any]
    degraded: bool
    devices: list[Text]
    folder: Text
    out_dir: Text
    log: Text
    started: float
    afresh: bool


class _StageEnd(_StageEvent):
    outcome: Literal["ok", "failed", "interrupted", "not_run"]
    elapsed_s: float
    failure_class: Text = ""
    message: str = ""
    rc: int | None = None
    result: dict[str, Any] = {}
    tail: str = ""


class _Row(_Data):
    case: Text
    variant: Text
    num_envs: int
    final_ok: Literal[0, 1]
    out_dir: Text = ""
    probe_train_log: Text = ""
    long_train_log: Text = ""
    test_log: Text = ""
    viz_log: Text = ""
    failed_stage: Text = ""
    failure_class: Text = ""


class _CaseEnd(_CaseEvent):
    row: _Row


KINDS: dict[str, type[_Event]] = {
    "session_start": _SessionStart, "session_end": _SessionEnd, "case_waiting": _CaseWaiting,
    "stage_start": _StageEvent, "stage_end": _StageEnd, "case_end": _CaseEnd, "case_reused": _CaseEvent,
}


def to_line(event: Mapping[str, Any]) -> bytes:
    """An event as a line of the ledger, with its checksum."""
    body = json.dumps(event, default=str)
    return f'{body[:-1]}, "{CHECKSUM}": "{_checksum(body)}"}}\n'.encode()


def from_line(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None when the line is damaged or invalid."""
    try:
        event = json.loads(line.decode())
        if not isinstance(event, dict):
            return None
        checksum = event.pop(CHECKSUM, None)
        if checksum is not None and checksum != _checksum(json.dumps(event)):
            return None
        KINDS[str(event.get("event"))].model_validate(event)
    except (ValueError, KeyError, RecursionError, ValidationError):
        return None
    return event


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


@dataclass(frozen=True)
class Content:
    """The valid events of a ledger in order, and the number of damaged lines, which are skipped."""

    events: list[dict[str, Any]]
    damaged: int


class EventFile:
    """Reads a growing ledger: only what was appended since the last read, or everything when the file was replaced
    or has shrunk. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._forget(())

    def _forget(self, identity: tuple[int, ...]) -> None:
        self._identity, self._offset, self._known = identity, 0, Content([], 0)

    def read(self) -> Content:
        """The file's content; empty without a file. A last line without a newline counts if it is complete."""
        if not self.path.is_file():
            return Content([], 0)
        with self._lock, self.path.open("rb") as file:
            state = os.fstat(file.fileno())
            if (state.st_dev, state.st_ino) != self._identity or state.st_size < self._offset:
                self._forget((state.st_dev, state.st_ino))
            file.seek(self._offset)
            lines, end, rest = file.read().rpartition(b"\n")
            self._known = _with_lines(self._known, lines)
            self._offset += len(lines) + len(end)
            return _with_lines(self._known, rest)


def _with_lines(known: Content, data: bytes) -> Content:
    found = [from_line(line) for line in data.split(b"\n") if line.strip()]
    events = [event for event in found if event is not None]
    return Content(known.events + events, known.damaged + len(found) - len(events))
