"""Load of the machine: GPUs, processor, memory. Reads nvidia-smi and /proc; loads no GPU library."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from mimickit.longcycle.devices import gpu_uuids
from mimickit.longcycle.environment import output

QUERY = ["nvidia-smi", "--query-gpu=index,name,utilization.gpu,memory.used,memory.total",
         "--format=csv,noheader,nounits"]


EVERY = 10.0  # s between looks at the GPUs, at least
REST = 60.0  # times as long as nvidia-smi took it is left alone: on a host with many GPUs it takes seconds


class Machine:
    """What the machine does now. The GPUs are asked less often than the page is written."""

    def __init__(self) -> None:
        self._gpus: list[dict[str, Any]] = []
        self._next = 0.0

    def look(self) -> dict[str, Any]:
        """``gpus`` (index, name, percent, used and total GiB), ``load`` of ``cores``, ``memory`` used and total GiB."""
        begun = time.monotonic()
        if begun >= self._next and gpu_uuids():
            try:
                self._gpus = gpus(output(QUERY) or "")
            except subprocess.TimeoutExpired:
                self._gpus = []
            took = time.monotonic() - begun
            self._next = begun + took + max(EVERY, REST * took)
        return {"gpus": self._gpus, **processor()}


def processor() -> dict[str, Any]:
    """Load of the cores that this process may use, memory used and total in GiB."""
    info = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    total, free = (int(info[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    return {"load": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0)),
            "memory": [total - free, total]}


def gpus(listing: str) -> list[dict[str, Any]]:
    """GPUs of nvidia-smi's table; what it cannot tell (``[N/A]``) is None."""
    found = []
    for line in listing.splitlines():
        index, name, *numbers = (cell.strip() for cell in line.split(","))
        percent, used, total = (float(cell) if cell.replace(".", "", 1).isdigit() else None for cell in numbers)
        found.append({"index": index, "name": name, "percent": percent, "used": used and used / 1024,
                      "total": total and total / 1024})
    return found
