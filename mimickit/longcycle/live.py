"""The progress line: how it is shown (:class:`LiveLine`) and what it says (:class:`SessionProgress`)."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

from mimickit.cases import Case
from mimickit.longcycle import report
from mimickit.longcycle.estimate import Estimate
from mimickit.longcycle.ledger import Ledger, replay

LINE_EVERY = 60.0  # s between lines where none can be rewritten
LOOK_EVERY = 1.0  # s
Look = Callable[[int | None], tuple[str, list[str]]]


def own_stdout() -> IO[str]:
    """A copy of the real standard output, which works while pytest captures output."""
    return os.fdopen(os.dup(sys.__stdout__.fileno()), "w", buffering=1, errors="replace")


def width(terminal: IO[str]) -> int | None:
    """Columns of a terminal on which a line can be rewritten; None for a file."""
    return (os.get_terminal_size(terminal.fileno()).columns or 80) - 1 if terminal.isatty() else None


class LiveLine(threading.Thread):
    """Shows what runs: on a terminal one line that rewrites itself, elsewhere a line a minute and one for each end.

    Args:
        look: called every second with the available width (None: any); returns the line (empty: none), and lines about
            what has ended since, which stay.
    """

    def __init__(self, look: Look, terminal: IO[str]) -> None:
        super().__init__(name="longcycle-progress", daemon=True)
        self.look, self.terminal = look, terminal
        self.ended = threading.Event()
        self.renewed = False  # the next line replaces this one
        self.written: float | None = None
        self.begun = False

    def run(self) -> None:
        while not self.ended.wait(LOOK_EVERY):
            self.show()

    def show(self) -> None:
        columns = width(self.terminal)
        line, ended = self.look(columns)
        if (line or ended) and not self.begun:
            self.terminal.write("\n")  # pytest may have begun a line
            self.begun = True
        if columns is not None:
            self.clear()
            self.terminal.write("".join(f"{text[:columns]}\n" for text in ended) + line[:columns])
            self.renewed = bool(line)
        else:
            due = line and (self.written is None or time.monotonic() - self.written >= LINE_EVERY)
            lines = [*ended, *([line] if due else [])]
            self.terminal.write("".join(f"{text}\n" for text in lines))
            if due:
                self.written = time.monotonic()
        self.terminal.flush()

    def clear(self) -> None:
        """Back to an empty line."""
        if self.renewed:
            self.terminal.write("\r\x1b[K")
            self.renewed = False

    def stop(self) -> None:
        """Show the last state, and leave an empty line."""
        self.ended.set()
        self.join(timeout=10.0)
        with contextlib.suppress(OSError, ValueError):
            self.show()
            self.clear()
            self.terminal.flush()


class SessionProgress:
    """What the progress line says, from the ledger. Stages are timed here, from when they were first seen."""

    def __init__(self, ledger: Ledger, cases: Sequence[Case], estimate: Estimate) -> None:
        self.ledger, self.cases, self.estimate = ledger, cases, estimate
        self.told = len(ledger.events())  # events already shown, or of earlier sessions
        self.since: dict[tuple[str, str], float] = {}
        self.begun: set[str] = set()
        self.left_s: float | None = None  # until the session's end, as of the last look
        self.ages: dict[tuple[str, str], float] = {}

    def outlook(self) -> tuple[float | None, dict[tuple[str, str], float]]:
        """Seconds until the session's end (None before the first look), and of every stage by (case, stage)."""
        return self.left_s, self.estimate.stages(self.cases, self.ledger.state(), self.ages)

    def forecast(self) -> str:
        """A line for the start: how long the session will take, and what that is based on."""
        state = self.ledger.state()
        state.touched = set()  # an earlier session's
        stages = sum(len(self.estimate.settings.stages(case)) for case in self.cases)
        seconds = self.estimate.left(self.cases, state, self.begun, {}, {})
        return (f"{len(self.cases)} case{'s' if len(self.cases) != 1 else ''}, {stages} stages, "
                f"{self.estimate.workers} at once: about {report.duration(seconds)} "
                f"({self.estimate.basis(self.cases, state)})")

    def look(self, columns: int | None) -> tuple[str, list[str]]:
        """The progress line, and lines about what has ended since the last call."""
        now, progress, events = time.monotonic(), self.ledger.refresh_progress(), self.ledger.events()
        fresh, self.told = events[self.told:], len(events)
        for event in fresh:
            if event["event"] == "stage_start":
                self.begun.add(event["case"])
                self.since[event["case"], event["stage"]] = now  # also when it is tried again
        running = {(run["case"], run["stage"]): run["eta_s"] if run["phase"] == "training" else None
                   for run in progress["running"]}
        self.since = {key: self.since.get(key, now) for key in running}
        ages = {key: now - since for key, since in self.since.items()}
        left = self.estimate.left(self.cases, replay(events), self.begun, running, ages)
        self.left_s, self.ages = left, ages
        return (report.live_line(progress, ages, left, columns),
                report.ended_lines(fresh, progress, every_stage=columns is None))
