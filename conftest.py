"""Registers the acceptance suite's options and reports; ``pytest -m longcycle`` runs it (docs/longcycle.md)."""

import gc
import os
from collections.abc import Generator

import pytest

pytest_plugins = ["mimickit.longcycle.plugin", "pytester"]


def pytest_configure(config: pytest.Config) -> None:
    """Tests, and the programs they start, compute on one thread: faster on small tensors, and sums keep their order."""
    from mimickit.longcycle.plugin import asked_for

    if not asked_for(config):
        os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One worker more than cores: a third of their time tests wait for what they started."""
    from mimickit.longcycle.plugin import asked_for

    return None if asked_for(config) else len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first: at the end no worker waits for another's long test."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What tests import makes millions of objects and no garbage, which nobody need look for, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
