"""``deepmimic``: imitate a clip as exactly as possible (Peng et al. 2018, "DeepMimic"); ``static_objects``: the same
among fixed boxes that the clip climbs or vaults over."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from mimickit.config import Config
from mimickit.engines.engine import StaticObject
from mimickit.envs.env import Env
from mimickit.envs.imitation import CLIP_OVER, MotionConfig, clip_reference, failures, motion_observations
from mimickit.envs.metrics import success_rate
from mimickit.envs.scene import AssetPath, Scene, Setup
from mimickit.envs.terms import EnvTerms, StepState
from mimickit.envs.tracking_reward import TERMS, reward_errors, tracking_metric, tracking_reward


class DeepMimicConfig(MotionConfig):
    """``deepmimic``: motion tracking."""

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
    """``static_objects``: motion tracking among boxes. They collide with the character; touching them is not ground
    contact, so it never ends an episode."""

    env_name: Literal["static_objects"]
    objects: tuple[ObjectConfig, ...]

    @property
    def static_objects(self) -> tuple[StaticObject, ...]:
        return tuple(StaticObject(item.file, item.pos, item.rot) for item in self.objects)


def build(config: DeepMimicConfig, setup: Setup) -> Env:
    """The environment of :func:`tracking_terms`."""
    scene = Scene(config, setup)
    return Env(scene, tracking_terms(config, scene))


def tracking_terms(config: DeepMimicConfig, scene: Scene) -> EnvTerms:
    """Follow a clip, rewarded for being near it."""
    joint_w, dof_w = scene.joint_weights("joint_err_w")
    weights = scene.tensor([getattr(config, f"reward_{term}_w") for term in TERMS])
    scales = scene.tensor([getattr(config, f"reward_{term}_scale") for term in TERMS])

    def tracking(now: StepState) -> Tensor:
        errors = reward_errors(now.char, now.ref.now, scene.key_ids, joint_w, dof_w, config.track_root,
                               config.root_height_obs)
        return tracking_reward(errors, weights, scales)

    return EnvTerms(
        reference=clip_reference(config, scene),
        observations=motion_observations(config, scene),
        rewards={"tracking": tracking},
        terminations={"clip_over": CLIP_OVER, **failures(config, scene)},
        metrics={"tracking": tracking_metric(scene), "success_rate": success_rate(scene)},
    )
