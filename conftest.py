"""Registers the acceptance suite's options and reports; ``pytest -m longcycle`` runs it (docs/longcycle.md)."""

pytest_plugins = ["mimickit.longcycle.plugin", "pytester"]
