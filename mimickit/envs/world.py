"""From an environment's settings to a character, its engine and its action box; names and lengths checked here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.anim.mjcf import CharacterModel, action_bounds
from mimickit.engines.engine import Engine, WorldSpec
from mimickit.engines.engine_config import EngineConfig
from mimickit.envs.env_config import EnvConfig
from mimickit.util.failures import UserError
from mimickit.util.names import nearest
from mimickit.util.rotations import exp_map_to_quat

MakeEngine = Callable[[WorldSpec, EngineConfig, int, torch.device], Engine]

CHAR_COLOR = (0.35, 0.45, 0.7)
REF_COLOR = (0.3, 0.5, 0.1)


@dataclass(frozen=True)
class Setup:
    """Where environments are built: physics settings, number of worlds, device, maker of engines."""

    engine_config: EngineConfig
    num_envs: int
    device: torch.device
    make_engine: MakeEngine

    def load_character(self, config: EnvConfig) -> Character:
        """The kinematics of the environment's character, on the device."""
        return Character.load(config.char_file, self.device)

    def open_world(self, config: EnvConfig, character: Character, **changes) -> Engine:
        """An engine with the character in ``init_pose``; ``changes`` are fields of ``WorldSpec``."""
        root_pos, root_rot, dof_pos = init_pose(config, character.model)
        spec = WorldSpec(
            char_file=config.char_file, init_root_pos=tuple(root_pos.tolist()), init_root_rot=tuple(root_rot.tolist()),
            init_dof_pos=tuple(dof_pos.tolist()), color=changes.pop("color", CHAR_COLOR), **changes,
        )
        return self.make_engine(spec, self.engine_config, self.num_envs, self.device)

    def action_box(self, config: EnvConfig, character: Character) -> tuple[Tensor, Tensor]:
        """Low and high [D] of actions, for the control mode of the engine."""
        low, high = action_bounds(character.model, self.engine_config.control_mode, config.zero_center_action)
        return self.tensor(low), self.tensor(high)

    def tensor(self, values, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers as a tensor on the device."""
        return torch.as_tensor(values, dtype=dtype).to(self.device)


def init_pose(config: EnvConfig, model: CharacterModel) -> tuple[Tensor, Tensor, Tensor]:
    """Root position [3], rotation [4] and dofs [D] of the key ``init_pose``, on the CPU.

    Raises:
        UserError: neither 0, 3 nor 6 + D numbers.
    """
    allowed = (0, 3, 6 + model.num_dofs)
    if len(config.init_pose) not in allowed:
        raise UserError(
            f"{config.source}: key 'init_pose' has {len(config.init_pose)} numbers; allowed are {allowed[2]} (root "
            f"position, root exponential map, {model.num_dofs} dofs of {model.file}), 3 (root position) or none"
        )
    pose = torch.zeros(allowed[2])
    pose[: len(config.init_pose)] = torch.tensor(config.init_pose)
    return pose[:3], exp_map_to_quat(pose[3:6]), pose[6:]


def body_ids(config: EnvConfig, key: str, model: CharacterModel) -> list[int]:
    """Indices of the bodies that the settings list under ``key``.

    Raises:
        UserError: a name that no body has, or that is listed twice.
    """
    names = getattr(config, key)
    for name in names:
        if name not in model.body_names:
            raise UserError(
                f"{config.source}: key '{key}' names the body '{name}', which {model.file} does not have"
                f"{nearest(name, model.body_names)}; its bodies: {', '.join(model.body_names)}"
            )
        if names.count(name) > 1:
            raise UserError(f"{config.source}: key '{key}' names the body '{name}' more than once")
    return [model.body_names.index(name) for name in names]


def joint_weights(config: EnvConfig, model: CharacterModel) -> tuple[list[float], list[float]]:
    """Weights [J] of joints and [D] of their dofs from the key ``joint_err_w``.

    Raises:
        UserError: not one number per non-root joint.
    """
    weights = list(config.joint_err_w) or [1.0] * model.num_joints
    if len(weights) != model.num_joints:
        raise UserError(
            f"{config.source}: key 'joint_err_w' has {len(weights)} numbers; {model.file} needs {model.num_joints}, "
            f"one for each of {', '.join(model.body_names[1:])} (fixed joints included)"
        )
    dofs = [w for w, span in zip(weights, model.dof_slices[1:], strict=True) for _ in range(span.stop - span.start)]
    return weights, dofs
