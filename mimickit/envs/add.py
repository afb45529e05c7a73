"""``add``: follow a clip, judged by a discriminator on differences instead of a tuned reward (Zhang et al. 2025,
"Physics-Based Motion Imitation with Adversarial Differential Discriminators").
"""

from __future__ import annotations

import torch

from mimickit.anim.motion_lib import MotionLib
from mimickit.envs.deepmimic import failure_parts, observation_parts, view_of
from mimickit.envs.disc_obs import ClipWindows, History, TrackingObs
from mimickit.envs.env import Env
from mimickit.envs.env_config import ADDConfig
from mimickit.envs.parts import ConstantReward, Part
from mimickit.envs.ref_motion import RefMotion
from mimickit.envs.termination import MotionEnd, SuccessRate
from mimickit.envs.tracking_reward import TrackingError
from mimickit.envs.world import Setup, body_ids


def build(config: ADDConfig, setup: Setup) -> Env:
    """``deepmimic`` with observations of character and reference for a discriminator instead of a reward."""
    character = setup.load_character(config)
    key_ids = setup.tensor(body_ids(config, "key_bodies", character.model), torch.int64)
    motions = MotionLib(config.motion_file, character, accumulate_yaw=config.accumulate_yaw)
    low, high = setup.action_box(config, character)

    engine = setup.open_world(config, character)
    source = RefMotion(
        motions, character, setup.num_envs, engine.control_dt, config.future_steps, config.rand_reset,
        past_steps=config.num_disc_obs_steps - 1, past_of_reference=True,
    )
    windows = ClipWindows(motions, character, config.num_disc_obs_steps, engine.control_dt)
    history = History(windows, setup.num_envs)
    parts: list[Part] = [
        *observation_parts(config, setup, key_ids, motions),
        ConstantReward(0.0, setup.num_envs, setup.device),
        MotionEnd(),
        *failure_parts(config, setup, engine, character.model),
        history,
        TrackingObs(history, config.global_obs),
        TrackingError(setup.num_envs, setup.device),
        SuccessRate(setup.num_envs, setup.device),
    ]
    return Env(
        engine, character, source, parts, low, high, config.episode_length, view=view_of(config),
        log_diagnostics=config.log_diagnostics,
    )
