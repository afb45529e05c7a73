"""Load of the machine: GPUs, processor, memory. Reads nvidia-smi and /proc; loads no GPU library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mimickit.longcycle.devices import gpu_uuids
from mimickit.longcycle.environment import output

QUERY = ["nvidia-smi", "--query-gpu=index,name,utilization.gpu,memory.used,memory.total",
         "--format=csv,noheader,nounits"]


def machine() -> dict[str, Any]:
    """``gpus`` (index, name, percent, used and total GiB), ``load`` of ``cores``, ``memory`` used and total in GiB."""
    listing = output(QUERY) if gpu_uuids() else None
    info = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    total, free = (int(info[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    return {"gpus": gpus(listing or ""), "load": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0)),
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
