"""One call from settings to an environment. Recipes by ``env_name``; each composes an ``Env`` from parts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mimickit.engines.engine_config import EngineConfig
from mimickit.envs import add, amp, deepmimic, dof_test, static_objects, view_motion
from mimickit.envs.env import Env
from mimickit.envs.env_config import ENV_CONFIGS, EnvConfig, check_files, load_env_config
from mimickit.envs.world import MakeEngine, Setup
from mimickit.util.failures import UserError

__all__ = ["RECIPES", "build_env", "check_files", "load_env_config"]

RECIPES: dict[str, Callable[[EnvConfig, Setup], Env]] = {
    "add": add.build,
    "amp": amp.build_amp,
    "ase": amp.build_ase,
    "char": dof_test.build_char,
    "deepmimic": deepmimic.build,
    "char_dof_test": dof_test.build,
    "static_objects": static_objects.build,
    "task_location": amp.build_location,
    "task_steering": amp.build_steering,
    "view_motion": view_motion.build,
}
assert RECIPES.keys() == ENV_CONFIGS.keys()


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
    setup = Setup(
        engine_config, num_envs, torch.device(device), make_engine or _newton
    )
    return RECIPES[env_config.env_name](env_config, setup)


def _newton(spec, config, num_envs, device):
    from mimickit.engines.newton_engine import NewtonEngine

    return NewtonEngine(spec, config, num_envs, device)
