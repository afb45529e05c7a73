"""Physics-based characters learn to imitate motion clips, simulated in parallel worlds by the Newton engine.

``mimickit.make("deepmimic_humanoid_ppo", num_envs=4096)`` gives the environment of a case to a learner of your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mimickit.envs.env import Env

__all__ = ["make"]


def make(case: str, num_envs: int = 1, device: str | None = None, overrides: Sequence[str] = (),
         seed: int | None = None) -> Env:
    """The environment of a case, for a learner of your own; :mod:`mimickit.envs.base` is its contract.

    Args:
        case: a name of ``mimickit list``, an args file, or a run folder: what that run was trained in.
        num_envs: worlds, N.
        device: ``cpu`` or ``cuda:i``; None: ``cuda:0`` where there is a GPU.
        overrides: as those of ``--set``: ``["env.episode_length=5", "engine.sim_freq=120"]``.
        seed: seeds Python's, NumPy's and torch's generators; None leaves them alone.

    Raises:
        UserError: an unknown case, a wrong value, a missing file, or a device that is not there.
    """
    from mimickit.commands import read_args
    from mimickit.envs.env_builder import build_env
    from mimickit.request_reader import read_devices, read_world
    from mimickit.util.distributed import seed_process
    from mimickit.util.failures import UserError

    words = [*(["--devices", device] if device else []), *(["--set", *overrides] if overrides else [])]
    args = read_args(["show", case, *words])
    if any(text.startswith("agent.") for text in overrides):
        raise UserError("overrides of agent keys mean nothing here: the learner is your own")
    world = read_world(args)
    if seed is not None:
        seed_process(seed, 0)
    return build_env(world.env, world.engine, num_envs, read_devices(args)[0])
