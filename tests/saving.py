"""Checkpoints written as training writes them, for tests that read or spoil them; and what is asked of the disk."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mimickit.util.checkpoint import CheckpointWriter
from mimickit.util.distributed import Distributed


def write_checkpoint(
    run: Path, iteration: int, shared: Mapping[str, Any] | None, local: Mapping[str, Any], *,
    manifest: Mapping[str, Any] | None = None, dist: Distributed | None = None,
) -> Path:
    """A checkpoint of a run folder (by default of a single process), complete on return."""
    dist = dist or Distributed.single()
    writer = CheckpointWriter(run / "checkpoints", dist)
    path = writer.save(iteration, shared, local, manifest or {})
    writer.wait()
    dist.barrier()  # only now has the root put it in its place for all
    return path


def disk_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """From now on every ``("fsync", path)``, ``("replace", from, to)`` and ``("rename", from, to)``, in order."""
    calls: list[tuple[Any, ...]] = []
    originals = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

    def fsync(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        originals["fsync"](descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("replace", "rename"):
        def move(source: Any, target: Any, name: str = name) -> None:
            calls.append((name, Path(source), Path(target)))
            originals[name](source, target)

        monkeypatch.setattr(os, name, move)
    return calls
