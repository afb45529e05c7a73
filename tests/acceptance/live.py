"""The line that tells what runs now."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import IO, Any

from tests.acceptance import report
from tests.acceptance.ledger import Ledger

LINE_EVERY = 15.0  # s, where the terminal cannot update a line


def own_stdout() -> IO[str]:
    """A copy of the real standard output, which works while pytest captures."""
    return os.fdopen(os.dup(sys.__stdout__.fileno()), "w", buffering=1, errors="replace")


class LiveLine(threading.Thread):
    """Shows what runs: one line that updates itself on a terminal, a line every 15 s and at every stage elsewhere."""

    def __init__(self, ledger: Ledger, terminal: IO[str]) -> None:
        super().__init__(name="longcycle-progress", daemon=True)
        self.ledger, self.terminal = ledger, terminal
        self.ended = threading.Event()
        self.shown: Any = None
        self.written = 0.0

    def run(self) -> None:
        updating = self.terminal.isatty()
        while not self.ended.wait(1.0 if updating else 0.5):
            progress = self.ledger.refresh_progress()
            stages = [(run["case"], run["stage"], run["rung"]) for run in progress["running"]]
            if not updating:  # a line more once there are numbers
                stages = [(*stage, run["samples"] is not None) for stage, run in zip(stages, progress["running"])]
            stages += progress["waiting"]
            if not stages:
                continue
            fresh = stages != self.shown
            if updating:
                columns = os.get_terminal_size(self.terminal.fileno()).columns or 120
                start = "\n" if fresh else "\r"
                self.terminal.write(f"{start}{report.live_line(progress)[:columns - 1]}\x1b[K")
            elif fresh or time.monotonic() - self.written >= LINE_EVERY:
                self.terminal.write(f"{'' if self.shown else chr(10)}{report.live_line(progress)}\n")
                self.written = time.monotonic()
            self.terminal.flush()
            self.shown = stages

    def stop(self) -> None:
        self.ended.set()
        self.join(timeout=10.0)
        with contextlib.suppress(OSError):
            self.terminal.close()
