"""Compiles kernels before the first case, as a stage of its own (``mimickit/kernels.py``).

What is known to be compiled is remembered below ``output/`` by what the runs depend on, so a session with nothing to
compile starts no process for it. When compiling fails, the cases compile for themselves.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from mimickit.cases import Case
from mimickit.longcycle.cases import Inputs, read_inputs
from mimickit.longcycle.commands import Attempt, digest
from mimickit.longcycle.devices import gpu_names
from mimickit.longcycle.environment import PACKAGES, version
from mimickit.longcycle.lifecycle import case_rungs
from mimickit.longcycle.live import LiveLine
from mimickit.longcycle.report import duration
from mimickit.longcycle.settings import PACKAGE, Settings
from mimickit.longcycle.stages import StageResult, StageSpec, run_stage
from mimickit.util.alive import WAITING
from mimickit.util.files import read_json, write_json

PROGRAM = (sys.executable, str(PACKAGE / "kernels.py"))
KNOWN = "output/.kernels.json"  # markers, keyed by what a case's runs depend on


def compile_kernels(settings: Settings, cases: Sequence[Case], terminal: IO[str],
                    stop_requested: Callable[[], bool] = lambda: False) -> StageResult | None:
    """Compile the kernels these cases lack, showing progress; None when there was nothing to do."""
    file = settings.repo / KNOWN
    known, here = read_json(file), machine(settings)
    names, flags = {}, {}
    for case in cases:
        inputs = read_inputs(settings.repo, case, settings.engine_config, settings.variants)
        flags[case.name] = runs(settings, case, inputs)
        names[case.name] = digest({**here, "sha256": dict(inputs.sha256), "runs": flags[case.name]})
    missing = [case for case in cases if not compiled(known.get(names[case.name]))]
    if not missing:
        return None
    folder = settings.out / "kernels"
    job = {"runs": {f"{case.name}/{stage}": run for case in missing for stage, run in flags[case.name].items()},
           "devices": here["devices"]}
    spec = StageSpec(
        stage="kernels", argv=(*PROGRAM, str(folder / "job.json")), cwd=settings.repo,
        env={**settings.profile.env, **settings.viz_env}, out_dir=folder, log=folder / "kernels.log",
        result_file=folder / "result.json", mode="compile", timeout=0.0, hang_seconds=settings.profile.hang_seconds,
        startup_seconds=settings.profile.startup_seconds, ranks=1, grace=settings.profile.stop_grace)
    write_json(folder / "job.json", job)
    (folder / "compiled.json").unlink(missing_ok=True)
    terminal.write(f"kernels: checking what has to be compiled (log: {settings.relative(spec.log)})\n")
    live = LiveLine(lambda columns: line(folder, columns), terminal)
    live.start()
    results: list[StageResult] = []
    try:
        result = run_stage(spec, results.append, stop_requested)
    finally:
        live.stop()
    if result.ok:
        found = result.result["markers"]
        for case in missing:
            markers = [found.get(f"{case.name}/{stage}") for stage in flags[case.name]]
            if None not in markers:
                known[names[case.name]] = sorted({marker for some in markers for marker in some})
        write_json(file, known)
        count = result.result["compiled"]
        terminal.write(f"kernels: {count} compiled in {duration(result.elapsed_s)}\n" if count else
                       "kernels: nothing to compile\n")
    else:
        terminal.write(f"kernels: could not be compiled ahead ({result.failure_class}: {result.message}); the cases "
                       f"compile for themselves (log: {settings.relative(spec.log)})\n")
    return result


def compiled(markers: Sequence[str] | None) -> bool:
    """Whether all these markers exist."""
    return markers is not None and all(map(os.path.exists, markers))


def runs(settings: Settings, case: Case, inputs: Inputs) -> dict[str, list[str]]:
    """Flags of the run program by stage, for the case's first attempt; of stages with the same kernels only one."""
    rung = case_rungs(settings, case)[0]
    attempt = Attempt(settings, case, inputs, rung, rung.num_envs, settings.pool[:settings.per_case])
    found: dict[tuple[bool, bool], tuple[str, list[str]]] = {}
    for stage in (case.stages[0], "viz", "test"):
        run = list(attempt.spec(stage).argv[len(settings.runner):])
        one_world = run[run.index("--num_envs") + 1] == "1"
        found.setdefault((one_world, stage == "viz"), (stage, run))
    return dict(found.values())


def kinds(settings: Settings) -> list[str]:
    """One device of each kind the session uses."""
    names = gpu_names()
    by_kind: dict[str, str] = {}
    for device in (*settings.pool, *settings.view_devices):
        index = int(device.partition(":")[2] or 0)
        kind = device if device == "cpu" or index >= len(names) else names[index]
        by_kind.setdefault(kind, device)
    return list(by_kind.values())


def machine(settings: Settings) -> dict[str, Any]:
    """What all kernels of a session depend on."""
    return {
        "devices": kinds(settings), "gpus": gpu_names(), "versions": {name: version(name) for name in PACKAGES},
        "cache": [os.environ.get(name) for name in ("WARP_CACHE_PATH", "XDG_CACHE_HOME", "HOME")],
    }


def line(folder: Path, columns: int | None) -> tuple[str, list[str]]:
    """The progress line."""
    told, phase = read_json(folder / "compiled.json"), read_json(folder / "progress.json").get("phase")
    if not told:
        return "", []
    for_s, expected = time.monotonic() - told["began"], told["expected_s"]
    left = max(expected - for_s, for_s / 4) + told["left_s"] * max(1.0, for_s / max(expected, 1.0))  # busy
    words = phase if phase == WAITING else told["what"]
    return f"kernels [{told['done']}/{told['total']}] about {duration(left)} left | {words}, {duration(for_s)}", []
