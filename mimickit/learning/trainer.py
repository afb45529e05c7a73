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
from mimickit.learning.evaluation import (
    HEALTH,
    MAX_EPISODE_STEPS,
    NOT_EVALUATED,
    ConcurrentEvaluation,
    Evaluation,
    evaluate,
    read_health,
)
from mimickit.learning.metrics import EpisodeTracker, Metric, reduce_metrics
from mimickit.learning.run_files import LAST_WRITE, RunFiles
from mimickit.learning.stopping import Outcome, OutputRule, StopRule, StopSignals
from mimickit.util.checkpoint import fill_tensors, snapshot
from mimickit.util.distributed import Distributed
from mimickit.util.failures import NonFiniteError
from mimickit.util.graphs import Graphed
from mimickit.util.logging import Number, column_name, warn, warn_once
from mimickit.util.options import BEST_EPISODES

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
    evaluation: Evaluation | None = None  # the last one
    best: list[float] = field(default_factory=lambda: [-math.inf, -math.inf])  # return, episode length
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
        self.max_episode_steps = options.max_episode_steps or MAX_EPISODE_STEPS
        self.tracker = EpisodeTracker(env.num_envs, env.device, skip=options.eval_envs)
        tracked = list(self.tracker.buffers())
        self.concurrent: ConcurrentEvaluation | None = None
        if options.eval_envs:
            self.concurrent = ConcurrentEvaluation(env, agent, options.eval_envs, self.max_episode_steps)
            tracked += self.concurrent.record.buffers()
        self.track = Graphed(self._track, env.device, state=tracked)
        self.votes: frozenset[str] = frozenset()
        self.outcome: Outcome | None = None
        self.signal: int | None = None  # that ended the run, received by any process
        self.iterations_here = 0
        self.wall_before = 0.0  # s, of the runs this one continues
        self.peak_memory = 0

    def _track(self) -> None:
        self.tracker.update(self.env.reward, self.env.done)
        if self.concurrent is not None:
            self.concurrent.update()

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
            if self.concurrent is not None:
                self.concurrent.begin(0, 0)
        else:
            self._resume(options.resume)
            waiting = self.concurrent.row if self.concurrent is not None else None
            first_row = int((waiting or {}).get("Iteration", self.state.iteration))
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
            self._output(due)
        else:
            self._print(self._row())
        state.iteration += 1
        state.pending = False

    def _output(self, due: bool) -> None:
        """Evaluate, log and save.

        A continued run must do what this one would have done without a break. So what is saved is the state *before*
        the output if a signal ends the run here: the output, if it is due, is then still to be made. After an output
        that was due it is the state *after* it. An output that was not due, at the end of a run, leaves no trace but
        its result: it is saved with the state before. So does the evaluation of a policy that none has reached.
        """
        before = self._before_output(due)
        if self.outcome != "interrupted":
            if self.concurrent is None or not due:  # evaluations and what follows change tensors
                before = snapshot(before)  # on the device: it is seldom needed
            evaluation = self._evaluate()
            if evaluation is not None and not evaluation.complete:
                self.outcome = "interrupted"
        if self.outcome == "interrupted":
            self._note_signal()
            self._save(before)
            self.files.save_model(self.agent.model_tensors(), self.state.iteration)
            return
        row = self._publish(evaluation)
        self._go_on(due, evaluation, row)
        shared, local = self._after_output() if due else before
        if self.outcome and self._unevaluated():
            shared, local = snapshot((shared, local))
            self._evaluate_at_last()
        self._save(({**shared, **_evaluated(self.state)}, local))

    def _evaluate(self) -> Evaluation | None:
        """An evaluation of the present policy, or what the one beside training has come to; None: nothing new."""
        return self._evaluate_in_pause() if self.concurrent is None else self.concurrent.result(self.dist)

    def _evaluate_in_pause(self) -> Evaluation | None:
        """An evaluation of the present policy in all environments; None: there are to be none."""
        self.files.progress.enter("evaluating")
        evaluation = evaluate(
            self.env, self.agent, self.dist, self.agent.config.test_episodes,
            should_stop=lambda: bool(self.signals), on_step=self.files.on_step,
            max_episode_steps=self.max_episode_steps)
        if evaluation is None:
            return None
        if evaluation.complete:
            self._check_health(read_health(self.env, self.dist))
        return replace(evaluation, samples=self.state.samples)

    def _unevaluated(self) -> bool:
        """Whether the evaluations beside training have seen no policy that has learned something."""
        evaluation = self.state.evaluation
        return self.concurrent is not None and (evaluation is None or evaluation.samples == 0)

    def _evaluate_at_last(self) -> None:
        """In a pause, where training was too short for an evaluation beside it."""
        evaluation = self._evaluate_in_pause()
        if evaluation is not None and evaluation.complete:
            if self._is_best(evaluation):
                self.files.save_best(self.agent.model_tensors(), self.state.iteration, evaluation)
            self.state.evaluation = evaluation

    def _publish(self, evaluation: Evaluation | None) -> dict[str, Number]:
        """Log, print and save the models; returns the row. None: no new evaluation, the last one stands."""
        state, files, concurrent = self.state, self.files, self.concurrent
        improved = evaluation is not None and self._is_best(evaluation)
        state.evaluation = evaluation or state.evaluation
        row = self._row()
        if concurrent is None:
            files.log.write(row, [column_name(name) for name in self._env_metrics()])
        elif evaluation is not None and concurrent.row is not None:  # of the policy that was evaluated
            files.log.write({**concurrent.row, **evaluation.row()})
            concurrent.row = None
        self._print(row)
        files.save_model(self.agent.model_tensors(), state.iteration)
        if improved and concurrent is None:
            files.save_best(self.agent.model_tensors(), state.iteration, evaluation)
        elif improved:
            files.save_best(self.agent.frozen_tensors(), concurrent.iteration, evaluation)
        state.last_output = [state.iteration, state.samples]
        self.outputs.made()
        self.peak_memory = max(self.peak_memory, _device_memory(self.dist.device))
        return row

    def _is_best(self, evaluation: Evaluation) -> bool:
        """Whether this is the best evaluation so far, by return, then by length; of few episodes none is."""
        if evaluation.episodes < BEST_EPISODES:
            warn_once(f"evaluations of {evaluation.episodes} episodes are too few to tell which policy is best: "
                      f"checkpoints/best is written from {BEST_EPISODES} on (--eval_envs; without it test_episodes of "
                      "the agent file)")
            return False
        reached = [evaluation.mean_return, evaluation.episode_length]
        best = reached >= self.state.best
        self.state.best = max(self.state.best, reached)
        return best

    def _go_on(self, due: bool, evaluation: Evaluation | None, row: dict[str, Number]) -> None:
        """Begin new episodes: in all environments after a pause, else in those of the next evaluation."""
        if self.concurrent is None:
            self.env.set_mode(EnvMode.TRAIN)
            self.env.reset()
            self.tracker.restart()
            self.files.progress.enter("training")
        elif due and evaluation is not None:  # one that has not ended goes on, and this output is not evaluated
            self.env.reset(self.options.eval_envs)
            self.concurrent.begin(self.state.samples, self.state.iteration, row)
        self.tracker.clear()

    def _note_signal(self) -> None:
        """Agree on which signal it was."""
        received = torch.tensor(self.signals.received or 0, device=self.dist.device)
        self.signal = int(self.dist.max_(received).item())

    # --- rows of the log

    def _row(self) -> dict[str, Number]:
        state, metrics = self.state, self.state.metrics
        evaluation = state.evaluation or (None if self.concurrent is None else NOT_EVALUATED)
        return {
            "Iteration": state.iteration,
            "Wall_Time": self._wall_s() / 3600.0,
            "Samples": state.samples,
            **(evaluation.row() if evaluation is not None else {}),
            **metrics["train"],
            "Train_Episodes": round(metrics["train"]["Train_Episodes"]),
            **metrics["method"],
            **{column_name(name): value for name, value in self._env_metrics().items()},
            **metrics["info"],
        }

    def _print(self, row: Mapping[str, Number]) -> None:
        """A row as people see it: beside training the evaluation is of an earlier policy, and the row says of which."""
        evaluation = self.state.evaluation
        if self.concurrent is None:
            self.files.print_row(row)
        elif evaluation is None:
            self.files.print_row({name: value for name, value in row.items() if name not in NOT_EVALUATED.row()})
        else:
            self.files.print_row({**row, **evaluation.row(), "Test_Samples": evaluation.samples})

    def _env_metrics(self) -> dict[str, float]:
        """The environment's metrics in a row: what the last pause for an evaluation measured."""
        evaluation = self.state.evaluation
        shown = evaluation is not None and self.options.log_env_metrics and self.concurrent is None
        return evaluation.metrics if shown else {}

    def _log_last_rows(self) -> None:
        """At the end of a run: the row that waits for its evaluation, and that of the last policy."""
        state, waiting = self.state, self.concurrent.row
        evaluation = state.evaluation or NOT_EVALUATED
        rows = [] if waiting is None else [waiting]
        logged = {row["Samples"] for row in rows}
        if waiting is None and not self.iterations_here:
            logged.add(evaluation.samples)  # by the run that this one continues
        if state.metrics and state.samples not in logged:
            rows.append({**self._row(), "Iteration": state.iteration - 1})
        for row in rows:
            own = evaluation if row["Samples"] == evaluation.samples else NOT_EVALUATED
            self.files.log.write({**row, **own.row()})

    def _wall_s(self) -> float:
        return self.wall_before + time.monotonic() - self.begun

    # --- what a checkpoint holds, and continuing from one

    def _before_output(self, due: bool) -> Saved:
        """A continued run goes on with the output of this iteration if it is due, else with the next iteration."""
        return self._saved(replace(self.state, iteration=self.state.iteration + (not due), pending=due))

    def _after_output(self) -> Saved:
        """A continued run goes on with the next iteration."""
        return self._saved(replace(self.state, iteration=self.state.iteration + 1, pending=False))

    def _saved(self, state: TrainState) -> Saved:
        """``state`` and, live, all tensors that what comes next depends on."""
        device, concurrent = self.dist.device, self.concurrent
        shared = {
            **asdict(replace(state, wall_s=self._wall_s())),
            "agent": self.agent.state_dict() if self.dist.is_root else {},
            "concurrent": concurrent.shared_state() if concurrent else None,
        }
        local = {
            "env": self.env.state_dict(),
            "agent": self.agent.process_state(),
            "tracker": self.tracker.state_dict(),
            "concurrent": concurrent.record.state_dict() if concurrent else None,
            "random_cpu": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        return shared, local

    def _save(self, saved: Saved) -> None:
        self.files.save_checkpoint(*saved, self.env.num_envs)

    def _resume(self, path: Path) -> None:
        """Take over everything that :meth:`_saved` lists."""
        found = self.files.read_checkpoint(path, self.env.num_envs)
        shared, local, where = found.shared, found.local, str(found.path)
        fill_tensors(self.agent.state_dict(), shared["agent"], where)
        fill_tensors(self.tracker.state_dict(), local["tracker"], where)
        self.agent.load_process_state(local["agent"], where)
        self.env.load_state_dict(local["env"])
        evaluation = shared["evaluation"] and Evaluation(**shared["evaluation"])
        kept = {entry.name: shared[entry.name] for entry in fields(TrainState)}
        self.state = state = TrainState(**{**kept, "evaluation": evaluation})
        self.wall_before = state.wall_s
        if self.concurrent is not None and shared["concurrent"] is not None:
            self.concurrent.load_shared(shared["concurrent"], where)
            fill_tensors(self.concurrent.record.state_dict(), local["concurrent"], where)
        elif self.concurrent is not None:  # evaluations paused training so far
            self.env.reset(self.options.eval_envs)
            self.concurrent.begin(state.samples, max(state.iteration - 1, 0))
        if self.dist.is_root:
            print(f"resuming {where}: {state.samples:,} samples learned from, next is iteration {state.iteration}",
                  flush=True)
        torch.set_rng_state(local["random_cpu"])
        if self.dist.device.type == "cuda":
            torch.cuda.set_rng_state(local["random_cuda"], self.dist.device)

    # --- the end

    def _finish(self) -> TrainResult:
        if self.concurrent is not None and self.outcome != "interrupted":
            self._log_last_rows()
        self.files.finish_writing()
        self.dist.barrier()
        if not self.iterations_here:  # continued when nothing was left to do: the model may be what is missing
            self.files.save_model(self.agent.model_tensors(), self.state.iteration)
        self.files.progress.enter("done")
        self.files.log.close()
        assert self.outcome is not None
        state, last, total = self.state, self.state.evaluation, self._wall_s()
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


def _evaluated(state: TrainState) -> dict[str, Any]:
    """Entries of a checkpoint that an evaluation changes even where it was not due."""
    return {"evaluation": asdict(state.evaluation) if state.evaluation else None, "best": state.best}


def _device_memory(device: torch.device) -> int:
    """Bytes in use on a CUDA device by all its users (physics allocates outside torch); 0 on CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free
