"""The suite's options: the table, what an options file adds to the command line, and the Settings they make."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mimickit.config import load_yaml
from mimickit.longcycle.allocation import read_allocation
from mimickit.longcycle.cases import Shard, parse_shard
from mimickit.longcycle.devices import visible_cuda
from mimickit.longcycle.roots import BASE, find_root, recorded_profile
from mimickit.longcycle.settings import (
    ACCEPTANCE,
    BUDGET_HOURS,
    BUDGET_SIGNALS,
    CASE_SETS,
    DEFAULT_ENGINE,
    DEFAULT_LADDER,
    LADDERS,
    PROFILES_FILE,
    TARGETS_FILE,
    YARDSTICK,
    Profile,
    ProfilesFile,
    Settings,
    choose_devices,
    choose_profile,
    load_profiles,
    load_targets,
    parse_env,
    parse_ladder,
    parse_list,
    parse_runner,
    parse_variants,
)
from mimickit.util.failures import UserError
from mimickit.util.names import nearest

NAME = "longcycle"
GPU_MEMORY_A_CASE = 8.0  # GiB; ASE, the largest, takes 6.1 with 4096 environments
CORES_A_CASE = 2  # one launches kernels, one does the rest
MOST_PER_GPU = 8  # they fill an H200
MOST_ON_CPU = 8  # one per core: training takes two, tests and films one
FILE_OPTION = "longcycle-options"


@dataclass(frozen=True)
class Option:
    """One option. ``size``: the key of the profile that it replaces, which is then its default."""

    name: str
    kind: type
    meaning: str
    default: Any = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    size: str = ""

    @property
    def dest(self) -> str:
        return self.name.replace("-", "_")


def _size(name: str, kind: type, meaning: str) -> Option:
    return Option(name, kind, meaning, metavar="N" if kind is int else "S", size=name.replace("-", "_"))


OPTIONS = {option.name: option for option in (
    Option("longcycle-profile", str, "full or smoke (default: full with a CUDA device, else smoke)", metavar="NAME"),
    Option(FILE_OPTION, str, "options from a yaml file, names without dashes; the command line wins", metavar="FILE"),
    Option("cases", str, "cases by name, args file name or its stem (default: all)", metavar="A,B"),
    Option("case-set", str, "acceptance: the cases of args/; yardstick: nine clips of the humanoid with three methods "
           "beside published numbers, not judged (root: yardstick)", default=ACCEPTANCE, choices=CASE_SETS),
    Option("shard", str, "only the K-th of N equal parts of these cases, for N machines", metavar="K/N"),
    Option("budget-gpu-hours", float, "run what fits into so many GPU hours, those that need it most first; the others "
           "wait for another night", metavar="H"),
    Option("include-nontrainable", bool, "(default)"),
    Option("exclude-nontrainable", bool, "only cases that train"),
    Option("root-out", str, "folder below output/train (default: longcycle, longcycle_smoke)", metavar="NAME"),
    Option("from-results", str, "run nothing: judge the recorded results of this root (a name below output/train, or "
           "=PATH) by the present gates", metavar="ROOT"),
    Option("resume-skip-status", str, "reuse cases that passed (ok), every recorded end (all), or nothing (none)",
           default="ok", choices=("ok", "all", "none")),
    Option("engine-config", str, f"physics of all cases ({DEFAULT_ENGINE})", default=DEFAULT_ENGINE, metavar="FILE"),
    Option("devices-train", str, "training devices (default: CUDA devices, up to two; cpu,cpu in smoke)",
           metavar="D,D"),
    Option("cases-per-device", int, "cases that may share a GPU, with -n: together they are faster than one after the "
           "other (1; with -n auto what fits)", metavar="K"),
    Option("devices-nontrainable", str, "device of nontrainable cases (default: the first training device)",
           metavar="D"),
    Option("env-ladder", str, "environments per device to try (default: the case's or, for tuned, its share of "
           "tuned_envs; halved down to 32)", metavar="N,N"),
    *(Option(name, str, f"environments per device to try, of {cases} (as --env-ladder)", metavar="N,N")
      for name, cases in zip(LADDERS, ("cases other than Pi Plus's", "add_pi_plus and deepmimic_pi_plus_ppo",
                                       "amp_pi_plus"), strict=True)),
    Option("allocation-profile-tsv", str, "table whose rows (case, status, variant, num_envs, agent_config) with "
           "status ok say with which attempt a case begins; tools/measure_allocation.py writes one",
           metavar="FILE"),
    Option("allocation-fallback", str, "ladder: when that attempt runs out of memory the usual ones follow; strict: "
           "none does", default="ladder", choices=("ladder", "strict")),
    Option("require-deps", str, "modules that must import before anything starts (default: none is tried)",
           metavar="A,B"),
    Option("variants", str, "agent files to try, of tuned, hiutil and default (default: all there are, in this order)",
           metavar="A,B"),
    Option("no-scale-steps", bool, "keep steps_per_iter on smaller rungs of the ladder"),
    Option("long-mode", str, "when long_train ends", default="max_samples", choices=("max_samples", "time_budget")),
    Option("long-budget-hours", float, f"for --long-mode time_budget, all sessions together ({BUDGET_HOURS:g})",
           metavar="H"),
    Option("long-budget-signal", str, "what a training gets when its hours are used up", default=BUDGET_SIGNALS[0],
           choices=BUDGET_SIGNALS),
    Option("long-budget-grace-sec", float, "how long it may take to end then, before SIGTERM and 10 s later "
           "SIGKILL (300)", default=300.0, metavar="S"),
    Option("long-success-policy", str,
           "budget_checkpoint: long_train counts when it used up its budget and left a model, however it ended",
           default="strict_exit", choices=("strict_exit", "budget_checkpoint")),
    Option("train-env", str, "environment of training stages instead of the NCCL settings; or none",
           metavar="K=V,K=V"),
    Option("runner", str, "program that runs a stage (default: {python} mimickit/run.py)", metavar="COMMAND"),
    Option("longcycle-profiles", str, "sizes and stage environments", default=str(PROFILES_FILE), metavar="FILE"),
    Option("longcycle-targets", str, "learning gates and ladders per case", default=str(TARGETS_FILE),
           metavar="FILE"),
    _size("long-max-samples", int, "samples of long_train in all (full: 30000000)"),
    _size("probe-iters", int, "iterations of probe_train (full: 8)"),
    _size("probe-timeout", float, "seconds, 0 for none (900)"),
    _size("long-timeout", float, "seconds, 0 for none (full: 0)"),
    _size("test-timeout", float, "seconds, 0 for none (600)"),
    _size("transfer-timeout", float, "seconds, 0 for none (600)"),
    _size("viz-timeout", float, "seconds, 0 for none (600)"),
    _size("test-episodes", int, "episodes of the test (full: 10)"),
    _size("transfer-episodes", int, "episodes in plain MuJoCo, 0: no stage transfer (full: 64)"),
    _size("viz-episodes", int, "episodes to film (1)"),
    _size("nontrainable-num-envs", int, "environments of a nontrainable case (1)"),
    _size("nontrainable-max-samples", int, "samples of bootstrap_train (128)"),
    _size("rand-seed", int, "random seed of all stages (1)"),
    _size("hang-seconds", float, "a process without a sign of life for so long hangs, 0 for never (full: 300)"),
)}


def add_options(parser: pytest.Parser) -> None:
    """Register the options. What is not given stays None, so that an options file may give it."""
    _add_to(parser.getgroup(NAME, "acceptance suite (pytest -m longcycle, docs/longcycle.md)").addoption)


def parser() -> argparse.ArgumentParser:
    """The suite's options alone, for ``mimickit longcycle --help``."""
    found = argparse.ArgumentParser(
        "mimickit longcycle", usage="mimickit longcycle [options]", description="Run the acceptance suite: train, test "
        "and film every case, and judge what it learned (docs/longcycle.md).", epilog="Options of pytest are taken too "
        "(pytest --help): -n K runs K cases side by side (auto), --lf those that failed.")
    _add_to(found.add_argument)
    return found


def _add_to(add: Callable[..., Any]) -> None:
    for option in OPTIONS.values():
        if option.kind is bool:
            add(f"--{option.name}", action="store_true", default=None, help=option.meaning)
        else:
            add(f"--{option.name}", type=option.kind, choices=option.choices or None, metavar=option.metavar,
                help=option.meaning)


def option_values(config: pytest.Config) -> dict[str, Any]:
    """Every option's value by name, from the command line, else the options file, else the default.

    Raises:
        UserError: the options file has an unknown option, or a value of the wrong kind.
    """
    given = {name: value for name in OPTIONS if (value := config.getoption(f"--{name}")) is not None}
    file = given.get(FILE_OPTION)
    from_file = read_options_file(Path(file)) if file is not None else {}
    opposites = {"include-nontrainable", "exclude-nontrainable"}
    if opposites & given.keys():  # the command line overrides the file
        from_file = {name: value for name, value in from_file.items() if name not in opposites}
    values = {name: option.default for name, option in OPTIONS.items()} | from_file | given
    if all(values[name] for name in opposites):
        raise UserError("--include-nontrainable and --exclude-nontrainable: give one of them")
    return values


def read_options_file(path: Path) -> dict[str, Any]:
    """Options from a yaml file, by name. A list stands for ``a,b``, a mapping for ``a=1,b=2``.

    Raises:
        UserError: an unknown option (with the nearest known one), or a value of the wrong kind.
    """
    known = [name for name in OPTIONS if name != FILE_OPTION]
    values = {}
    for name, value in load_yaml(path).items():
        if name not in known:
            raise UserError(f"{path}: unknown option '{name}'{nearest(str(name), known)}; "
                            "allowed are those of the acceptance suite in pytest --help, without the dashes")
        values[name] = _typed(OPTIONS[name], value, path)
    return {name: value for name, value in values.items() if value is not None}


def _typed(option: Option, value: Any, path: Path) -> Any:
    """A yaml value as the option's type. ``false`` and null count as not given."""
    if value is None or (option.kind is bool and value is False):
        return None
    if option.kind is str and isinstance(value, list):
        value = ",".join(map(str, value))
    elif option.kind is str and isinstance(value, Mapping):
        value = ",".join(f"{key}={entry}" for key, entry in value.items())
    elif option.kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    elif option.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, option.kind) or (option.kind is not bool and isinstance(value, bool)):
        kind = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[option.kind]
        raise UserError(f"{path}: {option.name}: {value!r} is not {kind}")
    if option.choices and value not in option.choices:
        raise UserError(f"{path}: {option.name}: {value}: allowed are {', '.join(option.choices)}")
    return value


def automatic(values: Mapping[str, Any], cores: int, gpu_memory: float) -> tuple[int, int]:
    """``-n auto`` for the suite: cases at once (0: one after the other, without workers), and cases per device.

    Args:
        values: of all options.
        cores: of the machine; gpu_memory: of its smallest GPU, GiB.
    """
    data, cuda = load_profiles(Path(values["longcycle-profiles"])), visible_cuda()
    name, _ = choose_profile(values["longcycle-profile"], data.profiles, cuda)
    pool, per_case = choose_devices(parse_list(values["devices-train"]), name, cuda, data.profiles[name].cpu_processes,
                                    sessions=len(cuda))
    on_cpu, slots = "cpu" in pool, values["cases-per-device"]
    if slots is None:
        fits = min(MOST_PER_GPU, int(gpu_memory / GPU_MEMORY_A_CASE), cores // (CORES_A_CASE * len(pool)))
        slots = 1 if on_cpu else max(1, fits)
    workers = min(cores, MOST_ON_CPU) if on_cpu else slots * len(pool) // per_case
    return workers if workers > 1 else 0, slots


def make_settings(values: Mapping[str, Any], repo: Path, sessions: int) -> Settings:
    """The Settings that the options make; ``sessions``: cases that run side by side. Raises UserError for bad
    values."""
    data, cuda = load_profiles(Path(values["longcycle-profiles"])), visible_cuda()
    recorded = find_root(values["from-results"], repo) if values["from-results"] else None
    if recorded is not None and values["longcycle-profile"] is None:
        name, reason = choose_profile(recorded_profile(recorded), data.profiles, [])[0], "the recorded one"
    else:
        name, reason = choose_profile(values["longcycle-profile"], data.profiles, cuda)
    profile = with_sizes(data, name, values)
    root = values["root-out"]
    if values["case-set"] == YARDSTICK:
        profile, root = profile.model_copy(update={"enforce_gates": False}), root or YARDSTICK
    long_mode, hours, notes = *time_budget(values), []
    if long_mode == "max_samples" and values["long-budget-hours"] is not None:
        notes.append(f"--long-budget-hours {values['long-budget-hours']:g} is for --long-mode time_budget")
    ladders = {name: found for name in LADDERS if (found := parse_ladder(values[name], name))}
    if DEFAULT_LADDER in ladders and values["env-ladder"]:
        raise UserError("--env-ladder and --default-ladder: give one of them")
    slots = 1 if values["cases-per-device"] is None else values["cases-per-device"]
    if slots < 1:
        raise UserError(f"--cases-per-device {slots}: at least 1")
    pool, per_case = choose_devices(
        parse_list(values["devices-train"]), name, cuda, profile.cpu_processes, sessions)
    return Settings(
        repo=repo, out=recorded or root_out(root, name, parse_shard(values["shard"]), repo),
        profile_name=name, profile_reason=reason, profile=profile,
        targets=load_targets(Path(values["longcycle-targets"])),
        train_env=parse_env(values["train-env"], data.train_env), viz_env=data.viz_env, pool=pool, per_case=per_case,
        cases_per_device=slots,
        view_devices=tuple(parse_list(values["devices-nontrainable"]) or ()),
        engine_config=values["engine-config"], runner=parse_runner(values["runner"]),
        ladder=parse_ladder(values["env-ladder"]), ladders=ladders, variants=parse_variants(values["variants"]),
        scale_steps=not values["no-scale-steps"],
        long_mode=long_mode, long_budget_hours=hours, long_success_policy=values["long-success-policy"],
        long_budget_signal=values["long-budget-signal"], long_budget_grace=values["long-budget-grace-sec"],
        resume_skip_status=values["resume-skip-status"], notes=tuple(notes),
        allocation=read_allocation(values["allocation-profile-tsv"], repo, parse_variants(values["variants"])),
        allocation_only=values["allocation-fallback"] == "strict", case_set=values["case-set"])


def time_budget(values: Mapping[str, Any]) -> tuple[str, float | None]:
    """``--long-mode``, and the hours if it is ``time_budget``. Raises UserError for bad hours or grace."""
    mode, hours, grace = values["long-mode"], values["long-budget-hours"], values["long-budget-grace-sec"]
    if hours is not None and hours <= 0:
        raise UserError(f"--long-budget-hours {hours:g}: must be above 0")
    if grace < 0:
        raise UserError(f"--long-budget-grace-sec {grace:g}: must not be negative")
    return mode, (BUDGET_HOURS if hours is None else hours) if mode == "time_budget" else None


def with_sizes(data: ProfilesFile, name: str, values: Mapping[str, Any]) -> Profile:
    """The profile with the sizes that options replace. Raises UserError for negative ones."""
    sized = [option for option in OPTIONS.values() if option.size and values[option.name] is not None]
    if negative := [option.name for option in sized if values[option.name] < 0]:
        raise UserError(f"--{negative[0]} {values[negative[0]]}: must not be negative")
    return data.profiles[name].model_copy(update={option.size: values[option.name] for option in sized})


def root_out(asked: str | None, profile_name: str, shard: Shard | None, repo: Path) -> Path:
    """The folder to work in: ``longcycle``, ``longcycle_smoke``, ``longcycle_2of4`` unless asked otherwise."""
    name = asked or NAME + ("" if profile_name == "full" else f"_{profile_name}") + (shard.suffix if shard else "")
    base = repo / BASE
    if (base / name).is_symlink():
        raise UserError(f"--root-out {name}: {BASE / name} is a link to {os.readlink(base / name)}. A session works in "
                        f"a folder of its own: let {BASE} (or output) be the link to another disk, or remove this "
                        f"one. What is recorded there can be judged: --from-results {name}")
    out = (base / name).resolve()
    if out.parent != base.resolve():
        raise UserError(f"--root-out {name}: give a folder name below output/train")
    return base / name
