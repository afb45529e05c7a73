"""Checkpoints written as training writes them, for tests that read or spoil them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
