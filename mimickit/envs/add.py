"""``add``: follow a clip, judged by a discriminator on differences instead of a tuned reward (Zhang et al. 2025,
"Physics-Based Motion Imitation with Adversarial Differential Discriminators").
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from mimickit.envs.disc_obs import ClipWindows, History, tracking_observation
from mimickit.envs.env import Env
from mimickit.envs.imitation import (
    CLIP_OVER,
    AdversarialConfig,
    clip_reference,
    failures,
    motion_observations,
    uninterrupted_metrics,
)
from mimickit.envs.metrics import success_rate
from mimickit.envs.scene import Scene, Setup
from mimickit.envs.smoothness import smoothness_metrics
from mimickit.envs.terms import CharState, EnvTerms, LookedUp
from mimickit.envs.tracking_reward import tracking_metric


class ADDConfig(AdversarialConfig):
    """``add``: motion tracking judged by a discriminator."""

    UNUSED: ClassVar = (*AdversarialConfig.UNUSED, "disc_dof_vel_obs")

    env_name: Literal["add"]


def build(config: ADDConfig, setup: Setup) -> Env:
    """``deepmimic``, but the discriminator sees character and reference, and the environment's own reward is 0."""
    scene = Scene(config, setup)
    history = History(ClipWindows(scene, config.num_disc_obs_steps), scene.num_envs)

    def observe(frames: CharState) -> Tensor:
        return tracking_observation(frames, config.global_obs)

    demonstrations = LookedUp(lambda ref, start: observe(ref.window), like=observe(history.frames()))
    return Env(scene, EnvTerms(
        reference=clip_reference(config, scene, past_steps=config.num_disc_obs_steps - 1, past_of_reference=True),
        observations=motion_observations(config, scene),
        rewards={"none": scene.constant(0.0)},
        terminations={"clip_over": CLIP_OVER, **failures(config, scene)},
        info={"disc_obs": lambda now: observe(history.frames()), "disc_obs_demo": demonstrations.buffer},
        memory={"history": history, "disc_obs_demo": demonstrations},
        metrics={"tracking": tracking_metric(scene), "success_rate": success_rate(scene),
                 **smoothness_metrics(scene)},
        uninterrupted=uninterrupted_metrics(config, scene),
    ))
