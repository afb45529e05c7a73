"""The page of a session that runs: written every few seconds by a thread of the session."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mimickit.util.failures import AssetMissingError

EVERY = 4.0  # s between writes
LONGEST = 30.0  # s between writes that take long
SHARE = 0.004  # of a core that writing may take, after the first: what takes longer is followed by a longer pause
Outlook = Callable[[], tuple[float | None, Mapping[tuple[str, str], float]]]


class LivePage(threading.Thread):
    """Writes the page of a root until :meth:`stop`. A page that cannot be written is told of once, and tried again.

    Args:
        root: the root, which need not exist yet.
        outlook: seconds until the end (None: not known), and of stages that have not run.
        note: a remark for the page's head.
    """

    def __init__(self, root: Path, outlook: Outlook, note: str = "") -> None:
        super().__init__(name="longcycle-page", daemon=True)
        self.root, self.outlook, self.note = root, outlook, note
        self.ended = threading.Event()
        self.page: Any = None
        self.machine: Any = None
        self.cpu_s = 0.0  # that writing took so far
        self.writes = 0
        self.told = False  # that it cannot be written

    def run(self) -> None:
        pause = 0.2
        while not self.ended.wait(pause):
            before = self.cpu_s
            wrote = self.write()
            took = self.cpu_s - before if self.writes > 1 else 0.0  # the first write reads what later ones know
            pause = min(LONGEST, max(EVERY, took / SHARE)) if wrote else LONGEST

    def write(self) -> bool:
        """Write the page once; False when it could not be written."""
        before = time.thread_time()
        from mimickit.longcycle.results.data import Root
        from mimickit.longcycle.results.machine import Machine
        from mimickit.longcycle.results.pages import ReportPage

        try:
            if self.page is None:
                self.page, self.machine = ReportPage([Root(self.root)], self.root), Machine()
            left_s, expected = self.outlook()
            self.page.write(expected, left_s, {} if self.ended.is_set() else self.machine.look(), self.note)
        except AssetMissingError:
            return True  # the session has not written anything yet
        except Exception as error:  # whatever happens to the page, the session goes on
            if not self.told:
                print(f"\nthe page cannot be written: {type(error).__name__}: {error}", file=sys.__stderr__)
            self.told = True
            return False
        self.cpu_s += time.thread_time() - before
        self.writes += 1
        return True

    def stop(self) -> None:
        """Write the page as it is at the end."""
        self.ended.set()
        self.join(timeout=30.0)
        if not self.is_alive():
            self.write()
