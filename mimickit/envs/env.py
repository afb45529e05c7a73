"""The environment: the one order of a step. What is observed, rewarded and measured is given to it by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from mimickit.envs.base import DoneFlag, EnvMode
from mimickit.envs.scene import Scene
from mimickit.envs.terms import EnvTerms, Lines, Marker, Metric, RefState, StepState, overwrite
from mimickit.util.distributed import Distributed
from mimickit.util.failures import UserError
from mimickit.util.graphs import Graphed, SideStreamGraph

SEVERITY = (DoneFlag.TIME, DoneFlag.SUCC, DoneFlag.FAIL)  # of several ends the last one counts


class Env:
    """``N`` characters in worlds of their own; implements :class:`mimickit.envs.base.VecEnv`.

    A step: command, physics, clock, memories, terms, metrics; then the environments that ended are reset, and what
    they start with is observed. The clips are looked up while physics runs; everything after physics is one CUDA
    graph. Environments in which a NaN or infinity turns up are failed, reset and counted; their observation and reward
    of that step read zero.

    Args:
        scene: the characters and their physics.
        terms: everything else.
    """

    fail_reward = 0.0
    succ_reward = 0.0

    def __init__(self, scene: Scene, terms: EnvTerms) -> None:
        self.scene, self.terms, self.starts = scene, terms, terms.starts
        self.engine, self.character, self.view = scene.engine, scene.character, scene.config.view
        self.device, self.num_envs, self.dt = scene.device, scene.num_envs, scene.dt
        self.action_low, self.action_high = scene.action_low, scene.action_high
        self.log_metrics = scene.config.log_metrics
        self._disturbances = scene.disturbances
        disturbing = {} if self._disturbances is None else {"disturbances": self._disturbances}
        self._memories = {**terms.memory, **disturbing}
        length = scene.config.episode_length if terms.episode_length is None else terms.episode_length
        self._max_steps = steps_of(length, self.dt)

        self.mode = EnvMode.TRAIN
        self._measured = terms.metrics  # of the present test, or the last one
        self.measures_uninterrupted = bool(terms.uninterrupted)
        self.steps = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)  # control steps since reset
        self.reward = torch.zeros(self.num_envs, device=self.device)
        self.done = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
        self._null = torch.zeros_like(self.done)
        self._zero = torch.zeros((), device=self.device)
        self._all = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self._nonfinite = torch.zeros((), dtype=torch.int64, device=self.device)
        with torch.no_grad():
            now = self._state(terms.reference.lookup(self._time())[0])
            self._widths = {name: term(now).shape[1] for name, term in terms.observations.items()}
            self.info = {name: value if isinstance(value, Tensor) else torch.zeros_like(value(now))
                         for name, value in terms.info.items()}
        self.obs = torch.zeros(self.num_envs, sum(self._widths.values()), device=self.device)
        self.next_obs = torch.zeros_like(self.obs)
        self._lookups = SideStreamGraph(self._look_up, self.device)
        changed = [*self._persistent().values(), *scene.placed(),
                   *(tensor for metric in terms.uninterrupted.values() for tensor in metric.buffers().values())]
        self._after_physics_graphs = {
            mode: Graphed(partial(self._after_physics, mode), self.device, state=changed) for mode in EnvMode}
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
        """First third of a step: the command, and the start of what runs beside physics. Separate for benchmarks."""
        torch.clamp(action, self.action_low, self.action_high, out=self.engine.command)
        for memory in self._memories.values():
            memory.before_physics()
        self._lookups.begin()

    def finish_lookups(self) -> None:
        """What follows does not run beside the lookups. Separate for benchmarks."""
        self._lookups.wait()

    @torch.no_grad()
    def after_physics(self) -> None:
        """Last third of a step: everything that follows the engine's step."""
        self.finish_lookups()
        self._after_physics_graphs[self.mode]()
        for memory in self._memories.values():
            memory.after_step()

    @torch.no_grad()
    def reset(self, worlds: int | Tensor | None = None) -> None:
        """Start a new episode in every environment, in the first ones, or in those of a mask [N]."""
        mask = self._all if worlds is None else worlds
        if isinstance(mask, int):
            mask = torch.arange(self.num_envs, device=self.device) < mask
        self.done.masked_fill_(mask, DoneFlag.NULL)
        self._reset(mask, self.terms.reference.lookup(self._time())[1])

    def set_mode(self, mode: EnvMode) -> None:
        """Switch between training and testing. A test has metrics of its mode; entering it clears them."""
        self.mode = mode
        if mode is not EnvMode.TRAIN:
            self._measured = self._metrics_of(mode)
            for metric in self._measured.values():
                metric.clear()

    def metrics(self) -> dict[str, Tensor]:
        """All metrics of this process, 0-d tensors. NaN before the first sample."""
        alone = Distributed(0, 1, 0, self.device)
        return {name: value for metric in self._measured.values()
                for name, value in {**metric.means.means(), **metric.pooled(alone)}.items()}

    def metric_sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """See :meth:`mimickit.envs.base.VecEnv.metric_sums`."""
        return {name: pair for metric in self._measured.values() for name, pair in metric.means.per_env().items()}

    def pooled_metrics(self, dist: Distributed) -> dict[str, Tensor]:
        """See :meth:`mimickit.envs.base.VecEnv.pooled_metrics`."""
        return {name: value for metric in self._measured.values() for name, value in metric.pooled(dist).items()}

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
        given = {k: v for k, v in state.items() if not k.startswith("engine.")}
        for name in {k for k in {**own, **given} if k.startswith("metrics.")}:  # other ones: of another version
            if name not in own or name not in given or own[name].shape != given[name].shape:
                own.pop(name, None), given.pop(name, None)
        check_state(own, given)
        self.engine.load_state_dict({k.removeprefix("engine."): v for k, v in state.items() if k.startswith("engine.")})
        for name, tensor in own.items():
            tensor.copy_(given[name])

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()

    # --- for people -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reference_pose(self) -> tuple[Tensor, Tensor] | None:
        """Body positions [B, 3] (m) and rotations [B, 4] that environment 0's character should have now.

        None if there is no reference to show. For pictures: not part of the step.
        """
        return self.terms.reference.pose_of(0, self._time()) if self.view.get("show_reference") else None

    @torch.no_grad()
    def markers(self) -> list[Marker]:
        """What to draw for environment 0 beside the character, now: goals. For pictures: not part of the step."""
        return [item for draw in self.terms.drawings for item in draw() if isinstance(item, Marker)]

    @torch.no_grad()
    def lines(self) -> list[Lines]:
        """Lines to draw for environment 0, now. For pictures: not part of the step."""
        return [item for draw in self.terms.drawings for item in draw() if isinstance(item, Lines)]

    def describe(self) -> str:
        """A summary of the environment, in a few lines."""
        length = f"{self._max_steps} steps" if self._max_steps is not None else "until the clip ends"
        terms = self.terms
        groups = {
            "observations": [f"{name} {width}" for name, width in self._widths.items()], "rewards": terms.rewards,
            "terminations": terms.terminations, "info": [f"{name} {x.shape[1]}" for name, x in self.info.items()],
            "memory": self._memories, "metrics": {**terms.metrics, **terms.uninterrupted},
        }
        return "\n".join([
            f"environment: {self.num_envs} world{'s' if self.num_envs > 1 else ''} on {self.device}, control step "
            f"{self.dt:.4g} s, episodes {length}",
            f"  character: {self.character.model.file}, {self.character.num_bodies} bodies, "
            f"{self.character.num_dofs} dofs, {self.engine.total_mass:.2f} kg",
            f"  reference: {self.terms.reference.describe()}",
            f"  observation {self.obs.shape[1]}, action {len(self.action_low)}",
            *(f"  {group}: {', '.join(names)}" for group, names in groups.items() if names),
            *([] if self._disturbances is None else [f"  disturbances: {self.scene.config.disturbed.text}"]),
        ])

    # --- the step -------------------------------------------------------------------------------------------------

    def _after_physics(self, mode: EnvMode) -> None:
        self.steps.add_(1)
        ref, reset_state = self._lookups.result
        now = self._state(ref)
        for memory in self._memories.values():
            memory.update(now)
        next_obs, reward, done = self._observe(now), self._reward(now), self._done(now, mode)

        valid = torch.maximum(next_obs.abs().amax(dim=-1), reward.abs()) < math.inf  # NaN is not less either
        invalid = ~valid
        self._nonfinite += invalid.sum()
        torch.where(valid.unsqueeze(-1), next_obs, self._zero, out=self.next_obs)
        torch.where(valid, reward, self._zero, out=self.reward)
        self.obs.copy_(self.next_obs)
        self.done.copy_(done.masked_fill(invalid, DoneFlag.FAIL))
        for name, term in self.terms.info.items():
            if not isinstance(term, Tensor):
                torch.where(valid.unsqueeze(-1), term(now), self._zero, out=self.info[name])
        for metric in self._metrics_of(mode).values():
            metric.measure(now, self.done, valid)

        self._reset(self.done != DoneFlag.NULL, reset_state)

    def _look_up(self) -> tuple[RefState, RefState]:
        """The reference one step ahead, and where new episodes would start then."""
        ref, reset_state = self.terms.reference.lookup((self.steps + 1) * self.dt)
        for memory in self._memories.values():
            memory.lookup(ref, reset_state)
        return ref, reset_state

    def _state(self, ref: RefState) -> StepState:
        """Where everybody is now."""
        if self.terms.kinematic:
            self.scene.place(self._all, ref.now)
        return StepState(self._time(), ref.now if self.terms.kinematic else self.scene.char_state(), ref)

    def _time(self) -> Tensor:
        return self.steps * self.dt

    def _observe(self, now: StepState) -> Tensor:
        if self._disturbances is not None and self._disturbances.senses:
            now = now._replace(char=self._disturbances.sense(now.char))
        return torch.cat([term(now) for term in self.terms.observations.values()], dim=-1)

    def _reward(self, now: StepState) -> Tensor:
        first, *others = (term(now) for term in self.terms.rewards.values())
        return sum(others, start=first)

    def _metrics_of(self, mode: EnvMode) -> dict[str, Metric]:
        return {EnvMode.TEST: self.terms.metrics, EnvMode.UNINTERRUPTED: self.terms.uninterrupted}.get(mode, {})

    def _done(self, now: StepState, mode: EnvMode) -> Tensor:
        done = self._null
        if self._max_steps is not None:
            done = done.masked_fill(self.steps >= self._max_steps, DoneFlag.TIME)
        for flag, ended in sorted(self.terms.terminations.values(), key=lambda end: SEVERITY.index(end[0])):
            if flag is not DoneFlag.FAIL or mode is not EnvMode.UNINTERRUPTED:
                done = done.masked_fill(ended(now), flag)
        return done

    def _reset(self, mask: Tensor, reset_state: RefState) -> None:
        """Start new episodes from ``reset_state`` where mask [N], and observe them."""
        self.steps.masked_fill_(mask, 0)
        self.terms.reference.reset(mask, reset_state)
        start = StepState(self._time(), reset_state.now, reset_state)
        self.scene.place(mask, start.char)
        for memory in self._memories.values():
            memory.reset(mask, start)
        overwrite(mask, self._observe(start), self.obs)

    def _persistent(self) -> dict[str, Tensor]:
        """Own tensors that outlive a step, the engine's excepted."""
        pieces = {"reference": self.terms.reference, **{f"memory.{name}": x for name, x in self._memories.items()},
                  **{f"metrics.{name}": x for name, x in self.terms.metrics.items()}}
        return {
            "steps": self.steps, "obs": self.obs, "next_obs": self.next_obs, "reward": self.reward, "done": self.done,
            "nonfinite": self._nonfinite,
            **{f"{key}.{name}": t for key, piece in pieces.items() for name, t in piece.buffers().items()},
        }


def steps_of(seconds: float, dt: float) -> int | None:
    """Control steps of dt (s) until time >= seconds; None for infinity. 10 s at 30 Hz are 300, not 301."""
    return None if math.isinf(seconds) else max(1, math.ceil(seconds / dt - 1e-4))


def check_state(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raises UserError where names or shapes of a saved state are not those of an environment's own."""
    if any(name.startswith("part0.") or name.startswith("source.") for name in given):
        raise UserError("saved by an earlier version, which kept the state of environments in another order; its "
                        "model.pt still fits: --model_file")
    if missing := sorted(set(own) - set(given)) + sorted(set(given) - set(own)):
        raise UserError(f"saved state of another environment: only one of them has {', '.join(missing)}")
    wrong = [f"{k}: {tuple(given[k].shape)} instead of {tuple(v.shape)}" for k, v in own.items()
             if given[k].shape != v.shape]
    if wrong:
        raise UserError(f"saved state of another environment or number of environments (here {len(own['steps'])}): "
                        + "; ".join(wrong))
