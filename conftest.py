"""Registers the acceptance suite's options and reports; ``pytest -m longcycle`` runs it (docs/longcycle.md)."""

import os

import pytest

pytest_plugins = ["mimickit.longcycle.plugin", "pytester"]


def pytest_configure(config: pytest.Config) -> None:
    """Tests, and the programs they start, compute on one thread: faster on small tensors, and sums keep their order."""
    from mimickit.longcycle.plugin import asked_for

    if not asked_for(config):
        os.environ["OMP_NUM_THREADS"] = "1"
