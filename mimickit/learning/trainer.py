"""The training loop: collect, learn, agree, evaluate and save; stops politely and continues exactly.

A continued run repeats what an uninterrupted one would have done: networks, optimizers, normalizers, counters,
environments and the random state of torch on every process are in the checkpoint. Evaluations that were not due
(at the end of a run) leave no trace in it, and one that a signal interrupted is made up for when the run continues.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from mimickit.envs.base import EnvMode, VecEnv
from mimickit.learning.agent import Agent
from mimickit.learning.config import TrainOptions
from mimickit.learning.evaluation import HEALTH
from mimickit.learning.evaluators import ConcurrentEvaluator, PausingEvaluator, Row
from mimickit.learning.metrics import EpisodeTracker, Metric, reduce_metrics
from mimickit.learning.run_files import LAST_WRITE, RunFiles
from mimickit.learning.stopping import Outcome, OutputRule, StopRule, StopSignals
from mimickit.util.checkpoint import fill_tensors, snapshot
from mimickit.util.distributed import Distributed
from mimickit.util.failures import NonFiniteError
from mimickit.util.graphs import Graphed
from mimickit.util.logging import column_name, warn

NOT_FINITE = (
    "Try smaller learning rates or a smaller model.action_std where losses broke, a larger engine.sim_freq or weaker "
    "gains where the simulation did, and tools/check_motion.py on the clips. --resume continues from the last "
    "checkpoint, which is sound"
)
STOPPING = "stopping after this iteration, with a checkpoint (once more: at once, without)"
Saved = tuple[dict[str, Any], dict[str, Any]]  # what a checkpoint holds: shared by all processes, this one's own


@dataclass(frozen=True)
class TrainResult:
    """Learning's part of ``result.json`` of a training."""

    outcome: Outcome
    samples: int
    iterations: int
    new_iterations: int  # of this process
    wall_s: float  # of this process
    samples_per_s: float  # of the whole training, evaluations and checkpoints included
    total_wall_s: float  # of the whole training: all processes of it, one after the other
    startup_s: float
    nonfinite: int
    contact_overflow: int
    constraint_overflow: int
    evaluation: dict[str, float] | None
    measures: dict[str, float]
    checkpoint: str | None
    model_file: str
    world_size: int
    num_envs: int
    peak_gpu_memory_bytes: int
    signal: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class TrainState:
    """What a continued run has to know besides tensors; equal on all processes."""

    iteration: int = 0  # index of the iteration at hand
    samples: int = 0  # learned from, over all processes
    pending: bool = False  # rolled out and learned from, but its evaluation and output are still to be made
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # of that iteration: train, method, info
    health: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HEALTH, 0))
    last_output: list[int] | None = None  # iteration and samples
    wall_s: float = 0.0  # of the whole training until it was saved


@dataclass(frozen=True)
class IterationSummary:
    """What all processes agree on after an iteration."""

    metrics: dict[str, dict[str, float]]  # train, method, info
    health: dict[str, int]
    votes: frozenset[str]  # reasons to stop or to evaluate that any process has


def train(env: VecEnv, agent: Agent, dist: Distributed, options: TrainOptions) -> TrainResult:
    """Train until the samples, iterations or hours are used up or a signal comes. Every process calls it.

    Raises:
        UserError: ``options.resume`` does not fit.
        NonFiniteError: a NaN or infinity in observations, rewards or losses.
    """
    with StopSignals(STOPPING if dist.is_root else "") as signals:
        training = Training(env, agent, dist, options, signals)
        try:
            return training.run()
        finally:
            training.files.finish_writing(LAST_WRITE)


@torch.no_grad()
def roll_out(env: VecEnv, agent: Agent, steps: int, track: Callable[[], None]) -> None:
    """``steps`` control steps in all environments; never waits for the device."""
    for t in range(steps):
        agent.act(t)
        env.step(agent.action)
        track()
        agent.observe(t)


class Training:
    """One run of the loop. ``state`` is what a checkpoint keeps of it; the rest is of this process alone."""

    def __init__(
        self, env: VecEnv, agent: Agent, dist: Distributed, options: TrainOptions, signals: StopSignals
    ) -> None:
        self.env, self.agent, self.dist, self.options, self.signals = env, agent, dist, options, signals
        self.begun = time.monotonic()
        self.startup_s = self.begun - options.started if options.started is not None else 0.0
        self.state = TrainState()
        self.stop = StopRule(options, signals, dist.is_root)
        self.outputs = OutputRule(options, agent.config.iters_per_output, dist.is_root)
        self.files = RunFiles(options, dist)
        self.tracker = EpisodeTracker(env.num_envs, env.device, skip=options.eval_envs)
        evaluator = ConcurrentEvaluator if options.eval_envs else PausingEvaluator
        self.evaluator = evaluator(env, agent, dist, options, self.files, lambda: bool(signals), self._check_health)
        self.track = Graphed(self._track, env.device, state=[*self.tracker.buffers(), *self.evaluator.buffers()])
        self.votes: frozenset[str] = frozenset()
        self.outcome: Outcome | None = None
        self.signal: int | None = None  # that ended the run, received by any process
        self.iterations_here = 0
        self.wall_before = 0.0  # s, of the runs this one continues
        self.peak_memory = 0

    def _track(self) -> None:
        self.tracker.update(self.env.reward, self.env.done)
        self.evaluator.update()

    # --- the loop

    def run(self) -> TrainResult:
        self._start()
        if self.state.pending:  # the run that this one continues was interrupted before an evaluation that was due
            self._evaluate_and_save()
        while not self._ended():
            self._iterate()
            self._evaluate_and_save()
        return self._finish()

    def _start(self) -> None:
        options = self.options
        self.files.beat()
        self.env.set_mode(EnvMode.TRAIN)
        self.env.clear_health()
        first_row = None
        if options.resume is None:
            self.env.reset()
            self.evaluator.start()
        else:
            self._resume(options.resume)
            first_row = self.evaluator.first_row(self.state.iteration)
        last_samples = options.max_samples
        if options.max_iters is not None:
            last_samples = min(last_samples, self.state.samples + options.max_iters * self._samples_per_iter())
        self.files.open_log(first_row, last_samples)
        self.files.progress.advance(self.state.iteration, self.state.samples)
        self.files.progress.enter("compiling")

    def _ended(self) -> bool:
        """Whether there is nothing left to do, also for a run that continues."""
        if self.outcome is None and self.stop.used_up(self.state.samples, self.iterations_here):
            self.outcome = "completed"
        return self.outcome is not None

    # --- an iteration

    def _iterate(self) -> None:
        state, steps = self.state, self.agent.config.steps_per_iter
        # 1. Collect.
        self.env.set_mode(EnvMode.TRAIN)
        self.agent.start_iteration(state.samples)
        roll_out(self.env, self.agent, steps, self.track)
        # 2. Learn.
        learned = self.agent.update(state.samples)
        state.samples += self._samples_per_iter()
        self.iterations_here += 1
        # 3. Agree: metrics, health and votes of all processes in one reduction, the only wait for the device.
        summary = self._summarize(learned)
        state.metrics, self.votes = summary.metrics, summary.votes
        self._check_health(summary.health)
        self._check_finite()
        self.files.beat()
        self.files.progress.enter("training")
        self.files.progress.advance(state.iteration, state.samples)

    def _samples_per_iter(self) -> int:
        """Of all processes."""
        return self.dist.world_size * self.env.num_envs * self.agent.config.steps_per_iter

    def _summarize(self, learned: Mapping[str, Metric]) -> IterationSummary:
        votes = {**self.stop.votes(), **self.outputs.votes()}
        device = self.dist.device
        groups = {
            "train": self.tracker.metrics(),
            "method": learned,
            "info": self.agent.info(self.state.samples),
            "health": {name: Metric(count, "sum") for name, count in self.env.health().items()},
            "vote": {name: Metric(torch.full((), float(vote), device=device), "sum") for name, vote in votes.items()},
        }
        found = reduce_metrics(
            {f"{group}.{name}": metric for group, named in groups.items() for name, metric in named.items()}, self.dist)
        self.env.clear_health()
        parts = {group: {name: found[f"{group}.{name}"] for name in named} for group, named in groups.items()}
        return IterationSummary(
            metrics={group: parts[group] for group in ("train", "method", "info")},
            health={name: round(count) for name, count in parts["health"].items()},
            votes=frozenset(name for name, count in parts["vote"].items() if count > 0),
        )

    def _check_health(self, counts: Mapping[str, int]) -> None:
        state = self.state
        for name, count in counts.items():
            state.health[name] = state.health.get(name, 0) + count
            if count and name != "nonfinite" and self.dist.is_root:
                warn(f"iteration {state.iteration}: {name} {count}")
        if state.health["nonfinite"]:
            raise NonFiniteError(
                f"iteration {state.iteration}: {state.health['nonfinite']} environment step(s) with a NaN or infinity "
                f"in observation or reward. {NOT_FINITE}"
            )

    def _check_finite(self) -> None:
        wrong = [name for named in self.state.metrics.values() for name, value in named.items()
                 if not math.isfinite(value)]
        if wrong:
            raise NonFiniteError(f"iteration {self.state.iteration}: {', '.join(wrong)} not finite. {NOT_FINITE}")

    # --- its output, where due: evaluate, log, save

    def _evaluate_and_save(self) -> None:
        """4. Evaluate, log and save where due, and at the end of the run."""
        state = self.state
        self.files.check_writing()
        due = state.pending or self.outputs.due(state.iteration, state.samples, state.last_output, self.votes)
        self.outcome = self.stop.outcome(state.samples, self.iterations_here, self.votes)
        if due or self.outcome:
            saved = self._output(due)
            self.files.save_model(self.agent.model_tensors(), state.iteration)
            self.files.save_checkpoint(*saved, self.env.num_envs)
        else:
            self.files.print_row(self.evaluator.printed(self._row()))
        state.iteration += 1
        state.pending = False

    def _output(self, due: bool) -> Saved:
        """Evaluate and log; returns what to save.

        A continued run must do what this one would have done without a break:

        - After an output that was due: the state *after* it.
        - If a signal ends the run here: the state *before* the output, which is then still to be made if it is due.
        - After one that was not due, at the end of a run: the state before it, with the evaluation. The same goes for
          an evaluation that is made at the end only because there was none.
        """
        state, evaluator = self.state, self.evaluator
        before = self._saved(replace(state, iteration=state.iteration + (not due), pending=due))
        if evaluator.pauses or not due:  # what follows changes tensors
            before = snapshot(before)  # on the device: it is seldom needed

        if self.outcome == "interrupted" or not evaluator.measure(state.samples, state.iteration):
            self.outcome = "interrupted"
            self._note_signal()
            return before

        row = self._row()
        evaluator.log(row)
        self.files.print_row(evaluator.printed(row))
        state.last_output = [state.iteration, state.samples]
        self.outputs.made()
        self.peak_memory = max(self.peak_memory, _device_memory(self.dist.device))

        if evaluator.go_on(row, due):
            self.tracker.restart()
        self.tracker.clear()
        saved = self._saved(replace(state, iteration=state.iteration + 1, pending=False)) if due else before
        if self.outcome and evaluator.missing():
            saved = snapshot(saved)
            evaluator.measure_in_pause(state.samples, state.iteration)
        shared, local = saved
        return {**shared, **evaluator.notes()}, local

    def _note_signal(self) -> None:
        """Agree on which signal it was."""
        received = torch.tensor(self.signals.received or 0, device=self.dist.device)
        self.signal = int(self.dist.max_(received).item())

    def _row(self) -> Row:
        """Of the log, for the present policy."""
        state, metrics, evaluator = self.state, self.state.metrics, self.evaluator
        return {
            "Iteration": state.iteration,
            "Wall_Time": self._wall_s() / 3600.0,
            "Samples": state.samples,
            **evaluator.columns(),
            **metrics["train"],
            "Train_Episodes": round(metrics["train"]["Train_Episodes"]),
            **metrics["method"],
            **{column_name(name): value for name, value in evaluator.env_metrics().items()},
            **metrics["info"],
        }

    def _wall_s(self) -> float:
        return self.wall_before + time.monotonic() - self.begun

    # --- what a checkpoint holds, and continuing from one

    def _saved(self, state: TrainState) -> Saved:
        """``state`` and, live, all tensors that what comes next depends on."""
        device = self.dist.device
        shared = {
            **asdict(replace(state, wall_s=self._wall_s())),
            **self.evaluator.shared_state(),
            "agent": self.agent.state_dict() if self.dist.is_root else {},
        }
        local = {
            "env": self.env.state_dict(),
            "agent": self.agent.process_state(),
            "tracker": self.tracker.state_dict(),
            "concurrent": self.evaluator.process_state(),
            "random_cpu": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        return shared, local

    def _resume(self, path: Path) -> None:
        """Take over everything that :meth:`_saved` lists."""
        found = self.files.read_checkpoint(path, self.env.num_envs)
        shared, local, where = found.shared, found.local, str(found.path)
        fill_tensors(self.agent.state_dict(), shared["agent"], where)
        fill_tensors(self.tracker.state_dict(), local["tracker"], where)
        self.agent.load_process_state(local["agent"], where)
        self.env.load_state_dict(local["env"])
        self.state = state = TrainState(**{entry.name: shared[entry.name] for entry in fields(TrainState)})
        self.wall_before = state.wall_s
        self.evaluator.load(shared, local["concurrent"], where)
        if self.dist.is_root:
            print(f"resuming {where}: {state.samples:,} samples learned from, next is iteration {state.iteration}",
                  flush=True)
        torch.set_rng_state(local["random_cpu"])
        if self.dist.device.type == "cuda":
            torch.cuda.set_rng_state(local["random_cuda"], self.dist.device)

    # --- the end

    def _finish(self) -> TrainResult:
        if self.outcome != "interrupted":
            last_row = {**self._row(), "Iteration": self.state.iteration - 1} if self.state.metrics else None
            self.evaluator.log_last(last_row, learned=self.iterations_here > 0)
        self.files.finish_writing()
        self.dist.barrier()
        if not self.iterations_here:  # continued when nothing was left to do: the model may be what is missing
            self.files.save_model(self.agent.model_tensors(), self.state.iteration)
        self.files.progress.enter("done")
        self.files.log.close()
        assert self.outcome is not None
        state, last, total = self.state, self.evaluator.last, self._wall_s()
        return TrainResult(
            outcome=self.outcome,
            samples=state.samples,
            iterations=state.iteration,
            new_iterations=self.iterations_here,
            wall_s=time.monotonic() - self.begun,
            samples_per_s=state.samples / max(total, 1e-9),
            total_wall_s=total,
            startup_s=self.startup_s,
            **{name: state.health[name] for name in HEALTH},
            evaluation=last and {"return": last.mean_return, "episode_length": last.episode_length,
                                 "episodes": last.episodes, "samples": last.samples},
            measures=last.measured() if last else {},
            checkpoint=str(self.files.checkpoint) if self.files.checkpoint else None,
            model_file=str(self.files.model_file),
            world_size=self.dist.world_size,
            num_envs=self.env.num_envs,
            peak_gpu_memory_bytes=max(self.peak_memory, _device_memory(self.dist.device)),
            signal=self.signal,
        )


def _device_memory(device: torch.device) -> int:
    """Bytes in use on a CUDA device by all its users (physics allocates outside torch); 0 on CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free
