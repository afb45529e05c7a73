"""Settings of disturbances (:mod:`mimickit.envs.disturbances`). Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from mimickit.config import Config, build, load_layered
from mimickit.util.assets import SHIPPED, locate
from mimickit.util.failures import UserError
from mimickit.util.names import nearest


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 <= pair[0] <= pair[1]:
        raise ValueError(f"a range is two numbers, 0 or more, the smaller first; this one is {list(pair)}")
    return pair


SETS, STANDARD = "data/disturbances", "standard"
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
Amount = Annotated[float, Field(ge=0.0)]


class Disturbances(Config):
    """The key ``disturbances``. A range is drawn from uniformly, an amount stands for the range [-amount, amount];
    null and 0: off."""

    friction: Range | None = Field(None, description="factor of the sliding friction of all contacts of a world")
    mass: Range | None = Field(None, description="factor of mass and inertia, of each body; drawn at the start")
    com: Amount = Field(0.0, description="m, along each axis: the root body's centre of mass; drawn at the start")
    stiffness: Range | None = Field(None, description="factor of kp, of each dof")
    damping: Range | None = Field(None, description="factor of kd, of each dof")
    motor_strength: Range | None = Field(None, description="factor of all torques and torque limits of a world")
    joint_offset: Amount = Field(0.0, description="rad: the zero of each hinge's encoder; ball joints have none")
    latency: Range | None = Field(None, description="s, until a command reaches the motors; one control step at most, "
                                                    "rounded to physics steps")
    noise_root_position: Amount = Field(0.0, description="m, along each axis; drawn in every step, as all noise")
    noise_root_rotation: Amount = Field(0.0, description="rad, about each axis")
    noise_root_velocity: Amount = Field(0.0, description="m/s, along each axis")
    noise_root_angular_velocity: Amount = Field(0.0, description="rad/s, about each axis")
    noise_joint_position: Amount = Field(0.0, description="rad, of each dof")
    noise_joint_velocity: Amount = Field(0.0, description="rad/s, of each dof")
    push_velocity: Amount = Field(0.0, description="m/s, along each horizontal axis, added to the root's velocity")
    push_angular_velocity: Amount = Field(0.0, description="rad/s, about each axis, added to the root's")
    push_interval: Range | None = Field(None, description="s, from push to push; drawn after each")
    roughness: Amount = Field(0.0, description="m; depth of the holes of an uneven ground, whose highest points are at "
                              "0. Its place under a world is drawn; world 0's is fixed, for pictures")

    @model_validator(mode="after")
    def _whole_pushes(self) -> Disturbances:
        pushes = self.push_velocity > 0.0 or self.push_angular_velocity > 0.0
        if pushes != (self.push_interval is not None):
            raise ValueError("push_interval is needed where push_velocity or push_angular_velocity is, and only there")
        if self.push_interval is not None and self.push_interval[1] <= 0.0:
            raise ValueError("push_interval must be longer than 0")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """What is on, plain values."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value}

    @property
    def text(self) -> str:
        """What is on, in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.given.items())

    @property
    def varies(self) -> bool:
        """Whether worlds differ in what the engine simulates."""
        return any(getattr(self, name) for name in (
            "friction", "mass", "com", "stiffness", "damping", "motor_strength", "latency", "roughness"))

    @property
    def noise(self) -> tuple[float, ...]:
        """Amplitudes: root position, rotation, velocity, angular velocity; dof position, velocity."""
        return (self.noise_root_position, self.noise_root_rotation, self.noise_root_velocity,
                self.noise_root_angular_velocity, self.noise_joint_position, self.noise_joint_velocity)


def read_disturbances(name: str) -> Disturbances:
    """Those of ``--disturb``: ``none``, a shipped set (data/disturbances/<name>.yaml) or a yaml file.

    Raises:
        AssetMissingError, UserError: no such file, or wrong keys or values.
    """
    if name == "none":
        return Disturbances()
    shipped = f"{SETS}/{name}.yaml"
    file = locate(name if name.endswith((".yaml", ".yml")) else shipped)
    if not file.is_file() and str(file).endswith(shipped):
        known = sorted({path.stem for root in (SHIPPED, Path()) for path in (root / SETS).glob("*.yaml")})
        raise UserError(f"--disturb {name}: allowed are none, {', '.join(known)} or a yaml file{nearest(name, known)}")
    return build(Disturbances, load_layered(file), str(file))
