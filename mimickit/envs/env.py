"""The environment: the one order of a step. What is observed and rewarded is the business of its parts."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mimickit.anim.character import Character
from mimickit.engines.engine import Engine
from mimickit.envs.base import DoneFlag, EnvMode
from mimickit.envs.parts import (
    CharState,
    Lines,
    Marker,
    Part,
    Reference,
    Snapshot,
    Source,
    overwrite,
    read_character,
)
from mimickit.envs.termination import set_flag
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError
from mimickit.util.graphs import Beside, Graphed


@dataclass(frozen=True)
class View:
    """How the environment wants to be filmed.

    Attributes:
        camera_mode: ``track`` follows the character, ``still`` does not.
        visualize_ref_char: draw the reference beside the character.
        ref_char_offset: m, from the reference's true place to where it is drawn.
    """

    camera_mode: str = "still"
    visualize_ref_char: bool = False
    ref_char_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Env:
    """``N`` characters in worlds of their own; implements :class:`mimickit.envs.base.VecEnv`.

    A step: command, physics, clock, observation, reward, end, measures; then the environments that ended are reset,
    and what they begin with is observed. The clips are looked up while physics runs; everything after physics is one
    CUDA graph. Environments in which a NaN or infinity turns up are failed, reset and counted; their observation and
    reward of that step read zero.

    Args:
        engine: simulates the characters.
        character: kinematics of the same character, bodies in the same order.
        source: where episodes start and what the character is compared with.
        parts: observation blocks, rewards, ends and measures; order is the order of observation blocks, and later
            ends overrule earlier ones.
        action_low, action_high: [D] box that actions are clamped to.
        episode_length: s, rounded up to whole control steps; ``inf`` for none.
        kinematic: the source's pose replaces the simulated one in every step (viewing clips).

    Raises:
        UserError: bodies of engine and character differ.
    """

    fail_reward = 0.0
    succ_reward = 0.0

    def __init__(
        self, engine: Engine, character: Character, source: Source, parts: list[Part], action_low: Tensor,
        action_high: Tensor, episode_length: float, view: View | None = None, kinematic: bool = False,
        log_diagnostics: bool = False,
    ) -> None:
        check_bodies(engine, character)
        self.device = engine.device
        self.num_envs = engine.num_envs
        self.dt = engine.control_dt
        self.engine = engine
        self.character = character
        self.source = source
        self.parts = list(parts)
        self.view = view or View()
        self.action_low, self.action_high = action_low, action_high
        self.log_diagnostics = log_diagnostics
        self._kinematic = kinematic
        self._max_steps = steps_of(episode_length, self.dt)

        self.mode = EnvMode.TRAIN
        self.steps = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)  # control steps since reset
        self.reward = torch.zeros(self.num_envs, device=self.device)
        self.done = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
        self._null = torch.zeros_like(self.done)
        self._zero = torch.zeros((), device=self.device)
        self._all = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self._nonfinite = torch.zeros((), dtype=torch.int64, device=self.device)
        with torch.no_grad():
            size = self._observe(self._look()[0]).shape[1]
        self.obs = torch.zeros(self.num_envs, size, device=self.device)
        self.next_obs = torch.zeros_like(self.obs)
        self.info = {name: tensor for part in self.parts for name, tensor in part.info().items()}
        self._lookup = Beside(self._look_up, self.device)
        self._after_physics_graphs = {
            mode: Graphed(partial(self._after_physics, mode), self.device, state=list(self._written().values()))
            for mode in EnvMode}
        self.reset()

    # --- the contract of learning ---------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, action: Tensor) -> None:
        """See :meth:`mimickit.envs.base.VecEnv.step`; action [N, D]."""
        self.before_physics(action)
        self.engine.step()
        self.after_physics()

    @torch.no_grad()
    def before_physics(self, action: Tensor) -> None:
        """First third of a step: the command, and the beginning of what runs beside physics. Separate for those who
        measure."""
        torch.clamp(action, self.action_low, self.action_high, out=self.engine.command)
        for part in self.parts:
            part.act()
        self._lookup.begin()

    def finish_lookups(self) -> None:
        """What follows does not run beside the lookups. For those who measure."""
        self._lookup.wait()

    @torch.no_grad()
    def after_physics(self) -> None:
        """Last third of a step: everything that follows the engine's step."""
        self.finish_lookups()
        self._after_physics_graphs[self.mode]()
        for part in self.parts:
            part.finish()

    @torch.no_grad()
    def reset(self, worlds: int | Tensor | None = None) -> None:
        """Start a new episode in every environment, in the first ones, or in those of a mask [N]."""
        mask = self._all if worlds is None else worlds
        if isinstance(mask, int):
            mask = torch.arange(self.num_envs, device=self.device) < mask
        self.done.masked_fill_(mask, DoneFlag.NULL)
        self._reset(mask, self._look()[1])

    def set_mode(self, mode: EnvMode) -> None:
        """Entering TEST forgets the measures, which are taken in TEST only; nothing else differs between the modes."""
        self.mode = mode
        if mode is EnvMode.TEST:
            for part in self.parts:
                part.clear_diagnostics()

    def diagnostics(self) -> dict[str, Tensor]:
        """Measures of all parts, 0-d tensors. NaN where there was nothing to measure yet."""
        return {name: value for part in self.parts for name, value in part.diagnostics().items()}

    def measure_sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """See :meth:`mimickit.envs.base.VecEnv.measure_sums`."""
        return {name: pair for part in self.parts for name, pair in part.measure_sums().items()}

    def pooled_diagnostics(self, dist: Distributed) -> dict[str, Tensor]:
        """See :meth:`mimickit.envs.base.VecEnv.pooled_diagnostics`."""
        return {name: value for part in self.parts for name, value in part.pooled_diagnostics(dist).items()}

    def health(self) -> dict[str, Tensor]:
        """See :meth:`mimickit.envs.base.VecEnv.health`."""
        contacts, constraints = self.engine.overflow.clone().unbind()
        return {
            "nonfinite": self._nonfinite.clone(),
            "contact_overflow": contacts,
            "constraint_overflow": constraints,
        }

    def clear_health(self) -> None:
        """Zero all counters of :meth:`health`."""
        self._nonfinite.zero_()
        self.engine.clear_overflow()

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of everything needed to continue exactly, random state excepted."""
        own = {name: tensor.clone() for name, tensor in self._persistent().items()}
        return own | {f"engine.{name}": tensor for name, tensor in self.engine.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            UserError: names or shapes do not fit: another environment, or another number of environments.
        """
        own = self._persistent()
        engine_state = {k.removeprefix("engine."): v for k, v in state.items() if k.startswith("engine.")}
        given = {k: v for k, v in state.items() if not k.startswith("engine.")}
        if set(given) != set(own):
            raise UserError(f"saved state of another environment: it has {sorted(given)}, this one needs {sorted(own)}")
        wrong = [f"{k}: {tuple(given[k].shape)} instead of {tuple(v.shape)}" for k, v in own.items()
                 if given[k].shape != v.shape]
        if wrong:
            raise UserError(f"saved state of another environment or number of environments (here {self.num_envs}): "
                            + "; ".join(wrong))
        self.engine.load_state_dict(engine_state)
        for name, tensor in own.items():
            tensor.copy_(given[name])

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()

    # --- for people -----------------------------------------------------------------------------------------------

    @property
    def camera_mode(self) -> str:
        """See :class:`View`."""
        return self.view.camera_mode

    @property
    def visualize_ref_char(self) -> bool:
        """See :class:`View`."""
        return self.view.visualize_ref_char

    @property
    def ref_char_offset(self) -> tuple[float, float, float]:
        """See :class:`View`."""
        return self.view.ref_char_offset

    @torch.no_grad()
    def reference_pose(self) -> tuple[Tensor, Tensor] | None:
        """Body positions [B, 3] (m) and rotations [B, 4] that environment 0's character should have now.

        ``None`` where nothing is followed. For pictures: not part of the step.
        """
        if not self.view.visualize_ref_char:
            return None
        return self.source.pose_of(0, self._time())

    @torch.no_grad()
    def markers(self) -> list[Marker]:
        """What to draw for environment 0 beside the character, now: goals. For pictures: not part of the step."""
        return [marker for part in self.parts for marker in part.markers()]

    @torch.no_grad()
    def lines(self) -> list[Lines]:
        """Lines to draw for environment 0, now. For pictures: not part of the step."""
        return [lines for part in self.parts for lines in part.lines()]

    def describe(self) -> str:
        """What was built, a few lines for people."""
        length = f"{self._max_steps} steps" if self._max_steps is not None else "until the clip ends"
        lines = [
            f"environment: {self.num_envs} worlds on {self.device}, control step {self.dt:.4g} s, episodes {length}",
            f"  character: {self.character.model.file}, {self.character.num_bodies} bodies, "
            f"{self.character.num_dofs} dofs, {self.engine.total_mass:.2f} kg",
            f"  observation {self.obs.shape[1]}, action {len(self.action_low)}",
            *(f"  - {piece.describe()}" for piece in (self.source, *self.parts)),
        ]
        return "\n".join(lines)

    # --- the step -------------------------------------------------------------------------------------------------

    def _after_physics(self, mode: EnvMode) -> None:
        self.steps.add_(1)
        ref, fresh = self._lookup.result
        now = self._snapshot(ref)
        for part in self.parts:
            part.update(now)
        next_obs, reward, flags = self._observe(now), self._reward(now), self._done(now)

        valid = torch.maximum(next_obs.abs().amax(dim=-1), reward.abs()) < math.inf  # NaN is not less either
        invalid = ~valid
        self._nonfinite += invalid.sum()
        torch.where(valid.unsqueeze(-1), next_obs, self._zero, out=self.next_obs)
        torch.where(valid, reward, self._zero, out=self.reward)
        self.obs.copy_(self.next_obs)
        self.done.copy_(set_flag(flags, invalid, DoneFlag.FAIL))
        for part in self.parts:
            part.discard(valid)
            if mode is EnvMode.TEST:
                part.measure(now, self.done, valid)

        self._reset(self.done != DoneFlag.NULL, fresh)

    def _look_up(self) -> tuple[Reference, Reference]:
        """The reference one step ahead, and where new episodes would begin then."""
        ref, fresh = self.source.look((self.steps + 1) * self.dt)
        for part in self.parts:
            part.look(ref, fresh)
        return ref, fresh

    def _look(self) -> tuple[Snapshot, Reference]:
        """Where everybody is now, and where new episodes would begin."""
        ref, fresh = self.source.look(self._time())
        return self._snapshot(ref), fresh

    def _snapshot(self, ref: Reference) -> Snapshot:
        """Where everybody is now."""
        if self._kinematic:
            self._place(self._all, ref.now)
            return Snapshot(self._time(), ref.now, ref)
        char = read_character(self.engine, self.character.dof_to_rot(self.engine.dof_pos))
        return Snapshot(self._time(), char, ref)

    def _time(self) -> Tensor:
        return self.steps * self.dt

    def _observe(self, now: Snapshot) -> Tensor:
        blocks = [block for part in self.parts if (block := part.observe(now)) is not None]
        return torch.cat(blocks, dim=-1)

    def _reward(self, now: Snapshot) -> Tensor:
        shares = [share for part in self.parts if (share := part.reward(now)) is not None]
        return sum(shares[1:], start=shares[0])

    def _done(self, now: Snapshot) -> Tensor:
        flags = self._null
        if self._max_steps is not None:
            flags = set_flag(flags, self.steps >= self._max_steps, DoneFlag.TIME)
        for part in self.parts:
            flags = part.done(now, flags)
        return flags

    def _reset(self, mask: Tensor, fresh: Reference) -> None:
        """Begin new episodes at ``fresh`` where mask [N], and observe them."""
        self.steps.masked_fill_(mask, 0)
        self.source.begin(mask, fresh)
        start = Snapshot(self._time(), fresh.now, fresh)
        self._place(mask, start.char)
        for part in self.parts:
            part.reset(mask, start)
        overwrite(mask, self._observe(start), self.obs)

    def _place(self, mask: Tensor, state: CharState) -> None:
        """Put characters into a state where mask [N]; physics takes it over with its next step."""
        engine = self.engine
        engine.reset_mask.logical_or_(mask)
        overwrite(mask, state.root_pos, engine.root_pos)
        overwrite(mask, state.root_rot, engine.root_rot)
        overwrite(mask, state.root_vel, engine.root_vel)
        overwrite(mask, state.root_ang_vel, engine.root_ang_vel)
        overwrite(mask, self.character.rot_to_dof(state.joint_rot), engine.dof_pos)
        overwrite(mask, state.dof_vel, engine.dof_vel)
        overwrite(mask, state.body_pos, engine.body_pos)
        overwrite(mask, state.body_rot, engine.body_rot)
        for stale in (engine.body_vel, engine.body_ang_vel, engine.contact_force, engine.ground_contact_force):
            stale.masked_fill_(mask.view(-1, 1, 1), 0.0)

    # --- buffers --------------------------------------------------------------------------------------------------

    def _persistent(self) -> dict[str, Tensor]:
        """Own tensors that outlive a step, the engine's excepted."""
        own = {
            "steps": self.steps, "obs": self.obs, "next_obs": self.next_obs, "reward": self.reward, "done": self.done,
            "nonfinite": self._nonfinite,
        }
        pieces = itertools.chain([("source", self.source)], ((f"part{i}", p) for i, p in enumerate(self.parts)))
        return own | {f"{key}.{name}": t for key, piece in pieces for name, t in piece.buffers().items()}

    def _written(self) -> dict[str, Tensor]:
        """All tensors that the graph reads and changes."""
        names = (
            "reset_mask", "root_pos", "root_rot", "root_vel", "root_ang_vel", "dof_pos", "dof_vel", "body_pos",
            "body_rot", "body_vel", "body_ang_vel", "contact_force", "ground_contact_force",
        )
        return self._persistent() | {f"engine.{name}": getattr(self.engine, name) for name in names}


def steps_of(seconds: float, dt: float) -> int | None:
    """Control steps of dt (s) until time >= seconds; None for infinity. 10 s at 30 Hz are 300, not 301."""
    return None if math.isinf(seconds) else max(1, math.ceil(seconds / dt - 1e-4))


def check_bodies(engine: Engine, character: Character) -> None:
    """Simulated and kinematic bodies must be the same, in the same order. Raises UserError listing both."""
    if tuple(engine.body_names) != tuple(character.body_names):
        raise UserError(
            f"{character.model.file}: the simulated bodies ({', '.join(engine.body_names)}) are not those of the "
            f"kinematic model ({', '.join(character.body_names)})"
        )
