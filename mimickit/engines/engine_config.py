"""Settings of the physics engine. Nothing heavy is imported here: configurations are checked before Newton loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mimickit.config import Config, build, load_yaml
from mimickit.util.assets import DEFAULT_ENGINE_FILE, SHIPPED, locate
from mimickit.util.failures import UserError

ControlMode = Literal["none", "pos", "vel", "torque", "pd_explicit"]

SUPPORTED_ENGINES = ("newton",)
OTHER_ENGINES = ("isaac_gym", "isaac_lab")  # MimicKit's, whose files are read for Newton
CAPACITY_FILE = "data/engines/contact_capacity.yaml"


class EngineConfig(Config):
    """One engine file: MimicKit's keys, and optional keys of the solver."""

    engine_name: Literal["newton"]
    control_mode: ControlMode = Field("none", description="meaning of a command, see Engine.command")
    control_freq: int = Field(10, gt=0, description="control steps per second, Hz")
    sim_freq: int = Field(60, gt=0, description="physics substeps per second, Hz; a multiple of control_freq")
    env_spacing: float = Field(ge=0.0, description="distance of worlds in a picture, m; physics never sees it")
    ground_contact_height: float = Field(
        0.3, description="m; accepted and ignored: it repairs a limitation of Isaac Gym that Newton does not have"
    )
    solver_iterations: int = Field(20, gt=0, description="constraint solver iterations per substep, at most")
    solver_ls_iterations: int = Field(20, gt=0, description="line search steps per solver iteration, at most")
    impratio: float = Field(10.0, gt=0.0, description="friction to normal impedance ratio of contacts")
    jacobian: Literal["auto", "dense", "sparse"] = Field(
        "auto", description="storage of the constraint Jacobian; auto: sparse from 33 velocities of the character on"
    )
    njmax: int | None = Field(None, gt=0, description="constraint rows per world; null: contact_capacity.yaml")
    nconmax: int | None = Field(None, gt=0, description="contacts per world; null: contact_capacity.yaml")
    fused_solve: bool = Field(
        False, description="solve each world's constraints in one kernel (newton_solve.py), the same to rounding"
    )
    lean_steps: bool = Field(
        False, description="fewer launches a step: none that does nothing, sums over trees in one (newton_lean.py), "
        "the same to the bit; not where worlds vary"
    )
    spherical_limits: bool = Field(
        False,
        description="limit spherical joints too: beyond the ranges of its three hinges an exponential map is pushed "
        "back by a spring as stiff as the joint's motor. MimicKit leaves them unlimited, hence the default",
    )

    @model_validator(mode="after")
    def _whole_substeps(self) -> EngineConfig:
        if self.sim_freq % self.control_freq != 0:
            raise ValueError(f"sim_freq {self.sim_freq} must be a multiple of control_freq {self.control_freq}")
        return self

    @property
    def substeps(self) -> int:
        """Physics substeps in one control step."""
        return self.sim_freq // self.control_freq


def make_engine_config(data: Mapping[str, Any], where: str) -> EngineConfig:
    """Validate engine settings.

    Args:
        data: keys and values, an env file's ``engine`` mapping already merged in.
        where: where the data came from, for messages.

    Raises:
        UserError: another engine is named, or a key or value is wrong.
    """
    name = data.get("engine_name")
    if name is not None and name not in SUPPORTED_ENGINES:
        raise UserError(
            f"{where}: engine_name '{name}' is not supported; supported: {', '.join(SUPPORTED_ENGINES)}. "
            f"Use --engine_config {DEFAULT_ENGINE_FILE}"
        )
    return build(EngineConfig, data, where)


def for_newton(data: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], str | None]:
    """Content of an engine file, and a sentence about it if it was another engine's: then with Newton's physics rate,
    rounded up to whole substeps, since another solver's rate says nothing about what Newton's needs."""
    name = data.get("engine_name")
    if name not in OTHER_ENGINES:
        return data, None
    default = load_engine_config(SHIPPED / DEFAULT_ENGINE_FILE)
    control = data.get("control_freq", EngineConfig.model_fields["control_freq"].default)
    rate = default.sim_freq
    if isinstance(control, int) and control > 0:
        rate = -(-rate // control) * control
    return {**data, "engine_name": default.engine_name, "sim_freq": rate}, (
        f"{where} is for engine '{name}'; this runs on Newton with sim_freq {rate} and the file's other keys "
        f"(--engine_config {DEFAULT_ENGINE_FILE} names Newton's own file)")


def read_engine_file(
    path: str | Path, overrides: Mapping[str, Any], where: str = ""
) -> tuple[EngineConfig, str | None]:
    """Read an engine file; ``overrides`` (an env file's ``engine`` mapping, ``--set engine.x=...``) win over it.

    A file of another engine is read as :func:`for_newton` says, unless ``overrides`` name the engine.

    Args:
        where: where all of it came from, for messages; the path if left out.

    Returns:
        The settings, and a sentence about a file that is another engine's.

    Raises:
        AssetMissingError: no such file.
        UserError: unsupported engine, unknown key or wrong value.
    """
    data, note = load_yaml(path), None
    if "engine_name" not in overrides:
        data, note = for_newton(data, str(path))
    return make_engine_config({**data, **overrides}, where or str(path)), note


def load_engine_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> EngineConfig:
    """The settings alone, as :func:`read_engine_file` reads them."""
    return read_engine_file(path, overrides or {})[0]


class Capacity(Config):
    """Buffer sizes of one character: measured peak times 1.5."""

    njmax: int = Field(gt=0, description="constraint rows per world")
    nconmax: int = Field(gt=0, description="contacts per world")


class CapacityFile(Config):
    """``contact_capacity.yaml``: by file stem of the character, and a default for characters that were not measured."""

    default: Capacity
    characters: dict[str, Capacity] = Field(default_factory=dict)


def contact_capacity(char_file: Path, config: EngineConfig, path: str | Path = CAPACITY_FILE) -> tuple[Capacity, bool]:
    """Buffer sizes for a character, and whether they were measured for it (or given in the engine file)."""
    table = build(CapacityFile, load_yaml(locate(path)), str(path))
    measured = table.characters.get(Path(char_file).stem)
    base = measured or table.default
    known = measured is not None or (config.njmax is not None and config.nconmax is not None)
    return Capacity(njmax=config.njmax or base.njmax, nconmax=config.nconmax or base.nconmax), known
