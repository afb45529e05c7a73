"""What the line of a session that runs cases is made of."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mimickit.cases import Case
from mimickit.longcycle import report
from mimickit.longcycle.estimate import Estimate
from mimickit.longcycle.ledger import Ledger, fold


class Watching:
    """Looks into the ledger again and again. How long a stage runs is measured here, from when it was first seen."""

    def __init__(self, ledger: Ledger, cases: Sequence[Case], estimate: Estimate) -> None:
        self.ledger, self.cases, self.estimate = ledger, cases, estimate
        self.told = len(ledger.events())  # events that happened before or have been told
        self.since: dict[tuple[str, str], float] = {}
        self.begun: set[str] = set()

    def forecast(self) -> str:
        """A line for the start: how long the session will take, and what that stands on."""
        state = self.ledger.state()
        state.touched = set()  # that is of an earlier session
        stages = sum(len(case.stages) for case in self.cases)
        seconds = self.estimate.left(self.cases, state, self.begun, {}, {})
        return (f"{len(self.cases)} case{'s' if len(self.cases) != 1 else ''}, {stages} stages, "
                f"{self.estimate.workers} at once: about {report.duration(seconds)} "
                f"({self.estimate.basis(self.cases, state)})")

    def look(self, columns: int | None) -> tuple[str, list[str]]:
        """The line that tells what runs, and lines about what has ended since the last look."""
        now, progress, events = time.monotonic(), self.ledger.refresh_progress(), self.ledger.events()
        fresh, self.told = events[self.told:], len(events)
        for event in fresh:
            if event["event"] == "stage_start":
                self.begun.add(event["case"])
                self.since[event["case"], event["stage"]] = now  # also of one that is tried again
        running = {(run["case"], run["stage"]): run["eta_s"] if run["phase"] == "training" else None
                   for run in progress["running"]}
        self.since = {key: self.since.get(key, now) for key in running}
        ages = {key: now - since for key, since in self.since.items()}
        left = self.estimate.left(self.cases, fold(events), self.begun, running, ages)
        return (report.live_line(progress, ages, left, columns),
                report.ended_lines(fresh, progress, every_stage=columns is None))
