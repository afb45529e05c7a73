"""The line that tells what runs now."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

LINE_EVERY = 60.0  # s, where the terminal cannot renew a line
LOOK_EVERY = 1.0  # s
Look = Callable[[int | None], tuple[str, list[str]]]


def own_stdout() -> IO[str]:
    """A copy of the real standard output, which works while pytest captures."""
    return os.fdopen(os.dup(sys.__stdout__.fileno()), "w", buffering=1, errors="replace")


def width(terminal: IO[str]) -> int | None:
    """Columns of a terminal that a line can be renewed in, None of a file."""
    return (os.get_terminal_size(terminal.fileno()).columns or 80) - 1 if terminal.isatty() else None


class LiveLine(threading.Thread):
    """Shows what runs: one line that renews itself on a terminal, a line a minute and for whatever ends elsewhere.

    Args:
        look: called every second with the width there is (None: any); gives the line, empty for none, and the lines
            about what has ended since the last look, which stay.
    """

    def __init__(self, look: Look, terminal: IO[str]) -> None:
        super().__init__(name="longcycle-progress", daemon=True)
        self.look, self.terminal = look, terminal
        self.ended = threading.Event()
        self.renewed = False  # there is a line that the next one replaces
        self.written: float | None = None
        self.begun = False

    def run(self) -> None:
        while not self.ended.wait(LOOK_EVERY):
            self.show()

    def show(self) -> None:
        columns = width(self.terminal)
        line, ended = self.look(columns)
        if (line or ended) and not self.begun:
            self.terminal.write("\n")  # after what pytest has begun to write
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
        """Look a last time, and leave an empty line."""
        self.ended.set()
        self.join(timeout=10.0)
        with contextlib.suppress(OSError, ValueError):
            self.show()
            self.clear()
            self.terminal.flush()
