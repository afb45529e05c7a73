"""``policy.json``: everything that a program needs to run an exported policy, besides the files that it names.

Units are SI, Z is up, quaternions in this file are (x, y, z, w). Dofs, and so the numbers of an action, stand in the
order of ``dofs``, which is that of the model's velocities after the six of the root. A ball joint has three dofs: the
exponential map of the child's rotation relative to rest; their velocity is the angular velocity in the child's own
frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mimickit.config import Config, build
from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.files import read_json

FORMAT = 1
NAME = "policy.json"
Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class Tensor(Config):
    """An input or output of the network, float32, [batch, size]."""

    name: str
    size: int = Field(ge=1)
    meaning: str


class ObservationTerm(Config):
    """One block of the observation. Rotations are tangent-normal: the first and third column of the matrix."""

    name: Literal[
        "root_height", "root_rotation", "root_velocity", "root_angular_velocity", "joint_rotations", "joint_velocities",
        "key_body_positions", "phase", "target_root_position", "target_root_rotation", "target_joint_rotations",
        "target_key_body_positions", "goal_offset", "goal_direction", "goal_speed", "goal_face"]
    size: int = Field(ge=1)
    frame: Literal["world", "heading", "first target's heading", "parent", "joint", "none"] = Field(
        description="axes: the world's; turned about Z by the heading of the character's root, or by that of the "
        "nearest target; for joints those of the parent at rest, or the joint's own")
    unit: str
    relative_to: str = Field("", description="what positions are measured from")
    steps_ahead: int | None = Field(None, description="control steps from now, of a target")


class Body(Config):
    """A body of the character; the observed joint rotations stand in this order, the root's left out."""

    name: str
    joint: Literal["root", "fixed", "hinge", "ball"] = Field(description="how it hangs on its parent")


class Dof(Config):
    """A degree of freedom, its position controller and the target that an action gives it."""

    name: str
    joint: str
    kp: float = Field(description="N m/rad")
    kd: float = Field(description="N m s/rad")
    torque_limit: float = Field(description="N m")
    armature: float = Field(description="kg m^2")
    low: float = Field(description="rad, limit of the joint (ball joints are not limited)")
    high: float = Field(description="rad")
    default: float = Field(description="rad, of the default pose")
    action_low: float = Field(description="rad, smallest target; the network's output is clamped to it")
    action_high: float = Field(description="rad")


class Clip(Config):
    """A clip of the reference: rows of the arrays of ``reference.npz``."""

    name: str
    first: int = Field(ge=0, description="row of its first frame")
    frames: int = Field(ge=1)
    length: float = Field(ge=0.0, description="s, from the first frame to the last")
    loops: bool = Field(description="it begins again after its end, else its last pose holds")
    weight: float = Field(ge=0.0, description="probability that an episode follows it")
    drift: Vector = Field(description="m, that a period adds to the root")
    yaw: float = Field(description="rad, that a period turns by about the pivot")
    pivot: tuple[float, float] = Field(description="m")


class Reference(Config):
    """The clips that the policy follows or was trained on, and how they are looked up at a time t (s).

    phase = t / length - k, clamped to [0, 1], where k = floor(t / length) for clips that loop and 0 otherwise. The pose
    lies between rows floor(p) and floor(p) + 1, p = phase * (frames - 1), at frac(p): positions and angles linearly,
    quaternions along the shorter arc. The velocity is that of row floor(p), zero outside [0, length] of a clip that
    does not loop. The root is turned by k * yaw about the pivot and moved by k * drift.
    """

    file: str = Field(description="NumPy archive: qpos [rows, nq] as MuJoCo's; velocity [rows, 6 + dofs]: of the root "
                                  "(m/s), angular of the root (rad/s), both in world axes, and of the dofs (rad/s)")
    clips: list[Clip] = Field(min_length=1)
    phase_frequencies: int = Field(ge=0, description="the phase is followed by sin and cos of 2 pi 2^k phase, k below "
                                                     "this: all sines, then all cosines")


class Latent(Config):
    """How the input ``latent`` is drawn: uniformly from the unit sphere, anew after a time drawn uniformly."""

    size: int = Field(ge=1)
    time_min: float = Field(description="s")
    time_max: float = Field(description="s")


class Goal(Config):
    """How goals are drawn in tests: uniformly from the ranges, anew after a time drawn uniformly."""

    kind: Literal["location", "steering"]
    time_min: float = Field(description="s")
    time_max: float = Field(description="s")
    low: float = Field(description="distance of a new target from the root (m), or speed to keep (m/s)")
    high: float
    any_direction: bool = Field(True, description="steering: any direction; otherwise the world's X axis")
    any_face: bool = Field(True, description="steering: face any direction; otherwise the one to go in")
    reached: float | None = Field(None, description="m, location: distance that counts as reached")


class Episode(Config):
    """How an episode of a test begins and ends."""

    steps: int | None = Field(description="control steps, at most; null: until the clip ends")
    random_start: bool = Field(description="it starts at a random time of the clip, else at 0")
    rest_probability: float = Field(0.0, description="that it starts at rest in the default pose")
    ends_with_clip: bool = Field(description="a clip that does not loop and is over ends it, with success")
    contact_bodies: list[str] | None = Field(description="bodies that may touch the ground; another one that does "
                                             "ends it as failed. null: all may")
    contact_force: float = Field(description="N, of any component, from which on a body touches")
    pose_distance: float | None = Field(description="m; a body farther than this from the reference ends it as failed. "
                                                    "null: no such end")
    pose_frame: Literal["world", "world axes from the root", "root"] = Field(
        description="in which bodies are compared with the reference")


class Training(Config):
    """Where the policy comes from."""

    model: str = Field(description="the model file")
    model_sha256: str
    agent: str
    commit: str | None = Field(description="of the code that trained; null: unknown")
    versions: dict[str, str] = Field(description="packages that trained, as far as known")
    configuration: dict[str, Any] = Field(description="environment and engine as in run_config.yaml, for measures")


class PolicyFile(Config):
    """``policy.json``, format 1."""

    format: Literal[1]
    network: str = Field(description="the ONNX file: normaliser, actor, denormaliser and clamping in one graph")
    model: str = Field(description="MJCF: the character with its controllers, ground and objects, solver settings")
    inputs: list[Tensor]
    outputs: list[Tensor]
    control_rate: int = Field(gt=0, description="Hz: observation, network, new targets")
    physics_rate: int = Field(gt=0, description="Hz: a whole multiple")
    observation: list[ObservationTerm] = Field(min_length=1)
    key_bodies: list[str]
    bodies: list[Body]
    dofs: list[Dof]
    default_root_position: Vector = Field(description="m")
    default_root_rotation: Quaternion
    reference: Reference
    episode: Episode
    latent: Latent | None = None
    goal: Goal | None = None
    training: Training

    @property
    def substeps(self) -> int:
        """Physics steps in one control step."""
        return self.physics_rate // self.control_rate


def read_policy(path: Path) -> tuple[PolicyFile, Path]:
    """The content of a ``policy.json``, and the folder of its files.

    Args:
        path: the folder of an exported policy, or its ``policy.json`` or ``policy.onnx``.

    Raises:
        AssetMissingError: the file, or one that it names, does not exist.
        UserError: it is not of this format.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / NAME
    if not file.is_file():
        raise AssetMissingError(f"{path}: there is no {file}; mimickit export RUN writes one")
    data = read_json(file)
    if data.get("format") != FORMAT:
        raise UserError(f"{file} has format {data.get('format')!r}; this version reads format {FORMAT}: export anew")
    policy = build(PolicyFile, data, str(file))
    if missing := [str(folder / name) for name in (policy.network, policy.model, policy.reference.file)
                   if not (folder / name).is_file()]:
        raise AssetMissingError(f"{file} names files that do not exist: {', '.join(missing)}")
    return policy, folder
