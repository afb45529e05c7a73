"""``amp``, ``smp`` and ``ase``: move in the style of the clips. The reward for style is the learning method's; the
environment provides windows of states for its discriminator or motion prior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from mimickit.envs.disc_obs import ClipWindows, History, prior_observation
from mimickit.envs.env import Env
from mimickit.envs.generated import GeneratedStarts
from mimickit.envs.imitation import (
    AdversarialConfig,
    clip_reference,
    failures,
    motion_observations,
    uninterrupted_metrics,
)
from mimickit.envs.metrics import fall_rate
from mimickit.envs.ref_motion import DefaultPose
from mimickit.envs.scene import Scene, Setup
from mimickit.envs.similarity import MotionSimilarity
from mimickit.envs.smoothness import smoothness_metrics
from mimickit.envs.terms import CharState, EnvTerms, LookedUp, RefState
from mimickit.envs.tracking_reward import tracking_metric


class PriorConfig(AdversarialConfig):
    """Keys of the environments in which characters move in the style of the clips."""

    disc_dof_vel_obs: bool = Field(True, description="the discriminator sees dof velocities")

    @property
    def log_metrics(self) -> bool:
        return True


class AMPConfig(PriorConfig):
    """``amp``: style alone (Peng et al. 2021, "AMP")."""

    env_name: Literal["amp"]


class SMPConfig(PriorConfig):
    """``smp``: style alone, as a motion prior sees it (docs/smp.md). The same environment as ``amp``."""

    env_name: Literal["smp"]


class ASEConfig(PriorConfig):
    """``ase``: many skills (Peng et al. 2022, "ASE")."""

    env_name: Literal["ase"]
    default_reset_prob: float = Field(ge=0.0, le=1.0, description="probability that an episode starts in init_pose")

    @model_validator(mode="after")
    def _nothing_to_lose(self) -> ASEConfig:
        if self.pose_termination and self.default_reset_prob > 0.0:
            raise ValueError("pose_termination compares with a clip that episodes starting in init_pose do not "
                             "follow; set it to false, or default_reset_prob to 0")
        return self


def build_amp(config: AMPConfig | SMPConfig, setup: Setup) -> Env:
    """Style alone."""
    scene = Scene(config, setup)
    return Env(scene, with_generated_starts(config, scene, style_terms(config, scene)))


def build_ase(config: ASEConfig, setup: Setup) -> Env:
    """Style alone, and some episodes start at rest in ``init_pose``, which then is their past too."""
    scene = Scene(config, setup)
    terms = style_terms(config, scene)
    if config.default_reset_prob > 0.0:
        terms.reference = DefaultPose(terms.reference, scene.character, scene.init_pose, config.default_reset_prob)
        terms.memory["history"].still = terms.reference.still
    return Env(scene, terms)


def with_generated_starts(config: PriorConfig, scene: Scene, terms: EnvTerms) -> EnvTerms:
    """The same; a learner may have episodes start from generated windows, unless something compares the character with
    its clip or a window does not say how high the root is."""
    if config.root_height_obs and not (config.enable_tar_obs or config.pose_termination):
        terms.reference = terms.starts = GeneratedStarts(terms.reference, scene.character, scene.dt)
    return terms


def window_observation(config: PriorConfig, scene: Scene) -> Callable[[CharState], Tensor]:
    """:func:`prior_observation` of windows [..., S, ...] as configured."""
    return lambda frames: prior_observation(frames, scene.key_ids, config.global_obs, config.root_height_obs,
                                            config.disc_dof_vel_obs, world_anchor=config.track_root)


def style_terms(config: PriorConfig, scene: Scene) -> EnvTerms:
    """Move like the clips: windows of states for a discriminator, no reward of the environment's own.

    Demonstrations are drawn anew in every step: clips by weight, end times uniform. Reset states are drawn the same
    way, for all environments in every step, so their windows are reused: most of the cost is the lookup. Only if
    episodes always start at the beginning of a clip are other windows drawn.
    """
    windows = ClipWindows(scene, config.num_disc_obs_steps)
    history = History(windows, scene.num_envs)
    observe = window_observation(config, scene)

    def demonstrate(ref: RefState, start: RefState) -> Tensor:
        return observe(start.window if config.rand_reset else windows.sample(scene.num_envs))

    demonstrations = LookedUp(demonstrate, like=observe(history.frames()))
    terms = EnvTerms(
        reference=clip_reference(config, scene, past_steps=config.num_disc_obs_steps - 1),
        observations=motion_observations(config, scene),
        rewards={"none": scene.constant(0.0)},
        terminations=failures(config, scene),
        info={"disc_obs": lambda now: observe(history.frames()), "disc_demo": demonstrations.buffer},
        memory={"history": history, "disc_demo": demonstrations},
        metrics={"similarity": MotionSimilarity(history, windows, scene.num_envs, scene.dt),
                 "fall_rate": fall_rate(scene),
                 **smoothness_metrics(scene)},
        uninterrupted=uninterrupted_metrics(config, scene),
    )
    if config.log_tracking_error:
        terms.metrics["tracking"] = tracking_metric(scene)
    return terms
