"""The last lines of a run: where things are, and the command that comes next, ready to be copied."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimickit.request import Request

ABOUT_RUN = ("arg_file", "engine_config", "env_config", "agent_config", "set")  # what a test shares with its training


def program() -> str:
    """How this program was called."""
    script = Path(sys.argv[0])
    if script.suffix != ".py":
        return "mimickit"
    return f"python {script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script}"


def command(flags: Mapping[str, list[str]]) -> str:
    """A command line of this program."""
    words = [word for flag, values in flags.items() for word in (f"--{flag}", *values)]
    return f"{program()} {shlex.join(words)}"


def given(request: Request, *without: str) -> dict[str, list[str]]:
    """The flags of the command line but for some, and where this run wrote."""
    args = request.args
    flags = {flag: list(values) for flag, values in args.values.items()
             if args.source.get(flag) == "command line" and flag not in without}
    return {**flags, "out_dir": [str(request.out_dir)]}


def same_case(request: Request) -> dict[str, list[str]]:
    """The flags that say what is trained, and on which device."""
    flags = {flag: values for flag, values in given(request).items() if flag in ABOUT_RUN}
    return {**flags, **({"devices": [request.devices[0]]} if "devices" in request.args else {})}


def after_training(request: Request, outcome: str) -> list[str]:
    """Lines that end a training."""
    from mimickit.learning.dummy_agent import DummyConfig

    out, lines = request.out_dir, []
    if not isinstance(request.agent, DummyConfig):
        best = out / "checkpoints" / "best" / "model.pt"
        lines.append(f"model: {out / 'model.pt'}" + (f" (best evaluation: {best})" if best.is_file() else ""))
    lines.append(f"log: {out / 'log.txt'} (python tools/plot_log.py {shlex.quote(str(out))})")
    if outcome in ("interrupted", "budget"):
        lines.append("go on: " + command({**given(request, "resume", "overwrite"), "resume": []}))
    if not isinstance(request.agent, DummyConfig) and outcome != "interrupted":
        lines.append("test: " + command({
            **same_case(request), "mode": ["test"], "model_file": [str(out / "model.pt")], "num_envs": ["32"],
            "test_episodes": ["32"], "visualize": ["false"], "out_dir": [str(out / "test")]}))
    return lines


def after_test(request: Request, video: Mapping[str, Any] | None) -> list[str]:
    """Lines that end a test."""
    lines = [f"result: {request.result_file}"]
    if video is not None:
        return [*lines, f"film: {video['file']}"]
    model = request.args.text("model_file")
    return [*lines, "film: " + command({
        **same_case(request), "mode": ["test"], **({"model_file": [model]} if model else {}), "num_envs": ["1"],
        "test_episodes": ["1"], "visualize": ["false"], "video": ["true"], "out_dir": [str(request.out_dir)]})]
