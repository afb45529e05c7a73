"""Load of the machine: GPUs, processor, memory. Reads nvidia-smi and /proc; loads no GPU library."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mimickit.util.versions import output

QUERY = ["nvidia-smi", "--query-gpu=index,name,utilization.gpu,memory.used,memory.total",
         "--format=csv,noheader,nounits"]
MEMORY = Path("/proc/meminfo")

EVERY = 10.0  # s between looks at the GPUs, at least
REST = 60.0  # times as long as nvidia-smi took it is left alone: on a host with many GPUs it takes seconds


class Machine:
    """What the machine does now. The GPUs are asked less often than the page is written."""

    def __init__(self) -> None:
        self._gpus: list[dict[str, Any]] = []
        self._next = 0.0

    def look(self) -> dict[str, Any]:
        """``gpus`` (:func:`gpus`), ``silent``: whether nvidia-smi is there and tells of none, and :func:`processor`."""
        begun, there = time.monotonic(), shutil.which(QUERY[0]) is not None
        if there and begun >= self._next:
            self._gpus = []
            with suppress(subprocess.TimeoutExpired, OSError, UnicodeDecodeError):
                self._gpus = gpus(output(QUERY) or "")
            took = time.monotonic() - begun
            self._next = begun + took + max(EVERY, REST * took)
        return {"gpus": self._gpus, "silent": there and not self._gpus, **processor()}


def processor() -> dict[str, Any]:
    """``load`` of the ``cores`` that this process may use; ``memory`` used and total in GiB, None if not known."""
    memory = None
    with suppress(OSError, KeyError, ValueError, IndexError):
        info = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines() if ":" in line)
        total, free = (int(info[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
        memory = [total - free, total]
    return {"load": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0)), "memory": memory}


def gpus(listing: str) -> list[dict[str, Any]]:
    """GPUs of nvidia-smi's table: ``index``, ``name``, ``percent`` busy, ``used`` and ``total`` memory in GiB.

    What it cannot tell is None (``[N/A]`` of a GPU divided by MIG, ``[Insufficient Permissions]``); lines that describe
    no GPU (``No devices were found``) are passed over.
    """
    found = []
    for line in listing.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < 5 or not cells[0].isdigit():
            continue
        percent, used, total = (float(cell) if cell.replace(".", "", 1).isdigit() else None for cell in cells[-3:])
        found.append({"index": cells[0], "name": ", ".join(cells[1:-3]), "percent": percent,
                      "used": None if used is None else used / 1024, "total": None if total is None else total / 1024})
    return found
