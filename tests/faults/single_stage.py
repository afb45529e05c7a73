"""One stage under the suite's watchdog, without a suite around it; and what it leaves running."""

import contextlib
import sys
from pathlib import Path

from mimickit.longcycle import stages


def stage_spec(folder: Path, argv: list[str], **changes: object) -> stages.StageSpec:
    """A stage that runs ``argv`` in ``folder``; its files are in ``folder/out``."""
    values = {
        "stage": "test", "argv": tuple(argv), "cwd": folder, "env": {}, "out_dir": folder / "out",
        "log": folder / "stage.log", "result_file": folder / "out/result.json", "mode": "test", "timeout": 100.0,
        "hang_seconds": 50.0, "startup_seconds": 0.0, "ranks": 1, "grace": 0.3}
    return stages.StageSpec(**{**values, **changes})


def run_stage(spec: stages.StageSpec) -> stages.StageResult:
    """Run it to its end, which has to be recorded exactly once."""
    ends: list[stages.StageResult] = []
    result = stages.run_stage(spec, ends.append)
    assert ends == [result]
    return result


def run_code(folder: Path, code: str, **changes: object) -> stages.StageResult:
    """Run Python code as a stage."""
    return run_stage(stage_spec(folder, [sys.executable, "-c", code], **changes))


def processes_left(fault_file: Path) -> list[int]:
    """Living processes that were started with this file as their FAULT_FILE, and all that they started."""
    found, token = [], f"FAULT_FILE={fault_file}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or not ours
            if token in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
