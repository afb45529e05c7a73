"""From an environment's settings to what stands in its worlds: character, clips, action box and engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.anim.mjcf import CharacterModel, action_bounds
from mimickit.anim.motion_lib import MotionLib
from mimickit.config import AssetPath, Config
from mimickit.engines.engine import Engine, StaticObject, WorldSpec
from mimickit.engines.engine_config import EngineConfig
from mimickit.envs.disturbance_config import Disturbances
from mimickit.envs.disturbances import Disturbed, check
from mimickit.envs.terms import CharState, Term, overwrite
from mimickit.util.failures import UserError
from mimickit.util.names import nearest
from mimickit.util.rotations import exp_map_to_quat

MakeEngine = Callable[[WorldSpec, EngineConfig, int, torch.device], Engine]


class EnvConfig(Config):
    """Keys that every environment knows; they are MimicKit's."""

    env_name: str
    char_file: AssetPath = Field(description="character, MJCF")
    camera_mode: Literal["still", "track"] = Field("still", description="track: the camera follows the character")
    episode_length: float = Field(gt=0.0, allow_inf_nan=True, description="s")
    global_obs: bool = Field(description="observe in world axes instead of the character's heading frame")
    root_height_obs: bool = Field(True, description="observe the height of the root")
    zero_center_action: bool = Field(False, description="centre hinge action boxes at 0 instead of mid range")
    init_pose: tuple[float, ...] = Field(
        (), description="root position (m), root exponential map, dofs (rad); or the first three; or nothing: zeros"
    )
    key_bodies: tuple[str, ...] = ()
    engine: dict[str, Any] = Field(default_factory=dict, description="keys that override the engine file")

    _source: str = PrivateAttr("environment configuration")

    @property
    def source(self) -> str:
        """The file that these settings came from, for messages."""
        return self._source

    @property
    def motion_files(self) -> tuple[Path, ...]:
        """Clips or datasets that this environment plays."""
        return ()

    @property
    def static_objects(self) -> tuple[StaticObject, ...]:
        """What stands in the world besides the character."""
        return ()

    @property
    def disturbed(self) -> Disturbances | None:
        """What disturbs the characters; None: nothing."""
        return None

    @property
    def log_metrics(self) -> bool:
        """Whether the environment's metrics are columns of the training log."""
        return False

    @property
    def view(self) -> dict[str, Any]:
        """How it is filmed: arguments of ``newton_viewer.VideoRecorder`` and ``LiveWindow``."""
        return {"camera_mode": self.camera_mode}


class ClipConfig(EnvConfig):
    """Keys of the environments that play motion clips."""

    motion_file: AssetPath = Field(description="clip (.pkl) or dataset (.yaml)")
    accumulate_yaw: bool = Field(False, description="a looped clip that turns goes on from where it turned to (ours)")

    @property
    def motion_files(self) -> tuple[Path, ...]:
        return (self.motion_file,)


@dataclass(frozen=True)
class Setup:
    """Where environments are built: physics settings, number of worlds, device, maker of engines."""

    engine_config: EngineConfig
    num_envs: int
    device: torch.device
    make_engine: MakeEngine


class Scene:
    """One character in ``N`` worlds. The engine opens when it is first used: what a recipe reads before is checked
    before physics starts.

    Args:
        world: fields of :class:`~mimickit.engines.engine.WorldSpec`, such as ``fixed_root``.

    Attributes:
        config: the environment's settings.
        num_envs, device: N, and where all tensors live.
        dt: s, one control step.
        control_mode: meaning of an action, see ``EngineConfig``.
        character: kinematics of the character.
        key_ids: [K] int64, the ``key_bodies``.
        action_low, action_high: [D] box of actions, for the control mode of the engine.

    Raises:
        UserError: settings that do not fit the character.
    """

    def __init__(self, config: EnvConfig, setup: Setup, **world: Any) -> None:
        self.config = config
        self.num_envs, self.device = setup.num_envs, setup.device
        self.dt = 1.0 / setup.engine_config.control_freq
        self.control_mode = setup.engine_config.control_mode
        self.character = Character.load(config.char_file, setup.device)
        self.key_ids = self.tensor(self.body_ids("key_bodies"), torch.int64)
        self.action_low, self.action_high = map(self.tensor, action_bounds(
            self.character.model, setup.engine_config.control_mode, config.zero_center_action))
        if config.disturbed is not None:
            check(config.disturbed, self.control_mode, self.dt, config.source)
        self._setup, self._world = setup, world

    @cached_property
    def motions(self) -> MotionLib:
        """The clips of ``motion_file``."""
        return MotionLib(self.config.motion_file, self.character, accumulate_yaw=self.config.accumulate_yaw)

    @cached_property
    def engine(self) -> Engine:
        """Physics, the character in ``init_pose``. Raises UserError where bodies of engine and character differ."""
        root_pos, root_rot, dof_pos = (tuple(x.tolist()) for x in init_pose(self.config, self.character.model))
        disturbed = self.config.disturbed
        varied = {"varied": disturbed.varies, "roughness": disturbed.roughness} if disturbed is not None else {}
        spec = WorldSpec(self.config.char_file, root_pos, root_rot, dof_pos, objects=self.config.static_objects,
                         **varied, **self._world)
        engine = self._setup.make_engine(spec, self._setup.engine_config, self.num_envs, self.device)
        check_bodies(engine, self.character)
        return engine

    @cached_property
    def disturbances(self) -> Disturbed | None:
        """What disturbs the characters, if anything; opens the engine."""
        settings = self.config.disturbed
        return Disturbed(settings, self.engine, self.character) if settings is not None else None

    @property
    def init_pose(self) -> tuple[Tensor, Tensor, Tensor]:
        """:func:`init_pose` on the device."""
        return tuple(x.to(self.device) for x in init_pose(self.config, self.character.model))

    def tensor(self, values: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers as a tensor on the device."""
        return torch.as_tensor(values, dtype=dtype).to(self.device)

    def constant(self, value: float) -> Term:
        """A reward [N] that is the same in every step."""
        values = torch.full((self.num_envs,), value, device=self.device)
        return lambda now: values

    def body_ids(self, key: str) -> list[int]:
        """Indices of the bodies that the settings name under ``key``.

        Raises:
            UserError: a name that no body has, or that is listed twice.
        """
        model, names, where = self.character.model, getattr(self.config, key), f"{self.config.source}: key '{key}'"
        names = (names,) if isinstance(names, str) else names
        for name in names:
            if name not in model.body_names:
                raise UserError(
                    f"{where} names the body '{name}', which {model.file} does not have"
                    f"{nearest(name, model.body_names)}; its bodies: {', '.join(model.body_names)}"
                )
            if names.count(name) > 1:
                raise UserError(f"{where} names the body '{name}' more than once")
        return [model.body_names.index(name) for name in names]

    def joint_weights(self, key: str) -> tuple[Tensor, Tensor]:
        """Weights [J] of joints and [D] of their dofs that the settings give under ``key``; all 1 if none.

        Raises:
            UserError: not one number per non-root joint.
        """
        model = self.character.model
        weights = list(getattr(self.config, key)) or [1.0] * model.num_joints
        if len(weights) != model.num_joints:
            raise UserError(
                f"{self.config.source}: key '{key}' has {len(weights)} numbers; {model.file} needs {model.num_joints}, "
                f"one for each of {', '.join(model.body_names[1:])} (fixed joints included)"
            )
        dofs = [w for w, span in zip(weights, model.dof_slices[1:], strict=True) for _ in range(span.stop - span.start)]
        return self.tensor(weights), self.tensor(dofs)

    def char_state(self) -> CharState:
        """The characters [N, ...] as physics left them, in the engine's buffers."""
        engine = self.engine
        return CharState(
            engine.root_pos, engine.root_rot, engine.root_vel, engine.root_ang_vel,
            self.character.dof_to_rot(engine.dof_pos), engine.dof_vel, engine.body_pos, engine.body_rot,
        )

    def place(self, mask: Tensor, state: CharState) -> None:
        """Put characters into a state where mask [N]; physics takes it over with its next step."""
        engine = self.engine
        engine.reset_mask.logical_or_(mask)
        dof_pos = self.character.rot_to_dof(state.joint_rot)
        for name, value in {**state._asdict(), "dof_pos": dof_pos}.items():
            if name != "joint_rot":
                overwrite(mask, value, getattr(engine, name))
        for stale in (engine.body_vel, engine.body_ang_vel, engine.contact_force, engine.ground_contact_force):
            stale.masked_fill_(mask.view(-1, 1, 1), 0.0)

    def placed(self) -> list[Tensor]:
        """The engine's buffers that :meth:`place`, disturbances and those who move free objects read and change."""
        names = ("reset_mask", "dof_pos", "body_vel", "body_ang_vel", "contact_force", "ground_contact_force",
                 *(name for name in CharState._fields if name != "joint_rot"),
                 *(("object_mask", "object_pos", "object_vel") if self._world.get("free_objects") else ()))
        varied = self.disturbances.written() if self.disturbances is not None else []
        return [*(getattr(self.engine, name) for name in names), *varied]


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


def check_bodies(engine: Engine, character: Character) -> None:
    """Simulated and kinematic bodies must be the same, in the same order. Raises UserError listing both."""
    if tuple(engine.body_names) != tuple(character.body_names):
        raise UserError(
            f"{character.model.file}: the simulated bodies ({', '.join(engine.body_names)}) are not those of the "
            f"kinematic model ({', '.join(character.body_names)})"
        )
