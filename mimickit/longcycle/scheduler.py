"""Hands pytest-xdist's workers one case at a time: a worker gets the next one only when it has finished.

xdist's own schedulers give each worker one test in advance and cannot take it back. Cases take hours: a short one must
not wait behind a long one while another worker is idle. Two halves: the controller hands out cases one by one (xdist's
scheduler hook), and a worker runs what it has without waiting for the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest


class OneAtATime:
    """An xdist scheduler (``xdist.scheduler.protocol``); items are named by index."""

    def __init__(self, workers: int, cost: Callable[[str], float]) -> None:
        self.workers = workers  # all collect before anything starts
        self.cost = cost  # of an item: the most expensive begin first, so that none is left for the end
        self.collections: dict[Any, list[str]] = {}
        self.running: dict[Any, int | None] = {}
        self.waiting: list[int] = []
        self.items: list[str] | None = None

    @property
    def nodes(self) -> list[Any]:
        return list(self.running)

    @property
    def collection_is_completed(self) -> bool:
        return len(self.collections) >= self.workers

    @property
    def has_pending(self) -> bool:
        return bool(self.waiting) or any(index is not None for index in self.running.values())

    @property
    def tests_finished(self) -> bool:
        return self.items is not None and not self.has_pending

    def add_node(self, node: Any) -> None:
        self.running[node] = None

    def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
        self.collections[node] = list(collection)

    def schedule(self) -> None:
        """Start, or go on after a worker was replaced. Raises UsageError when workers collected different
        cases."""
        if self.items is None:
            self.items = next(iter(self.collections.values()))
            self.waiting = sorted(range(len(self.items)), key=lambda index: -self.cost(self.items[index]))
        if any(collection != self.items for collection in self.collections.values()):
            raise pytest.UsageError("the workers selected different cases: did files change meanwhile?")
        self._hand_out()

    def _hand_out(self) -> None:
        for node, index in self.running.items():
            if self.waiting and index is None and node in self.collections and not node.shutting_down:
                self.running[node] = self.waiting.pop(0)
                node.send_runtest_some([self.running[node]])

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        self.running[node] = None
        self._hand_out()

    def mark_test_pending(self, item: str) -> None:
        self.waiting.insert(0, self.items.index(item))
        self._hand_out()

    def remove_pending_tests_from_node(self, node: Any, indices: Sequence[int]) -> None:
        raise AssertionError("nothing is ever taken back from a worker")

    def remove_node(self, node: Any) -> str | None:
        """Forget a worker that died; returns the case it was running, if any."""
        self.collections.pop(node, None)
        index = self.running.pop(node)
        return None if index is None else self.items[index]


def make_scheduler(config: pytest.Config, cost: Callable[[str], float]) -> OneAtATime:
    """The controller's half. ``cost``: of a test, by its id."""
    from xdist.workermanage import parse_tx_spec_config

    return OneAtATime(len(parse_tx_spec_config(config)), cost)


def run_without_waiting(config: pytest.Config) -> None:
    """A worker's half: start a test without knowing the one after it."""
    worker = next(p for p in config.pluginmanager.get_plugins() if type(p).__name__ == "WorkerInteractor")

    def run_one_test() -> None:
        worker.item_index = worker.nextitem_index
        begin = time.perf_counter()
        config.hook.pytest_runtest_protocol(item=worker.session.items[worker.item_index], nextitem=None)
        worker.sendevent("runtest_protocol_complete", item_index=worker.item_index,
                         duration=time.perf_counter() - begin)
        if not (worker.session.shouldfail or worker.session.shouldstop):
            worker.nextitem_index = worker.torun.get()

    worker.run_one_test = run_one_test
