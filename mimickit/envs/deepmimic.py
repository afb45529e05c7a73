"""``deepmimic``: imitate a clip as exactly as possible (Peng et al. 2018, "DeepMimic"); ``static_objects``: the same
among fixed boxes that the clip climbs or vaults over."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mimickit.config import AssetPath, Config
from mimickit.engines.engine import StaticObject
from mimickit.envs.env import Env
from mimickit.envs.imitation import (
    CLIP_OVER,
    MotionConfig,
    clip_reference,
    failures,
    motion_observations,
    uninterrupted_metrics,
)
from mimickit.envs.metrics import success_rate
from mimickit.envs.ref_motion import clip_state
from mimickit.envs.scene import Scene, Setup
from mimickit.envs.smoothness import smoothness_metrics
from mimickit.envs.terms import EnvTerms, StepState
from mimickit.envs.tracking_reward import TERMS, reward_errors, tracking_metric, tracking_reward
from mimickit.util.mjcf_file import read_mjcf
from mimickit.util.rotations import quat_conj, quat_rotate


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
    terms = tracking_terms(config, scene)
    if config.static_objects:
        reached = reaching_times(scene)
        terms.metrics["run_up"] = success_rate(scene, "run_up_success_rate", where=lambda now: (
            now.ref.time - now.time < reached.index_select(0, now.ref.ids)))
    return Env(scene, terms)


def reaching_times(scene: Scene) -> Tensor:
    """When [M] (s) some body of each clip is first above an object, or stands against it; ``inf`` for never."""
    motions, times = scene.motions, []
    for clip, length in enumerate(motions.lengths.tolist()):
        time = scene.tensor([step * scene.dt for step in range(int(length / scene.dt) + 1)])
        body_pos = clip_state(motions, torch.full_like(time, clip, dtype=torch.int64), time).body_pos
        above = torch.zeros_like(time, dtype=torch.bool)
        for item in scene.config.static_objects:
            offset = quat_rotate(quat_conj(scene.tensor(item.rot)), body_pos - scene.tensor(item.pos))
            above |= (offset[..., :2].abs() <= scene.tensor(footprint(item))).all(dim=-1).any(dim=-1)
        times.append(torch.where(above, time, torch.inf).min())
    return torch.stack(times)


def footprint(item: StaticObject) -> list[float]:
    """Half of the horizontal extents [2] (m) of an object's boxes; of other shapes nothing is known."""
    sizes = [[float(number) for number in geom.get("size", "").split()[:2]]
             for geom in read_mjcf(item.file).iter("geom") if geom.get("type") == "box"]
    return [max(extents) for extents in zip(*sizes, strict=True)] or [0.0, 0.0]


def tracking_terms(config: DeepMimicConfig, scene: Scene) -> EnvTerms:
    """Follow a clip, rewarded for being near it."""
    joint_w, dof_w = scene.joint_weights("joint_err_w")
    weights = scene.tensor([getattr(config, f"reward_{term}_w") for term in TERMS])
    scales = scene.tensor([getattr(config, f"reward_{term}_scale") for term in TERMS])

    def tracking(now: StepState) -> Tensor:
        errors = reward_errors(now.char, now.ref.now, scene.key_ids, joint_w, dof_w, config.track_root,
                               config.root_height_obs, config.track_axes)
        return tracking_reward(errors, weights, scales)

    return EnvTerms(
        reference=clip_reference(config, scene),
        observations=motion_observations(config, scene),
        rewards={"tracking": tracking},
        terminations={"clip_over": CLIP_OVER, **failures(config, scene)},
        metrics={"tracking": tracking_metric(scene), "success_rate": success_rate(scene),
                 **smoothness_metrics(scene)},
        uninterrupted=uninterrupted_metrics(config, scene),
    )
