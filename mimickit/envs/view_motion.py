"""``view_motion``: play clips on the character without physics, and check that engine and kinematics agree."""

from __future__ import annotations

import torch
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.anim.motion import LoopMode
from mimickit.anim.motion_lib import MotionLib
from mimickit.engines.engine import Engine
from mimickit.engines.engine_config import EngineConfig
from mimickit.envs.base import DoneFlag
from mimickit.envs.char_obs import CharObs
from mimickit.envs.env import Env, View
from mimickit.envs.env_config import ViewMotionConfig
from mimickit.envs.parts import CharState, ConstantReward, Lines, Part, Reference, Snapshot
from mimickit.envs.ref_motion import clip_state
from mimickit.envs.termination import set_flag
from mimickit.envs.world import REF_COLOR, Setup, body_ids
from mimickit.util.distributed import Distributed

LOOPS_SHOWN = 5  # of a clip that repeats; others are shown once
CROSS_SIZE, CROSS_COLOR = 0.2, (0.8, 0.0, 0.0)  # m, half the length of a bar


class Playback:
    """Environment e plays clip e modulo the number of clips, from its beginning, velocities zero."""

    def __init__(self, motions: MotionLib, character: Character, num_envs: int) -> None:
        self._motions = motions
        self._character = character
        self._ids = torch.arange(num_envs, device=motions.lengths.device) % motions.num_motions
        loops = motions.loop_modes == int(LoopMode.WRAP)
        self._end = torch.where(loops, LOOPS_SHOWN * motions.lengths, motions.lengths)[self._ids]
        self._begin = torch.zeros(num_envs, device=self._ids.device)

    def look(self, time: Tensor) -> tuple[Reference, Reference]:
        """The clips at times [N], and at their beginning."""
        times, ids = torch.cat([time, self._begin]), torch.cat([self._ids, self._ids])
        state = clip_state(self._motions, self._character, ids, times)
        still = torch.zeros_like(state.root_vel)
        state = state._replace(root_vel=still, root_ang_vel=still, dof_vel=torch.zeros_like(state.dof_vel))
        ended = times >= torch.cat([self._end, self._end])
        count = len(time)
        return tuple(
            Reference(CharState(*(x[rows].unsqueeze(1) for x in state)), ids[rows], times[rows], ended[rows])
            for rows in (slice(count), slice(count, None)))

    def begin(self, mask: Tensor, fresh: Reference) -> None:
        """Nothing to remember."""

    def pose_of(self, env: int, time: Tensor) -> None:
        """The character itself is the clip."""

    def buffers(self) -> dict[str, Tensor]:
        return {}

    def describe(self) -> str:
        return f"plays {self._motions.num_motions} clip(s)"


class PlaybackEnd(Part):
    """The show is over when the clip was shown often enough."""

    def done(self, now: Snapshot, flags: Tensor) -> Tensor:
        return set_flag(flags, now.ref.ended, DoneFlag.TIME)

    def describe(self) -> str:
        return f"ends with the clip, or after {LOOPS_SHOWN} rounds of one that repeats"


class KeyBodyCrosses(Part):
    """Draws a cross of three bars along the world's axes at each of the key bodies' origins.

    Args:
        key_ids: [K] int64 bodies.
    """

    def __init__(self, engine: Engine, key_ids: Tensor) -> None:
        self._engine = engine
        self._key_ids = key_ids

    def lines(self) -> list[Lines]:
        center = self._engine.body_pos[0, self._key_ids].unsqueeze(1)  # [K, 1, 3]
        bars = CROSS_SIZE * torch.eye(3, device=center.device)
        return [Lines((center - bars).reshape(-1, 3), (center + bars).reshape(-1, 3), CROSS_COLOR)]

    def describe(self) -> str:
        return f"draws crosses at {len(self._key_ids)} key bodies"


class KinematicError(Part):
    """``pose_err``: the largest distance (m) of a body in the engine from where the clip's kinematics have it.

    Root and dofs are all that the engine is given; the positions it derives from them are compared with our own.
    The engine's buffer is blanked after our kinematics were written into it, so that only its own answer counts.
    Flushing also shows a viewer the clip itself, not what physics made of it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._expected = torch.zeros_like(engine.body_pos)
        self._largest = torch.zeros((), device=engine.device)

    def reset(self, mask: Tensor, start: Snapshot) -> None:
        self._expected.copy_(self._engine.body_pos)
        self._engine.body_pos.zero_()

    def finish(self) -> None:
        self._engine.flush()
        distance = torch.linalg.vector_norm(self._engine.body_pos - self._expected, dim=-1)
        self._largest.copy_(torch.maximum(self._largest, distance.amax()))

    def diagnostics(self) -> dict[str, Tensor]:
        return {"pose_err": self._largest.clone()}

    def pooled_diagnostics(self, dist: Distributed) -> dict[str, Tensor]:
        return {"pose_err": dist.max_(self._largest.clone())}

    def clear_diagnostics(self) -> None:
        self._largest.zero_()

    def buffers(self) -> dict[str, Tensor]:
        return {"expected": self._expected, "largest": self._largest}

    def describe(self) -> str:
        return "compares the engine's bodies with the clip's"


def playback_engine_config(config: EngineConfig) -> EngineConfig:
    """A copy of the physics settings with one substep per control step; the given one stays as it is."""
    return config.model_copy(update={"sim_freq": config.control_freq})


def build(config: ViewMotionConfig, setup: Setup) -> Env:
    """char_obs + playback."""
    setup = Setup(playback_engine_config(setup.engine_config), setup.num_envs, setup.device, setup.make_engine)
    character = setup.load_character(config)
    key_ids = setup.tensor(body_ids(config, "key_bodies", character.model), torch.int64)
    motions = MotionLib(config.motion_file, character, accumulate_yaw=config.accumulate_yaw)
    low, high = setup.action_box(config, character)
    engine = setup.open_world(config, character, motors=False, self_collision=False, color=REF_COLOR)
    parts = [
        CharObs(key_ids, config.global_obs, config.root_height_obs),
        ConstantReward(1.0, setup.num_envs, setup.device),
        PlaybackEnd(),
        KinematicError(engine),
        KeyBodyCrosses(engine, key_ids),
    ]
    return Env(
        engine, character, Playback(motions, character, setup.num_envs), parts, low, high, float("inf"),
        view=View(config.camera_mode), kinematic=True,
    )
