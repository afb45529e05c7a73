"""Settings of the environments, one class per ``env_name``. Nothing heavy is imported here: inputs are checked first.

Keys are MimicKit's. A wrong key, a wrong value, or two settings that contradict each other are reported with the file
they stand in, before physics starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from mimickit.config import Config, build, load_yaml, merge
from mimickit.engines.engine_config import EngineConfig, load_engine_config
from mimickit.util.assets import locate
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.names import nearest

AssetPath = Annotated[Path, AfterValidator(locate)]  # here, or the shipped file
AccumulateYaw = Annotated[bool, Field(description="a looped clip that turns goes on from where it turned to (ours)")]


class EnvConfig(Config):
    """Keys that every environment knows."""

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
    def object_files(self) -> tuple[Path, ...]:
        """Models of what stands in the world besides the character."""
        return ()

    @property
    def log_diagnostics(self) -> bool:
        """Whether the environment's measures are columns of the training log."""
        return False


class CharConfig(EnvConfig):
    """``char``: stands from ``init_pose``."""

    env_name: Literal["char"]


class DofTestConfig(EnvConfig):
    """``char_dof_test``: drives one dof after the other; ``episode_length`` is replaced by 4 s a dof."""

    env_name: Literal["char_dof_test"]


class ViewMotionConfig(EnvConfig):
    """``view_motion``: plays clips without physics; ``episode_length`` is not used."""

    env_name: Literal["view_motion"]
    motion_file: AssetPath = Field(description="clip (.pkl) or dataset (.yaml)")
    accumulate_yaw: AccumulateYaw = False

    @property
    def motion_files(self) -> tuple[Path, ...]:
        return (self.motion_file,)


class MotionConfig(EnvConfig):
    """Keys of the environments whose characters start from, and are compared with, motion clips."""

    motion_file: AssetPath = Field(description="clip (.pkl) or dataset (.yaml)")
    enable_early_termination: bool
    ref_char_offset: tuple[float, float, float] = Field(description="m; where the reference is drawn, display only")
    visualize_ref_char: bool = True
    contact_bodies: tuple[str, ...] = Field((), description="bodies that may touch the ground; none: no contact test")
    pose_termination: bool = False
    pose_termination_dist: float = Field(1.0, gt=0.0, description="m")
    enable_phase_obs: bool = True
    num_phase_encoding: int = Field(0, ge=0, description="frequencies of the phase encoding")
    enable_tar_obs: bool = Field(False, description="observe the reference some steps ahead")
    tar_obs_steps: tuple[Annotated[int, Field(ge=0)], ...] = Field((1,), description="control steps ahead, in order")
    rand_reset: bool = Field(True, description="start at a random time of the clip instead of its beginning")
    accumulate_yaw: AccumulateYaw = False
    log_tracking_error: bool = False

    @model_validator(mode="after")
    def _some_target(self) -> MotionConfig:
        if self.enable_tar_obs and not self.tar_obs_steps:
            raise ValueError("enable_tar_obs needs at least one entry in tar_obs_steps")
        return self

    @property
    def motion_files(self) -> tuple[Path, ...]:
        return (self.motion_file,)

    @property
    def log_diagnostics(self) -> bool:
        return self.log_tracking_error

    @property
    def future_steps(self) -> tuple[int, ...]:
        """Control steps ahead that are observed."""
        return self.tar_obs_steps if self.enable_tar_obs else ()

    @property
    def track_root(self) -> bool:
        """Whether the character must follow the root in the world, not merely move alike."""
        return self.enable_tar_obs and self.global_obs


class DeepMimicConfig(MotionConfig):
    """``deepmimic``: motion tracking (Peng et al. 2018, "DeepMimic")."""

    env_name: Literal["deepmimic"]
    joint_err_w: tuple[float, ...] = Field((), description="weight per non-root joint, depth first; none: all 1")
    reward_pose_w: float
    reward_vel_w: float
    reward_root_pose_w: float
    reward_root_vel_w: float
    reward_key_pos_w: float
    reward_pose_scale: float = Field(description="1/rad^2")
    reward_vel_scale: float = Field(description="s^2/rad^2")
    reward_root_pose_scale: float = Field(description="1/m^2")
    reward_root_vel_scale: float = Field(description="s^2/m^2")
    reward_key_pos_scale: float = Field(description="1/m^2")


class ObjectConfig(Config):
    """A fixed, colliding object."""

    file: AssetPath = Field(description="MJCF of one body")
    pos: tuple[float, float, float] = Field(description="m")
    rot: tuple[float, float, float, float] = Field((0.0, 0.0, 0.0, 1.0), description="quaternion x y z w")


class StaticObjectsConfig(DeepMimicConfig):
    """``static_objects``: motion tracking among fixed boxes, e.g. vaulting."""

    env_name: Literal["static_objects"]
    objects: tuple[ObjectConfig, ...]

    @property
    def object_files(self) -> tuple[Path, ...]:
        return tuple(item.file for item in self.objects)


def _unused() -> Any:
    return Field(None, description="stands in MimicKit's files; not used here")


class AdversarialConfig(MotionConfig):
    """Keys of the environments that a discriminator judges."""

    num_disc_obs_steps: int = Field(ge=1, description="states in the discriminator's window")

    joint_err_w: tuple[float, ...] | None = _unused()
    reward_pose_w: float | None = _unused()
    reward_vel_w: float | None = _unused()
    reward_root_pose_w: float | None = _unused()
    reward_root_vel_w: float | None = _unused()
    reward_key_pos_w: float | None = _unused()
    reward_pose_scale: float | None = _unused()
    reward_vel_scale: float | None = _unused()
    reward_root_pose_scale: float | None = _unused()
    reward_root_vel_scale: float | None = _unused()
    reward_key_pos_scale: float | None = _unused()


class ADDConfig(AdversarialConfig):
    """``add``: motion tracking judged by a discriminator (Zhang et al. 2025)."""

    env_name: Literal["add"]

    disc_dof_vel_obs: bool | None = _unused()


class PriorConfig(AdversarialConfig):
    """Keys of the environments whose characters shall move in the style of the clips."""

    disc_dof_vel_obs: bool = Field(True, description="the discriminator sees dof velocities")

    @property
    def log_diagnostics(self) -> bool:
        return True


class AMPConfig(PriorConfig):
    """``amp``: style alone (Peng et al. 2021, "AMP")."""

    env_name: Literal["amp"]


class ASEConfig(PriorConfig):
    """``ase``: many skills (Peng et al. 2022, "ASE")."""

    env_name: Literal["ase"]
    default_reset_prob: float = Field(ge=0.0, le=1.0, description="probability that an episode begins in init_pose")

    @model_validator(mode="after")
    def _nothing_to_lose(self) -> ASEConfig:
        if self.pose_termination and self.default_reset_prob > 0.0:
            raise ValueError("pose_termination compares with a clip that episodes beginning in init_pose do not "
                             "follow; set it to false, or default_reset_prob to 0")
        return self


class GoalConfig(PriorConfig):
    """Keys of goals that change from time to time."""

    tar_change_time_min: float = Field(ge=0.0, description="s, shortest time before a goal changes")
    tar_change_time_max: float = Field(gt=0.0, description="s, longest time before a goal changes")

    @model_validator(mode="after")
    def _ranges(self) -> GoalConfig:
        for key in ("tar_change_time", "tar_dist", "tar_speed"):
            low, high = getattr(self, f"{key}_min", 0.0), getattr(self, f"{key}_max", float("inf"))
            if low > high:
                raise ValueError(f"{key}_min = {low} exceeds {key}_max = {high}")
        return self


class LocationConfig(GoalConfig):
    """``task_location``: go to a place in the style of the clips."""

    env_name: Literal["task_location"]
    tar_speed: float = Field(gt=0.0, description="m/s towards the target that is asked for at least")
    tar_dist_min: float = Field(0.0, ge=0.0, description="m, of a new target")
    tar_dist_max: float = Field(gt=0.0, description="m, of a new target")
    dist_threshold: float = Field(0.5, ge=0.0, description="m^2 (0.5 is 0.707 m), squared distance that is near enough")
    dist_threshold_m: float | None = Field(None, ge=0.0, description="m; replaces dist_threshold (ours)")
    pos_err_scale: float = Field(0.5, description="1/m^2")
    vel_err_scale: float = Field(4.0, description="s^2/m^2")
    pos_reward_w: float = 0.5
    vel_reward_w: float = 0.4
    face_reward_w: float = 0.1

    @property
    def squared_threshold(self) -> float:
        """m^2."""
        return self.dist_threshold if self.dist_threshold_m is None else self.dist_threshold_m**2


class SteeringConfig(GoalConfig):
    """``task_steering``: keep a direction and a speed in the style of the clips."""

    env_name: Literal["task_steering"]
    rand_tar_dir: bool = Field(True, description="any direction; otherwise the world's x axis")
    rand_face_dir: bool = Field(True, description="face any direction; otherwise the one to go in")
    tar_speed_min: float = Field(ge=0.0, description="m/s")
    tar_speed_max: float = Field(ge=0.0, description="m/s")
    reward_steering_tar_w: float
    reward_steering_face_w: float
    reward_steering_vel_scale: float = Field(description="s^2/m^2")


ENV_CONFIGS: dict[str, type[EnvConfig]] = {
    "add": ADDConfig,
    "amp": AMPConfig,
    "ase": ASEConfig,
    "char": CharConfig,
    "deepmimic": DeepMimicConfig,
    "char_dof_test": DofTestConfig,
    "static_objects": StaticObjectsConfig,
    "task_location": LocationConfig,
    "task_steering": SteeringConfig,
    "view_motion": ViewMotionConfig,
}
NOT_YET = ("smp", "task_dodgeball")  # of MimicKit, planned


def load_env_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> EnvConfig:
    """Read an environment file.

    Args:
        path: yaml file.
        overrides: keys that replace those of the file, e.g. ``{"episode_length": 5}``; mappings are merged.

    Raises:
        AssetMissingError: no such file.
        UserError: unknown ``env_name`` or key, missing key, wrong value; all of a file's problems in one message.
    """
    return make_env_config(merge(load_yaml(path), overrides or {}), str(path))


def check_env_name(data: Mapping[str, Any], where: str) -> None:
    """Raises UserError for an environment that is missing or unknown here, or one of MimicKit's that is still to come.
    """
    name = data.get("env_name")
    if not isinstance(name, str) or name not in ENV_CONFIGS:
        given = "missing key 'env_name'" if name is None else f"env_name '{name}' is not supported"
        hint = " yet (of MimicKit, to come)" if name in NOT_YET else nearest(str(name), ENV_CONFIGS)
        raise UserError(f"{where}: {given}{hint}; supported: {', '.join(sorted(ENV_CONFIGS))}")


def make_env_config(data: Mapping[str, Any], where: str) -> EnvConfig:
    """Validate the settings of an environment that came from ``where``. Raises UserError."""
    check_env_name(data, where)
    config = build(ENV_CONFIGS[data["env_name"]], data, where)
    config._source = where
    return config


def merge_engine_config(path: str | Path, env_config: EnvConfig, changes: Mapping[str, Any] | None = None
                        ) -> EngineConfig:
    """The engine file with the environment's ``engine`` mapping on top, then ``changes``, checked as a whole.

    Raises:
        AssetMissingError: no such file.
        UserError: unsupported engine, unknown, missing or wrong keys.
    """
    where = f"{path} with {env_config.source}, key 'engine'" if env_config.engine else ""
    return load_engine_config(path, {**env_config.engine, **(changes or {})}, where)


def check_files(config: EnvConfig) -> None:
    """Make sure that every file the environment reads exists, before anything expensive starts.

    Raises:
        AssetMissingError: names all missing files at once and how to obtain them.
        UserError: a dataset file is malformed.
    """
    missing = [] if os.path.exists(config.char_file) else [f"character {config.char_file}"]
    missing += [f"object {path}" for path in dict.fromkeys(config.object_files) if not os.path.exists(path)]
    for path in config.motion_files:
        missing += _missing_clips(path)
    if missing:
        raise AssetMissingError(
            f"{config.source} needs {len(missing)} file{'s' if len(missing) > 1 else ''} not found: "
            f"{', '.join(missing)}. Files are looked up in the working directory, then among the shipped ones; "
            "data/motions/README.md tells how to obtain or generate clips (tools/import_deepmimic.py makes the "
            "humanoid's), data/assets/README.md where models come from"
        )


def _missing_clips(path: Path) -> list[str]:
    if not os.path.exists(path):
        return [f"motion {path}"]
    if path.suffix not in (".yaml", ".yml"):
        return []
    entries = load_yaml(path).get("motions")
    if not isinstance(entries, list) or not all(
            isinstance(e, Mapping) and isinstance(e.get("file"), str) for e in entries):
        raise UserError(f"{path}: a dataset needs the key 'motions', a list of mappings with 'file' and 'weight'")
    return [f"motion {e['file']}" for e in entries if not os.path.exists(locate(e["file"]))]
