"""The last lines of a run: what a test measured, where the files are, and the next command, ready to copy."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimickit.request import Request, which_model
from mimickit.util.args import COMMAND_LINE
from mimickit.util.measures import with_interval, with_units
from mimickit.util.options import UNLIMITED

PROGRAM = "MIMICKIT_PROGRAM"  # environment variable: how the user called the process that started this one
ABOUT_RUN = (  # what a test shares with its training
    "arg_file", "engine_config", "env_config", "agent_config", "variant", "set")


def program() -> str:
    """How the user called this program."""
    if PROGRAM in os.environ:
        return os.environ[PROGRAM]
    script = Path(sys.argv[0])
    if script.name == "__main__.py":
        return "python -m mimickit"
    if script.suffix != ".py":
        return "mimickit"
    return f"python {script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script}"


def command(flags: Mapping[str, list[str]]) -> str:
    """A command line of this program."""
    return f"{program()} {shlex.join(words(flags))}"


def words(flags: Mapping[str, list[str]]) -> list[str]:
    return [word for flag, values in flags.items() for word in (f"--{flag}", *values)]


def short(name: str, target: str | Path, *flags: str) -> str:
    """``mimickit test output/amp_g1/2026-11-30-1``."""
    return f"{program()} {shlex.join([name, str(target), *flags])}"


def told_model(request: Request) -> list[str]:
    """``--model_file``, if it was given on the command line."""
    args = request.args
    return ["--model_file", args["model_file"]] if args.source.get("model_file") == COMMAND_LINE else []


def given(request: Request, *without: str) -> dict[str, list[str]]:
    """The command line's options without some, and the run folder."""
    args = request.args
    flags = {flag: list(values) for flag, values in args.values.items()
             if args.source.get(flag) == COMMAND_LINE and flag not in without}
    return {**flags, "out_dir": [str(request.out_dir)]}


def same_case(request: Request) -> dict[str, list[str]]:
    """The options that say what is trained, and on which device."""
    flags = {flag: values for flag, values in given(request).items() if flag in ABOUT_RUN}
    return {**flags, **({"devices": [request.devices[0]]} if "devices" in request.args else {})}


def after_training(request: Request, result: Any) -> list[str]:
    """Lines that end a training; ``result``: its ``TrainResult``."""
    from mimickit.learning.config import DummyConfig

    out, outcome, learns = request.out_dir, result.outcome, not isinstance(request.agent, DummyConfig)
    more: dict[str, list[str]] = {}
    if outcome == "completed" and not result.new_iterations:
        more = {"max_samples": [str(2 * result.samples)]}
        lines = [f"already finished: {result.samples:,} samples, --max_samples is {request.args['max_samples']:,}; "
                 "nothing was trained now (anew: with another --out_dir)"]
    else:
        lines = [f"{outcome}: {result.samples:,} samples, {result.iterations} "
                 f"iteration{'s' * (result.iterations != 1)}, "
                 f"{result.samples_per_s:,.0f} samples/s, {result.total_wall_s:.1f} s"]
    if learns and (evaluation := result.evaluation):
        lines.append(f"last evaluation: Test_Return {evaluation['return']:.4g}, Test_Episode_Length "
                     f"{evaluation['episode_length']:.4g}, {evaluation['episodes']} episodes; of the policy after "
                     f"{evaluation['samples']:,} samples")
    if learns:
        lines.append(f"model: {which_model(out / 'model.pt')}")
    lines.append(f"log: {out / 'log.txt'} ({short('plot', out)})")
    if more or outcome in ("interrupted", "budget"):
        go_on = {**given(request, "resume", "overwrite"), **more, "resume": []}
        lines.append(("train on: " if more else "continue: ") + (
            short("train", out, *words(more)) if request.args.command else command(go_on)))
    if learns and outcome != "interrupted" and request.args.command:
        lines += ["test: " + short("test", out), "film: " + short("view", out, "--video", "true")]
    elif learns and outcome != "interrupted":
        lines.append("test: " + command({
            **same_case(request), "mode": ["test"], "model_file": [str(out / "model.pt")], "num_envs": ["32"],
            "test_episodes": ["32"], "visualize": ["false"], "out_dir": [str(out / "test")]}))
    return lines


def measured(result: Any, wanted: int) -> list[str]:
    """Lines about what a test measured; ``result``: its ``TestResult``, ``wanted``: episodes that it was to run."""
    lines, statistics = [], result.statistics
    if wanted != UNLIMITED and not result.complete:
        ended = result.test_episodes
        lines = [f"interrupted: {ended:,} of {wanted:,} episodes, biased towards short ones" if ended < wanted else
                 f"interrupted: all {wanted:,} episodes, but not those that no failure ends"]
    for text, name, value, unit in (("Mean return", "return", result.test_return, ""),
                                    ("Mean episode length", "length", result.test_episode_length, " control steps")):
        summary = statistics.get(name)
        of_these = summary is not None and summary["episodes"] == result.test_episodes
        lines.append(f"{text}: {with_interval(value, summary if of_these else None)}{unit}")
    return [*lines, f"Episodes: {result.test_episodes}", *with_units(result.measures, statistics)]


def after_test(request: Request, recorded: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Lines that end a test; ``recorded``: ``video`` and ``page`` of its result."""
    lines = [f"result: {request.result_file}"]
    if files := [f"{word}: {recorded[name]['file']}" for name, word in (("video", "film"), ("page", "page"))
                 if recorded.get(name)]:
        return [*lines, *files]
    if request.args.command:
        name, target = request.args.command
        film = "film: " + short("view", target, *told_model(request), "--video", "true")
        return lines if name == "view" else [*lines, film]
    model = request.args["model_file"]
    return [*lines, "film: " + command({
        **same_case(request), "mode": ["test"], **({"model_file": [model]} if model else {}), "num_envs": ["1"],
        "test_episodes": ["1"], "visualize": ["false"], "video": ["true"], "out_dir": [str(request.out_dir)]})]
