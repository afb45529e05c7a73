"""One call from settings to an environment: which environments there are, reading and checking their files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mimickit.anim.motion_lib import missing_motions
from mimickit.config import build, load_layered, merge
from mimickit.engines.engine_config import EngineConfig, read_engine_file
from mimickit.envs import add, amp, deepmimic, dodgeball, dof_test, tasks, view_motion
from mimickit.envs.env import Env
from mimickit.envs.scene import EnvConfig, MakeEngine, Setup
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.names import missing_file, nearest

ENVS: dict[str, tuple[type[EnvConfig], Callable[[EnvConfig, Setup], Env]]] = {  # by env_name
    "add": (add.ADDConfig, add.build),
    "amp": (amp.AMPConfig, amp.build_amp),
    "ase": (amp.ASEConfig, amp.build_ase),
    "char": (dof_test.CharConfig, dof_test.build_char),
    "char_dof_test": (dof_test.DofTestConfig, dof_test.build),
    "deepmimic": (deepmimic.DeepMimicConfig, deepmimic.build),
    "smp": (amp.SMPConfig, amp.build_amp),
    "static_objects": (deepmimic.StaticObjectsConfig, deepmimic.build),
    "task_dodgeball": (dodgeball.DodgeballConfig, dodgeball.build_dodgeball),
    "task_location": (tasks.LocationConfig, tasks.build_location),
    "task_steering": (tasks.SteeringConfig, tasks.build_steering),
    "view_motion": (view_motion.ViewMotionConfig, view_motion.build),
}


def load_env_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> EnvConfig:
    """Read an environment file.

    Args:
        path: yaml file; what it does not give comes from the files that its key ``base`` names.
        overrides: keys that replace those of the file, e.g. ``{"episode_length": 5}``; mappings are merged.

    Raises:
        AssetMissingError: no such file.
        UserError: unknown ``env_name`` or key, missing key, wrong value; all of a file's problems in one message.
    """
    return make_env_config(merge(load_layered(path), overrides or {}), str(path))


def check_env_name(data: Mapping[str, Any], where: str) -> None:
    """Raises UserError for an environment that is missing or unknown here."""
    name = data.get("env_name")
    if not isinstance(name, str) or name not in ENVS:
        given = "missing key 'env_name'" if name is None else f"env_name '{name}' is not supported"
        raise UserError(f"{where}: {given}{nearest(str(name), ENVS)}; supported: {', '.join(sorted(ENVS))}")


def make_env_config(data: Mapping[str, Any], where: str) -> EnvConfig:
    """Validate the settings of an environment that came from ``where``. Raises UserError."""
    check_env_name(data, where)
    config = build(ENVS[data["env_name"]][0], data, where)
    config._source = where
    return config


def merge_engine_config(path: str | Path, env_config: EnvConfig, changes: Mapping[str, Any] | None = None
                        ) -> tuple[EngineConfig, str | None]:
    """The engine file with the environment's ``engine`` mapping on top, then ``changes``, checked as a whole; and what
    :func:`read_engine_file` says about the file.

    Raises:
        AssetMissingError: no such file.
        UserError: unsupported engine, unknown, missing or wrong keys.
    """
    where = f"{path} with {env_config.source}, key 'engine'" if env_config.engine else ""
    return read_engine_file(path, {**env_config.engine, **(changes or {})}, where)


def check_files(config: EnvConfig) -> None:
    """Make sure that every file the environment reads exists, before anything expensive starts.

    Raises:
        AssetMissingError: names all missing files at once and how to obtain them.
        UserError: a dataset file is malformed.
    """
    missing = [] if os.path.exists(config.char_file) else [f"character {missing_file(config.char_file)}"]
    objects = dict.fromkeys(item.file for item in config.static_objects)
    missing += [f"object {missing_file(path)}" for path in objects if not os.path.exists(path)]
    for path in config.motion_files:
        clips = missing_motions(path) if os.path.exists(path) else [path]
        missing += [f"motion {missing_file(clip)}" for clip in clips]
    if missing:
        raise AssetMissingError(
            f"{config.source} names {'a file that is' if len(missing) == 1 else f'{len(missing)} files that are'} not "
            f"there: {', '.join(missing)}. Files are looked up in the working directory, then among the shipped ones; "
            "data/motions/README.md tells how to obtain or generate clips (tools/import_deepmimic.py makes the "
            "humanoid's), data/assets/README.md where models come from"
        )


def build_env(
    env_config: EnvConfig, engine_config: EngineConfig, num_envs: int, device: str | torch.device,
    make_engine: MakeEngine | None = None,
) -> Env:
    """Build an environment. ``engine_config`` is final: :func:`merge_engine_config` has put the environment's keys in.

    Draws come from torch's default generator of the device: seed it before, and save its state with a checkpoint.

    Args:
        num_envs: worlds, N.
        make_engine: maker of the physics engine; Newton if not given.

    Raises:
        AssetMissingError: a file of the character or its motions does not exist.
        UserError: settings, character and clips do not fit together.
    """
    if num_envs < 1:
        raise UserError(f"num_envs must be at least 1, got {num_envs}")
    check_files(env_config)
    setup = Setup(engine_config, num_envs, torch.device(device), make_engine or _newton)
    return ENVS[env_config.env_name][1](env_config, setup)


def _newton(spec, config, num_envs, device):
    from mimickit.engines.newton_engine import NewtonEngine

    return NewtonEngine(spec, config, num_envs, device)
