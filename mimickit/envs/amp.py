"""``amp`` and what is built on it: move in the style of the clips, and perhaps do something useful meanwhile.

The environment provides windows of states for a discriminator; the reward for style is the learning method's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mimickit.anim.motion_lib import MotionLib
from mimickit.engines.engine import Engine
from mimickit.envs.deepmimic import failure_parts, observation_parts, view_of
from mimickit.envs.disc_obs import ClipWindows, History, PriorObs
from mimickit.envs.env import Env
from mimickit.envs.env_config import AMPConfig, ASEConfig, LocationConfig, PriorConfig, SteeringConfig
from mimickit.envs.parts import ConstantReward, Part
from mimickit.envs.ref_motion import DefaultPose, RefMotion
from mimickit.envs.similarity import FallRate, MotionSimilarity
from mimickit.envs.tasks import LocationGoal, SteeringGoal
from mimickit.envs.tracking_reward import TrackingError
from mimickit.envs.world import Setup, body_ids, init_pose


def build_amp(config: AMPConfig, setup: Setup) -> Env:
    """Style alone (Peng et al. 2021, "AMP"); the environment's own reward is 0."""
    return compose(config, setup)


def build_ase(config: ASEConfig, setup: Setup) -> Env:
    """Style alone, and some episodes begin in ``init_pose`` (Peng et al. 2022, "ASE")."""
    return compose(config, setup, default_reset_prob=config.default_reset_prob)


def build_location(config: LocationConfig, setup: Setup) -> Env:
    """Style, and a place to go to."""
    return compose(config, setup, goal=lambda engine: LocationGoal(config, engine))


def build_steering(config: SteeringConfig, setup: Setup) -> Env:
    """Style, and a direction and speed to keep."""
    return compose(config, setup, goal=lambda engine: SteeringGoal(config, engine))


def compose(
    config: PriorConfig, setup: Setup, goal: Callable[[Engine], Part] | None = None, default_reset_prob: float = 0.0
) -> Env:
    """char_obs + ref_motion + history + disc_obs, with a goal or without."""
    character = setup.load_character(config)
    key_ids = setup.tensor(body_ids(config, "key_bodies", character.model), torch.int64)
    motions = MotionLib(config.motion_file, character, accumulate_yaw=config.accumulate_yaw)
    low, high = setup.action_box(config, character)

    engine = setup.open_world(config, character)
    num_envs, dt = setup.num_envs, engine.control_dt
    motion = RefMotion(
        motions, character, num_envs, dt, config.future_steps, config.rand_reset,
        past_steps=config.num_disc_obs_steps - 1,
    )
    source: RefMotion | DefaultPose = motion
    still = None
    if default_reset_prob > 0.0:
        pose = (setup.tensor(x) for x in init_pose(config, character.model))
        source = DefaultPose(motion, character, *pose, default_reset_prob)
        still = source.still

    windows = ClipWindows(motions, character, config.num_disc_obs_steps, dt)
    history = History(windows, num_envs, still)
    parts: list[Part] = [
        *observation_parts(config, setup, key_ids, motions),
        goal(engine) if goal is not None else ConstantReward(0.0, num_envs, setup.device),
        *failure_parts(config, setup, engine, character.model),
        history,
        PriorObs(history, windows, config.rand_reset, key_ids, config.global_obs, config.root_height_obs,
                 config.disc_dof_vel_obs, world_anchor=config.track_root),
        MotionSimilarity(history, windows, num_envs, dt),
        FallRate(setup.num_envs, setup.device),
    ]
    if config.log_tracking_error:
        parts.append(TrackingError(setup.num_envs, setup.device))
    return Env(
        engine, character, source, parts, low, high, config.episode_length, view=view_of(config), log_diagnostics=True,
    )
