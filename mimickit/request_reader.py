"""Options and configuration files of a run, read and checked before anything starts."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimickit.cases import with_variant
from mimickit.config import layers, merge, parse_yaml, stacked
from mimickit.request import Request, result_file
from mimickit.request_checks import check_request
from mimickit.util.args import Args
from mimickit.util.assets import locate
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.manifest import model_problem
from mimickit.util.names import missing_file

CONFIGURATIONS = ("engine_config", "env_config", "agent_config")
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class World:
    """The configuration files, and what those of the environment and of the engine come to."""

    files: Mapping[str, Path]  # by option
    env_files: Sequence[tuple[Path, Mapping[str, Any]]]  # the environment's file with those it stands on
    changes: Mapping[str, Mapping[str, Any]]  # of --set: env, engine, agent
    env: Any  # EnvConfig
    engine: Any  # EngineConfig
    note: str | None  # how an engine file is read that is not Newton's


def read_world(args: Args) -> World:
    """Find all files that options name, and read those of the environment and the engine.

    Raises:
        UserError: as :func:`read_request`.
    """
    from mimickit.envs.env_builder import check_files, make_env_config, merge_engine_config

    files = {flag: locate(args[flag]) for flag in CONFIGURATIONS if args[flag]}
    if "env_config" not in files:
        raise UserError("--env_config is missing: name an environment yaml (data/envs/) or an --arg_file (args/)")
    assignments, env, env_files = args["set"], None, []
    changes = read_overrides(assignments)
    if args["disturb"] is not None:  # all keys: the file's own are replaced
        from mimickit.envs.disturbance_config import read_disturbances

        wanted = {"disturbances": read_disturbances(args["disturb"]).model_dump(mode="json")}
        changes["env"] = merge(wanted, changes["env"])
    with naming_overrides(assignments, "env"):
        if os.path.exists(files["env_config"]):  # before missing files: the likelier mistake
            env_files = layers(files["env_config"])
            env = make_env_config(merge(stacked(env_files), changes["env"]), str(files["env_config"]))
        named = [str(path) for path in files.values()] + [args[flag] for flag in ("model_file", "resume") if args[flag]]
        missing = [missing_file(path) for path in named if not os.path.exists(path)]
        if missing:
            raise AssetMissingError(f"not found: {', '.join(missing)} (looked up in the working directory "
                                    f"{Path.cwd()}, args/ and data/ then among the shipped files)")
        with naming_overrides(assignments, "engine"):
            engine, note = merge_engine_config(files["engine_config"], env, changes["engine"])
        check_files(env)
    return World(files, env_files, changes, env, engine, note)


def read_request(args: Args) -> Request:
    """Read and check options, configuration files and the files those name.

    Raises:
        UserError: anything given is wrong; the message names it, what is allowed and where it stands.
    """
    from mimickit.learning.config import parse_agent_config, present_layout

    args, variant = with_variant(args)
    world = read_world(args)
    if (model_file := args["model_file"]) and (problem := model_problem(Path(model_file))):
        raise UserError(f"--model_file {problem}; --resume {Path(model_file).parent} trains on from its newest "
                        "checkpoint and writes the model anew")
    file, changes, notes = world.files.get("agent_config"), world.changes["agent"], [world.note]
    if file is None and changes:
        raise UserError("--set agent.… needs an --agent_config")
    agent_files = layers(file) if file is not None else []
    agent_data = None
    with naming_overrides(args["set"], "agent"):
        if file is not None:
            agent_data, note = present_layout(merge(stacked(agent_files), changes), str(file))
            notes.append(note)
        agent = parse_agent_config(agent_data, str(file or "agent config"))
    seed = args["rand_seed"]
    request = Request(
        args=args, mode=args["mode"], devices=read_devices(args), out_dir=Path(args["out_dir"]),
        result_file=result_file(args, Path(args["out_dir"])), num_envs=args["num_envs"],
        seed=int(256 * time.time()) if seed is None else seed,
        engine=world.engine, env=world.env, agent_data=agent_data, agent=agent, files=world.files,
        whole={option: stacked(found) for option, found
               in (("env_config", world.env_files), ("agent_config", agent_files)) if len(found) > 1},
        notes=tuple(filter(None, notes)), variant=variant,
    )
    with naming_overrides(args["set"], "agent"):
        check_request(request)
    return request


def read_overrides(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``env.a=1 agent.b.c=x`` -> {"env": {"a": 1}, "engine": {}, "agent": {"b": {"c": "x"}}}; values are YAML.

    Raises:
        UserError: not KEY=VALUE, or the key does not begin with ``env.``, ``engine.`` or ``agent.``.
    """
    changes: dict[str, dict[str, Any]] = {"env": {}, "engine": {}, "agent": {}}
    for text in assignments:
        key, equals, value = text.partition("=")
        part, *names = key.split(".")
        if not equals or part not in changes or not names or not all(names):
            raise UserError(f"--set {text}: expected KEY=VALUE with a key like env.episode_length, engine.sim_freq or "
                            f"agent.steps_per_iter")
        target = changes[part]
        for name in names[:-1]:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {text}: another --set gives '{name}' a value that has no keys")
        target[names[-1]] = parse_yaml(value, f"--set {text}: the value")
    return changes


@contextlib.contextmanager
def naming_overrides(assignments: Sequence[str], part: str) -> Iterator[None]:
    """Name in a UserError's message those keys of ``part`` that --set gave, not the file."""
    try:
        yield
    except UserError as error:
        given = [text for text in assignments if text.startswith(f"{part}.")]
        if not given:
            raise
        keys = [text.partition("=")[0].removeprefix(f"{part}.").removeprefix("engine.") for text in given]
        pattern = rf"key '({'|'.join(map(re.escape, keys))})(\.[^']*)?'"
        message, count = re.subn(pattern, r"\g<0> (from --set)", str(error))
        if not count and not re.search(r"([:;] |unknown |missing )key '", message):  # about no key alone
            message += f" (with --set {' '.join(given)})"
        raise type(error)(message) from None


def read_devices(args: Args) -> tuple[str, ...]:
    """The devices to use, one per process.

    Raises:
        UserError: an unknown kind, an index that this machine does not have, mixed kinds, or one GPU twice.
    """
    given, here = args["devices"], machine_devices()
    if given is None:
        return ("cuda:0" if "cuda:0" in here else "cpu",)
    devices = tuple("cuda:0" if name == "cuda" else name for name in given)
    for name in devices:
        if not re.fullmatch(r"cpu|cuda:\d+", name):
            raise UserError(f"--devices {name}: allowed are cpu, and cuda:I for GPU I; this machine has "
                            f"{', '.join(here)}")
        if name not in here:
            raise UserError(f"--devices {name}: this machine has {', '.join(here)}"
                            + (" (torch finds no CUDA device)" if here == ["cpu"] else ""))
    if len({name.split(":")[0] for name in devices}) > 1:
        raise UserError(f"--devices {' '.join(devices)}: all must be of one kind, cpu or cuda")
    if devices[0] != "cpu" and len(set(devices)) < len(devices):
        raise UserError(f"--devices {' '.join(devices)}: a GPU can be given once only")
    return devices


def machine_devices() -> list[str]:
    """The devices that this machine has: ``cpu``, then ``cuda:0`` and on."""
    import torch

    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def check_writable(args: Args, flag: str) -> None:
    """Make sure that files can be written where an option says; makes no folder.

    Raises:
        UserError: the folder cannot be written or made, or a folder has the file's name.
        OSError: any other error of the system, such as a full disk.
    """
    if (given := args[flag]) is None:
        return
    folder = Path(given) if flag == "out_dir" else Path(given).parent
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise UserError(f"--{flag} {given}: cannot write there: {error.strerror} ({place})") from None
    if flag != "out_dir" and Path(given).is_dir():
        raise UserError(f"--{flag} {given}: cannot write there: it is a folder")
