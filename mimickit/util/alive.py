"""Signs of life of a process that starts: it imports, meets the others, waits for kernels or compiles them.

From its first iteration or step on a process beats by itself (:class:`mimickit.util.logging.Heartbeat`). Before that it
is busy in other people's code, so a thread beats for it: in these phases alone, and as long as the process' CPU time
advances, so that one that is stuck is still found. Who polls a lock calls :meth:`Alive.beat` at every poll.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mimickit.util.files import write_json
from mimickit.util.logging import Heartbeat
from mimickit.util.processes import WATCHED

PERIOD = 1.0  # s
WAITING = "waiting for kernels"  # a phase that counts for no patience: another process compiles them
BUSY = 0.01  # of a core: with less a process waits for something


class Alive:
    """This process while it starts; says nothing before it has a folder to say it in."""

    def __init__(self) -> None:
        self._heartbeat: Heartbeat | None = None
        self._progress: Path | None = None
        self._ended: threading.Event | None = None

    def expect(self, out_dir: Path, rank: int | None) -> None:
        """From now on beat in this run folder as one that is to become process ``rank``; None: not known yet."""
        self._heartbeat = Heartbeat(out_dir, rank, starting=True)

    def begin(self, out_dir: Path, rank: int, is_root: bool) -> None:
        """From now on beat in this run folder as process ``rank``; the root tells its phase too."""
        self._heartbeat = Heartbeat(out_dir, rank)
        self._progress = Path(out_dir) / "progress.json" if is_root else None
        self.enter("starting")

    def beat(self) -> None:
        """One sign of life: a lock was polled, or the others' arrival."""
        if self._heartbeat is not None:
            self._heartbeat.beat()

    def enter(self, phase: str) -> None:
        """Write the phase to ``progress.json``: starting, waiting for kernels, compiling."""
        self.beat()
        if self._progress is not None:
            write_json(self._progress, {"phase": phase, "time": time.time()})

    def start(self) -> None:
        """Beat from now on while CPU time advances, until :meth:`stop`."""
        if self._ended is None:
            self._ended = threading.Event()
            threading.Thread(target=self._watch, args=(self._ended,), name="signs-of-life", daemon=True).start()

    def stop(self) -> None:
        if self._ended is not None:
            self._ended.set()
            self._ended = None

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """A phase of work: beat while CPU time advances, as during the whole start."""
        starting = self._ended is not None
        self.enter("compiling")
        self.start()
        try:
            yield
        finally:
            if not starting:
                self.stop()
            self.enter("starting")

    def _watch(self, ended: threading.Event) -> None:
        seen, used = time.monotonic(), time.process_time()
        while not ended.wait(PERIOD):
            now, cpu = time.monotonic(), time.process_time()
            if cpu - used >= BUSY * (now - seen):
                with contextlib.suppress(OSError):  # the folder was removed
                    self.beat()
            seen, used = now, cpu


ALIVE = Alive()


def watch_from_start() -> None:
    """Beat from now on if whoever started this process watches it."""
    if folder := os.environ.get(WATCHED):
        ALIVE.expect(Path(folder), int(os.environ["RANK"]) if "LOCAL_RANK" in os.environ else None)
        ALIVE.start()
