"""``deepmimic``: imitate a clip as exactly as possible (Peng et al. 2018, "DeepMimic")."""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.anim.mjcf import CharacterModel
from mimickit.anim.motion_lib import MotionLib
from mimickit.engines.engine import Engine, StaticObject
from mimickit.envs.char_obs import CharObs
from mimickit.envs.env import Env, View
from mimickit.envs.env_config import DeepMimicConfig, MotionConfig
from mimickit.envs.parts import Part
from mimickit.envs.ref_motion import RefMotion
from mimickit.envs.tar_obs import PhaseObs, TargetObs
from mimickit.envs.termination import Fall, MotionEnd, PoseLost, SuccessRate
from mimickit.envs.tracking_reward import TERMS, TrackingError, TrackingReward
from mimickit.envs.world import Setup, body_ids, joint_weights


def build(config: DeepMimicConfig, setup: Setup, objects: tuple[StaticObject, ...] = ()) -> Env:
    """char_obs + ref_motion + tar_obs + tracking_reward + termination, in a world with ``objects``."""
    character = setup.load_character(config)
    model = character.model
    key_ids = setup.tensor(body_ids(config, "key_bodies", model), torch.int64)
    joint_w, dof_w = (setup.tensor(w) for w in joint_weights(config, model))
    weights = setup.tensor([getattr(config, f"reward_{term}_w") for term in TERMS])
    scales = setup.tensor([getattr(config, f"reward_{term}_scale") for term in TERMS])
    motions = MotionLib(config.motion_file, character, accumulate_yaw=config.accumulate_yaw)
    low, high = setup.action_box(config, character)

    engine = setup.open_world(config, character, objects=objects)
    parts: list[Part] = [
        *observation_parts(config, setup, key_ids, motions),
        TrackingReward(weights, scales, key_ids, joint_w, dof_w, config.track_root, config.root_height_obs),
        MotionEnd(),
        *failure_parts(config, setup, engine, model),
        TrackingError(setup.num_envs, setup.device),
        SuccessRate(setup.num_envs, setup.device),
    ]
    source = RefMotion(motions, character, setup.num_envs, engine.control_dt, config.future_steps, config.rand_reset)
    return Env(
        engine, character, source, parts, low, high, config.episode_length, view=view_of(config),
        log_diagnostics=config.log_diagnostics,
    )


def observation_parts(config: MotionConfig, setup: Setup, key_ids: Tensor, motions: MotionLib) -> list[Part]:
    """What a character with a reference observes: itself and, as configured, phase and targets."""
    parts: list[Part] = [CharObs(key_ids, config.global_obs, config.root_height_obs)]
    if config.enable_phase_obs:
        parts.append(PhaseObs(motions, config.num_phase_encoding, setup.device))
    if config.enable_tar_obs:
        parts.append(TargetObs(key_ids, config.global_obs, config.root_height_obs))
    return parts


def failure_parts(config: MotionConfig, setup: Setup, engine: Engine, model: CharacterModel) -> list[Part]:
    """Why an episode fails, as configured: ground contact, or the reference's pose lost."""
    allowed = body_ids(config, "contact_bodies", model)
    parts: list[Part] = []
    if config.enable_early_termination and allowed:
        forbidden = [body not in allowed for body in range(model.num_bodies)]
        parts.append(Fall(engine, setup.tensor(forbidden, torch.bool)))
    if config.enable_early_termination and config.pose_termination:
        parts.append(PoseLost(config.pose_termination_dist, config.track_root, config.global_obs))
    return parts


def view_of(config: MotionConfig) -> View:
    """How an environment with a reference is filmed."""
    return View(config.camera_mode, config.visualize_ref_char, config.ref_char_offset)
