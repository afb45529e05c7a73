"""When a training ends, and when it evaluates and saves."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Literal

from mimickit.learning.config import TrainOptions

Outcome = Literal["completed", "budget", "interrupted"]
_SAME_REQUEST_S = 2.0  # a launcher passes on the signal that its children received already from the terminal


class StopSignals:
    """Context in which the first SIGINT or SIGTERM is noted in ``received``; a second one ends the process at once.

    Handlers can only be installed in the main thread; elsewhere nothing is caught.

    Args:
        says: a line on stderr that answers the first one at once.
    """

    def __init__(self, says: str = "") -> None:
        self._says = says
        self.received: int | None = None
        self._at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __bool__(self) -> bool:
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, time.monotonic()
            if self._says:
                os.write(2, f"{self._says}\n".encode())
        elif time.monotonic() - self._at > _SAME_REQUEST_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class StopRule:
    """Ends a training when its samples, iterations or hours are used up, or at a signal.

    Processes must agree. Samples and iterations are equal everywhere; of a signal, which may reach any of them, and of
    the root's clock the processes learn by the votes that the iteration's reduction adds up.
    """

    def __init__(self, options: TrainOptions, signals: StopSignals, is_root: bool) -> None:
        self._options, self._signals, self._is_root = options, signals, is_root
        self._begun = time.monotonic()

    def votes(self) -> dict[str, bool]:
        """This process's votes, by their reason."""
        budget = self._options.time_budget_s
        return {
            "signal": bool(self._signals),
            "budget": self._is_root and budget is not None and time.monotonic() - self._begun >= budget,
        }

    def used_up(self, samples: int, iterations: int) -> bool:
        """Whether this process has made all the samples or iterations that it was to make."""
        limit = self._options.max_iters
        return samples >= self._options.max_samples or (limit is not None and iterations >= limit)

    def outcome(self, samples: int, iterations: int, votes: frozenset[str]) -> Outcome | None:
        """How the training ends after this iteration, if it does; ``votes``: reasons that any process voted for."""
        if "signal" in votes:
            return "interrupted"
        if self.used_up(samples, iterations):
            return "completed"
        return "budget" if "budget" in votes else None


class OutputRule:
    """Evaluate and save after so many iterations, samples or seconds since the last time; the first iteration counts
    as due."""

    def __init__(self, options: TrainOptions, iters_per_output: int, is_root: bool) -> None:
        self._options, self._every, self._is_root = options, iters_per_output, is_root
        self._last_time = time.monotonic()

    def votes(self) -> dict[str, bool]:
        """As of :meth:`StopRule.votes`."""
        every = self._options.output_seconds
        return {"output": self._is_root and every is not None and time.monotonic() - self._last_time >= every}

    def due(self, iteration: int, samples: int, last: list[int] | None, votes: frozenset[str]) -> bool:
        """``last``: iteration and samples of the last output."""
        if last is None:
            return True
        every = self._options.output_samples
        return (
            iteration - last[0] >= self._every
            or (every is not None and samples - last[1] >= every)
            or "output" in votes
        )

    def made(self) -> None:
        """An output was made just now."""
        self._last_time = time.monotonic()
