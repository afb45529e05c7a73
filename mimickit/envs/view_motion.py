"""``view_motion``: play clips on the character without physics, and check that engine and kinematics agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mimickit.anim.motion import LoopMode
from mimickit.engines.engine import Engine
from mimickit.engines.engine_config import EngineConfig
from mimickit.envs.base import DoneFlag
from mimickit.envs.env import Env
from mimickit.envs.metrics import Largest
from mimickit.envs.observations import char_observation
from mimickit.envs.ref_motion import clip_state
from mimickit.envs.scene import ClipConfig, Scene, Setup
from mimickit.envs.terms import CharState, EnvTerms, Lines, Memory, Reference, RefState

LOOPS_SHOWN = 5  # of a clip that repeats; others are shown once
CROSS_SIZE, CROSS_COLOR = 0.2, (0.8, 0.0, 0.0)  # m, half the length of a bar
REF_COLOR = (0.3, 0.5, 0.1)


class ViewMotionConfig(ClipConfig):
    """``view_motion``: plays clips without physics; ``episode_length`` is not used."""

    env_name: Literal["view_motion"]


class Playback(Reference):
    """Environment e plays clip e modulo the number of clips, from its beginning, velocities zero."""

    def __init__(self, scene: Scene) -> None:
        self._motions = motions = scene.motions
        self._ids = torch.arange(scene.num_envs, device=scene.device) % motions.num_motions
        loops = motions.loop_modes == int(LoopMode.WRAP)
        self._end = torch.where(loops, LOOPS_SHOWN * motions.lengths, motions.lengths)[self._ids]
        self._start = torch.zeros(scene.num_envs, device=scene.device)

    def lookup(self, time: Tensor) -> tuple[RefState, RefState]:
        times, ids = torch.cat([time, self._start]), torch.cat([self._ids, self._ids])
        state = clip_state(self._motions, ids, times)
        still = torch.zeros_like(state.root_vel)
        state = state._replace(root_vel=still, root_ang_vel=still, dof_vel=torch.zeros_like(state.dof_vel))
        ended = times >= torch.cat([self._end, self._end])
        count = len(time)
        return tuple(
            RefState(CharState(*(x[rows].unsqueeze(1) for x in state)), ids[rows], times[rows], ended[rows])
            for rows in (slice(count), slice(count, None)))

    def describe(self) -> str:
        count = self._motions.num_motions
        return f"plays {count} clip{'s' if count > 1 else ''}; one that repeats, {LOOPS_SHOWN} times"


class KinematicCheck(Memory):
    """The largest distance (m) of a body in the engine from where the clip's kinematics have it.

    Root and dofs are all that the engine is given; the positions it derives from them are compared with our own.
    The engine's buffer is blanked before it answers, so that only its own answer counts. Flushing also shows a viewer
    the clip itself, not what physics made of it.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.largest = torch.zeros((), device=scene.device)

    def after_step(self) -> None:
        engine = self._scene.engine
        expected = engine.body_pos.clone()
        engine.body_pos.zero_()
        engine.flush()
        distance = torch.linalg.vector_norm(engine.body_pos - expected, dim=-1)
        self.largest.copy_(torch.maximum(self.largest, distance.amax()))


def crosses(engine: Engine, key_ids: Tensor) -> list[Lines]:
    """A cross of three bars along the world's axes at each of the bodies key_ids [K] of environment 0."""
    center = engine.body_pos[0, key_ids].unsqueeze(1)  # [K, 1, 3]
    bars = CROSS_SIZE * torch.eye(3, device=center.device)
    return [Lines((center - bars).reshape(-1, 3), (center + bars).reshape(-1, 3), CROSS_COLOR)]


def playback_engine_config(config: EngineConfig) -> EngineConfig:
    """A copy of the physics settings with one substep per control step; the given one stays as it is."""
    return config.model_copy(update={"sim_freq": config.control_freq})


def build(config: ViewMotionConfig, setup: Setup) -> Env:
    """Clips, played often enough."""
    setup = replace(setup, engine_config=playback_engine_config(setup.engine_config))
    scene = Scene(config, setup, motors=False, self_collision=False, color=REF_COLOR)
    check = KinematicCheck(scene)
    return Env(scene, EnvTerms(
        reference=Playback(scene),
        observations={"character": lambda now: char_observation(
            now.char, scene.key_ids, config.global_obs, config.root_height_obs)},
        rewards={"one": scene.constant(1.0)},
        terminations={"shown": (DoneFlag.TIME, lambda now: now.ref.ended)},
        memory={"kinematics": check},
        metrics={"kinematics": Largest("pose_err", check.largest)},
        drawings=[lambda: crosses(scene.engine, scene.key_ids)],
        episode_length=float("inf"),
        kinematic=True,
    ))
