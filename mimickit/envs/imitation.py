"""What environments with a reference clip have in common: settings, reference, observations, and reasons to fail."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator

from mimickit.anim.motion import LoopMode
from mimickit.envs.base import DoneFlag
from mimickit.envs.disturbance_config import Disturbances
from mimickit.envs.metrics import StepMean
from mimickit.envs.observations import char_observation, phase_observation, target_observation
from mimickit.envs.ref_motion import RefMotion
from mimickit.envs.scene import ClipConfig, Scene
from mimickit.envs.termination import contact_failure, pose_failure
from mimickit.envs.terms import Metric, Term, Termination
from mimickit.envs.time_warping import TimeWarpedError
from mimickit.envs.tracking_reward import TERMS, position_error


class MotionConfig(ClipConfig):
    """Keys of the environments whose characters start from, and are compared with, motion clips."""

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
    rand_reset: bool = Field(True, description="start at a random time of the clip, not at 0")
    log_tracking_error: bool = False
    root_pos_obs: bool = Field(True, description="observe where the root is: its height and, with global_obs, how far "
                               "it is from the targets. false: a robot does not know; its horizontal position then "
                               "neither counts nor ends an episode (ours)")
    root_vel_obs: bool = Field(True, description="observe the linear velocity of the root; false: a robot does not "
                               "measure it (ours)")
    disturbances: Disturbances = Field(Disturbances(), description="docs/robust.md (ours)")

    @model_validator(mode="after")
    def _some_target(self) -> MotionConfig:
        if self.enable_tar_obs and not self.tar_obs_steps:
            raise ValueError("enable_tar_obs needs at least one entry in tar_obs_steps")
        return self

    @property
    def disturbed(self) -> Disturbances | None:
        return self.disturbances if self.disturbances.given else None

    @property
    def log_metrics(self) -> bool:
        return self.log_tracking_error

    @property
    def view(self) -> dict[str, Any]:
        return {**super().view, "show_reference": self.visualize_ref_char, "ref_offset": self.ref_char_offset}

    @property
    def future_steps(self) -> tuple[int, ...]:
        """Control steps ahead that are observed."""
        return self.tar_obs_steps if self.enable_tar_obs else ()

    @property
    def track_root(self) -> bool:
        """Whether the character must follow the root in the world, not merely move alike."""
        return self.track_axes and self.root_pos_obs

    @property
    def track_axes(self) -> bool:
        """Whether the character must turn with its reference: directions are compared in world axes."""
        return self.enable_tar_obs and self.global_obs


class AdversarialConfig(MotionConfig):
    """Keys of the environments that a discriminator judges."""

    UNUSED: ClassVar = ("joint_err_w", *(f"reward_{term}_{kind}" for kind in ("w", "scale") for term in TERMS))
    """Keys of DeepMimic's reward, which stand in MimicKit's files of these environments too."""

    num_disc_obs_steps: int = Field(ge=1, description="states in the discriminator's window")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_unused(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in data.items() if key not in cls.UNUSED}


def clip_reference(config: MotionConfig, scene: Scene, **windows: Any) -> RefMotion:
    """The scene's clips as a reference; ``windows``: how much of the past :class:`RefMotion` looks up."""
    return RefMotion(scene.motions, scene.num_envs, scene.dt, config.future_steps, config.rand_reset, **windows)


def motion_observations(config: MotionConfig, scene: Scene) -> dict[str, Term]:
    """The character itself and, as configured, the phase of its clip and the reference ahead."""
    key_ids, axes, height = scene.key_ids, config.global_obs, config.root_height_obs
    position, velocity = config.root_pos_obs, config.root_vel_obs
    terms: dict[str, Term] = {"character": lambda now: char_observation(
        now.char, key_ids, axes, height and position, velocity)}
    if config.enable_phase_obs:
        frequencies = scene.tensor([2.0 * math.pi * 2.0**k for k in range(config.num_phase_encoding)])
        terms["phase"] = lambda now: phase_observation(scene.motions.phase(now.ref.ids, now.ref.time), frequencies)
    if config.enable_tar_obs:
        terms["targets"] = lambda now: target_observation(
            now.char.root_pos, now.ref.future, key_ids, axes, height, position)
    return terms


def failures(config: MotionConfig, scene: Scene) -> dict[str, Termination]:
    """Why an episode fails, as configured: a body other than ``contact_bodies`` touches the ground, or the reference's
    pose is lost."""
    allowed = scene.body_ids("contact_bodies")
    ends: dict[str, Termination] = {}
    if config.enable_early_termination and allowed:
        forbidden = scene.tensor([body not in allowed for body in range(scene.character.num_bodies)], torch.bool)
        ends["ground_contact"] = (
            DoneFlag.FAIL, lambda now: contact_failure(scene.engine.ground_contact_force, forbidden))
    if config.enable_early_termination and config.pose_termination:
        ends["pose_lost"] = (DoneFlag.FAIL, lambda now: pose_failure(
            now.char, now.ref.now, config.pose_termination_dist, config.track_root, config.global_obs))
    return ends


def uninterrupted_metrics(config: MotionConfig, scene: Scene) -> dict[str, Metric]:
    """``pos_err`` and ``time_warped_err``, where there is one clip to compare with. Both end with a clip that does not
    loop."""
    if scene.motions.num_motions > 1:
        return {}
    loops = int(scene.motions.loop_modes[0]) == LoopMode.WRAP
    seconds = min(config.episode_length, math.inf if loops else float(scene.motions.lengths[0]))
    return {
        "pos_err": StepMean(("pos_err",), lambda now: position_error(now.char, now.ref.now).unsqueeze(-1), scene,
                            where=lambda now: ~now.ref.ended),
        "time_warped_err": TimeWarpedError(seconds, scene),
    }


CLIP_OVER: Termination = (DoneFlag.SUCC, lambda now: now.ref.ended)
"""A clip that does not loop and is over ends the episode with success."""
