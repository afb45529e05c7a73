"""The training loop: roll out, learn, evaluate, save; stops politely and continues exactly.

A continued run repeats what an uninterrupted one would have done: networks, optimizers, normalisers, counters,
environments and the random state of torch on every process are in the checkpoint. Evaluations that were not due
(at the end of a run) leave no trace in it, and one that a signal interrupted is made up for when the run continues.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mimickit.config import differences
from mimickit.envs.base import EnvMode, VecEnv
from mimickit.learning.agent import Agent
from mimickit.learning.evaluate import MAX_EPISODE_STEPS, Evaluation, evaluate, read_health
from mimickit.learning.side_evaluation import SideEvaluation
from mimickit.learning.stats import Stat, reduce_stats
from mimickit.learning.stopping import StopSignals
from mimickit.learning.tracker import EpisodeTracker
from mimickit.util.checkpoint import (
    CheckpointWriter,
    fill_tensors,
    load_checkpoint,
    resolve_checkpoint,
    save_model,
    snapshot,
)
from mimickit.util.distributed import Distributed
from mimickit.util.failures import NonFiniteError, UserError
from mimickit.util.files import plain, write_json
from mimickit.util.graphs import Graphed
from mimickit.util.logging import Heartbeat, Logger, LoggerKind, Number, Progress, column_name, print_row, warn

UNLIMITED = 2**63 - 1
LAST_WRITE = 2.0  # s, for a checkpoint that is being written when training fails
NOT_FINITE = (
    "Try smaller learning rates or a smaller model.action_std where losses broke, a larger engine.sim_freq or weaker "
    "gains where the simulation did, and tools/check_motion.py on the clips. --resume continues from the last "
    "checkpoint, which is sound"
)
Outcome = Literal["completed", "budget", "interrupted"]
State = tuple[dict[str, Any], dict[str, Any]]  # shared by all processes, own


@dataclass(frozen=True)
class TrainOptions:
    """How long to train and what to leave behind; docs/run_folder.md describes the files."""

    out_dir: Path
    max_samples: int = UNLIMITED  # over all processes, earlier runs included
    max_iters: int | None = None  # of this process
    time_budget_s: float | None = None  # of this process
    output_samples: int | None = None  # evaluate and save at least so often, besides the agent's iters_per_output
    output_seconds: float | None = None
    eval_envs: int = 0  # evaluate in so many environments of every process beside training; 0: training pauses for it
    max_episode_steps: int | None = None  # evaluations count an episode as ended after so many control steps
    save_int_models: bool = False
    resume: Path | None = None  # run folder or checkpoint folder
    run: str = ""  # name of the run, kept with its checkpoints
    logger: LoggerKind = "txt"
    log_measures: bool = True  # the environment's diagnostics as log columns
    configuration: Mapping[str, Any] = field(default_factory=dict)  # kept with checkpoints, compared on resume
    agent_config: Mapping[str, Any] = field(default_factory=dict)  # for W&B
    started: float | None = None  # time.monotonic() when the process started


@dataclass(frozen=True)
class TrainResult:
    """Learning's part of ``result.json`` of a training."""

    outcome: Outcome
    samples: int
    iterations: int
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


def train(env: VecEnv, agent: Agent, dist: Distributed, options: TrainOptions) -> TrainResult:
    """Train until the samples, iterations or hours are used up or a signal comes. Every process calls it.

    Raises:
        UserError: ``options.resume`` does not fit.
        NonFiniteError: a NaN or infinity in observations, rewards or losses.
    """
    with StopSignals() as signals:
        training = _Training(env, agent, dist, options, signals)
        try:
            return training.run()
        finally:
            training.writer.wait(LAST_WRITE)


@torch.no_grad()
def roll_out(env: VecEnv, agent: Agent, steps: int, track: Callable[[], None]) -> None:
    """``steps`` control steps in all environments; never waits for the device."""
    for t in range(steps):
        agent.act(t)
        env.step(agent.action)
        track()
        agent.observe(t)


class _Training:
    def __init__(
        self, env: VecEnv, agent: Agent, dist: Distributed, options: TrainOptions, signals: StopSignals
    ) -> None:
        self.env, self.agent, self.dist, self.options, self.signals = env, agent, dist, options, signals
        self.out_dir = Path(options.out_dir)
        self.tracker = EpisodeTracker(env.num_envs, env.device, skip=options.eval_envs)
        self.side: SideEvaluation | None = None
        self.max_episode_steps = options.max_episode_steps or MAX_EPISODE_STEPS
        tracked = list(self.tracker.state_tensors().values())
        if options.eval_envs:
            self.side = SideEvaluation(env, agent, options.eval_envs, self.max_episode_steps)
            tracked += self.side.local_state().values()
        self.track = Graphed(self._track, env.device, state=tracked)

        self.iteration = 0  # index of the iteration at hand
        self.samples = 0
        self.last_output: list[int] | None = None  # iteration and samples of the last one
        self.report: dict[str, float] = {}  # its numbers
        self.pending = False  # its evaluation and output are still to be made
        self.outcome: Outcome | None = None
        self.evaluation: Evaluation | None = None
        self.waiting: dict[str, Number] | None = None  # log row whose policy is being evaluated beside training
        self.best = [-math.inf, -math.inf]  # return, episode length
        self.writer = CheckpointWriter(self.out_dir / "checkpoints", dist)
        self.checkpoint: Path | None = None
        self.health = {"nonfinite": 0, "contact_overflow": 0, "constraint_overflow": 0}
        self.peak_memory = 0
        self.iterations_here = 0
        self.wall_before = 0.0  # s, of the runs this one continues
        self.signal: int | None = None  # that ended the run, received by any process

    def _track(self) -> None:
        self.tracker.update(self.env.reward, self.env.done)
        if self.side is not None:
            self.side.update()

    # --- the loop

    def run(self) -> TrainResult:
        self._start()
        while self.pending or not self._ended():
            if not self.pending:
                self._iterate()
            self._conclude()
        if self.side is not None and self.outcome != "interrupted":
            self._log_unevaluated()
        self.writer.wait()
        self.dist.barrier()
        if not self.iterations_here:  # continued when nothing was left to do: the model may be what is missing
            self._save_models(improved=False)
        self.progress.enter("done")
        self.logger.close()
        return self._result()

    def _iterate(self) -> None:
        """Roll out and learn: one iteration without its evaluation."""
        steps = self.agent.config.steps_per_iter
        self.env.set_mode(EnvMode.TRAIN)
        self.agent.start_iteration(self.samples)
        roll_out(self.env, self.agent, steps, self.track)
        stats = self.agent.update(self.samples)
        self.samples += self.dist.world_size * self.env.num_envs * steps
        self.iterations_here += 1
        self.report = self._collect(stats)
        self.heartbeat.beat()
        self.progress.enter("training")
        self.progress.advance(self.iteration, self.samples)

    def _conclude(self) -> None:
        """Evaluate and save where due, log, and decide whether to go on."""
        self.writer.check()
        due = self.pending or self._output_due()
        self.outcome = self._decide_outcome()
        if self.outcome == "interrupted":
            self._save_interrupted(self._state_before_output(due))
        elif (due or self.outcome) and self.side is None:
            self._output(due)
        elif due or self.outcome:
            self._output_beside(due)
        else:
            self._print(self._row())
            self.iteration += 1

    def _output(self, due: bool) -> None:
        """Evaluate, log, save. An output that was not due leaves the run to be continued as if it had not been."""
        before = snapshot(self._state_before_output(due))  # on the device: it is seldom needed
        self.progress.enter("evaluating")
        evaluation = evaluate(
            self.env, self.agent, self.dist, self.agent.config.test_episodes,
            should_stop=lambda: bool(self.signals), on_step=self._sign_of_life,
            max_episode_steps=self.max_episode_steps)
        if not evaluation.complete:
            self.outcome = "interrupted"
            self._save_interrupted(before)
            return
        self._check_health(read_health(self.env, self.dist))
        self._publish(replace(evaluation, samples=self.samples))
        self.env.set_mode(EnvMode.TRAIN)
        self.env.reset()
        self.tracker.restart()
        self._end_output(None if due else before)
        self.progress.enter("training")

    def _output_beside(self, due: bool) -> None:
        """Save; if the evaluation beside training has ended, log its result with its row and begin the next.

        An output that falls into an evaluation is not evaluated itself and has a row only at the end of the run.
        """
        before = None if due else snapshot(self._state_before_output(due))
        evaluation = self.side.result(self.dist)
        row = self._publish(evaluation)
        if due and evaluation is not None:
            self.env.reset(self.options.eval_envs)
            self.side.begin(self.samples, self.iteration)
            self.waiting = row
        self._end_output(before)

    def _end_output(self, before: State | None) -> None:
        """Go on to the next iteration and save: the state as it is now, or ``before`` with what was evaluated since."""
        self.tracker.clear()
        self.iteration += 1
        self.pending = False
        shared, local = self._state(self.iteration) if before is None else before
        self._save_checkpoint(({**shared, **self._evaluated()}, local))

    def _publish(self, evaluation: Evaluation | None) -> dict[str, Number]:
        """Log, print and save the models of an output iteration; returns its row. None: no new evaluation, the last one
        stands. An evaluation beside training is of the row that waits for it."""
        improved = False
        if evaluation is not None:
            self.evaluation = evaluation
            reached = [evaluation.mean_return, evaluation.episode_length]
            improved = reached >= self.best
            self.best = max(self.best, reached)
        row = self._row()
        if self.side is None:
            self.logger.write(row, [column_name(name) for name in self._shown_measures()])
        elif evaluation is not None and self.waiting is not None:
            self.logger.write({**self.waiting, **_test_columns(evaluation)})
            self.waiting = None
        self._print(row)
        self._save_models(improved)
        self.last_output, self.last_output_time = [self.iteration, self.samples], time.monotonic()
        self.peak_memory = max(self.peak_memory, _device_memory(self.dist.device))
        return row

    def _log_unevaluated(self) -> None:
        """At the end of a run: the row that waits for its evaluation, and that of the last policy."""
        rows = [] if self.waiting is None else [self.waiting]
        evaluated = {row["Samples"] for row in rows} | ({self.evaluation.samples} if self.evaluation else set())
        if self.report and self.samples not in evaluated:
            rows.append({**self._row(), "Iteration": self.iteration - 1})
        for row in rows:
            self.logger.write({**row, **_test_columns(Evaluation(math.nan, math.nan))})

    # --- decisions

    def _ended(self) -> bool:
        limit = self.options.max_iters
        if self.outcome is None and (
            self.samples >= self.options.max_samples or (limit is not None and self.iterations_here >= limit)
        ):
            self.outcome = "completed"
        return self.outcome is not None

    def _decide_outcome(self) -> Outcome | None:
        if self.report["vote.stop"] > 0:
            return "interrupted"
        if self.samples >= self.options.max_samples:
            return "completed"
        if self.options.max_iters is not None and self.iterations_here >= self.options.max_iters:
            return "completed"
        return "budget" if self.report["vote.budget"] > 0 else None

    def _output_due(self) -> bool:
        if self.last_output is None:
            return True
        iteration, samples = self.last_output
        every = self.options.output_samples
        return (
            self.iteration - iteration >= self.agent.config.iters_per_output
            or (every is not None and self.samples - samples >= every)
            or self.report["vote.output"] > 0
        )

    def _collect(self, stats: Mapping[str, Stat]) -> dict[str, float]:
        """All numbers of the iteration, equal on all processes: log columns, health, votes. The one wait."""
        now, options, root = time.monotonic(), self.options, self.dist.is_root
        votes = {
            "vote.stop": bool(self.signals),
            "vote.budget": root and options.time_budget_s is not None and now - self.begun >= options.time_budget_s,
            "vote.output": root and options.output_seconds is not None
            and now - self.last_output_time >= options.output_seconds,
        }
        mean_return, length, episodes = self.tracker.stats()
        report = reduce_stats({
            "Train_Return": mean_return, "Train_Episode_Length": length, "Train_Episodes": episodes,
            **{f"method.{name}": stat for name, stat in stats.items()},
            **{f"info.{name}": stat for name, stat in self.agent.info(self.samples).items()},
            **{f"health.{name}": Stat(value, "sum") for name, value in self.env.health().items()},
            **{name: Stat(torch.full((), float(vote), device=self.dist.device), "sum") for name, vote in votes.items()},
        }, self.dist)
        self.env.clear_health()
        self._check_health({name: round(count) for name, count in _part(report, "health.").items()})
        wrong = [name.split(".")[-1] for name, value in report.items() if not math.isfinite(value)]
        if wrong:
            raise NonFiniteError(f"iteration {self.iteration}: {', '.join(wrong)} not finite. {NOT_FINITE}")
        return report

    def _check_health(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self.health[name] = self.health.get(name, 0) + count
            if count and name != "nonfinite" and self.dist.is_root:
                warn(f"iteration {self.iteration}: {name} {count}")
        if self.health["nonfinite"]:
            raise NonFiniteError(
                f"iteration {self.iteration}: {self.health['nonfinite']} environment step(s) with a NaN or infinity in "
                f"observation or reward. {NOT_FINITE}"
            )

    # --- logging

    def _row(self) -> dict[str, Number]:
        report, evaluation = self.report, self.evaluation or Evaluation()
        return {
            "Iteration": self.iteration,
            "Wall_Time": self._wall_s() / 3600.0,
            "Samples": self.samples,
            **_test_columns(evaluation),
            "Train_Return": report["Train_Return"],
            "Train_Episode_Length": report["Train_Episode_Length"],
            "Train_Episodes": round(report["Train_Episodes"]),
            **_part(report, "method."),
            **{column_name(name): value for name, value in self._shown_measures().items()},
            **_part(report, "info."),
        }

    def _shown_measures(self) -> dict[str, float]:
        """The environment's log columns: what the last pause for an evaluation measured."""
        shown = self.evaluation is not None and self.options.log_measures and self.side is None
        return self.evaluation.measures if shown else {}

    def _print(self, row: Mapping[str, Number]) -> None:
        if self.dist.is_root:
            print_row(row, self.progress)

    def _sign_of_life(self) -> None:
        self.heartbeat.beat()
        self.progress.write()

    def _wall_s(self) -> float:
        return self.wall_before + time.monotonic() - self.begun

    # --- starting, saving and continuing

    def _start(self) -> None:
        options = self.options
        self.begun = self.last_output_time = time.monotonic()
        self.startup_s = time.monotonic() - options.started if options.started is not None else 0.0
        self.heartbeat = Heartbeat(self.out_dir, self.dist.rank)
        self.env.set_mode(EnvMode.TRAIN)
        self.env.clear_health()
        if options.resume is None:
            self.env.reset()
            if self.side is not None:
                self.side.begin(0, 0)
        else:
            self._resume(options.resume)
        first_row = None if options.resume is None else int((self.waiting or {}).get("Iteration", self.iteration))
        self.logger = Logger(
            self.out_dir, options.logger, first_row, options.agent_config, self.dist.is_root, options.run)
        self.progress = Progress(self.out_dir, options.max_samples, self.dist.is_root)
        self.progress.advance(self.iteration, self.samples)
        self.progress.enter("compiling")

    def _state_before_output(self, due: bool) -> State:
        """State from which a continued run goes on with the output that is due, or else with the next iteration."""
        return self._state(self.iteration if due else self.iteration + 1, pending=due)

    def _state(self, iteration: int, pending: bool = False) -> State:
        """What a checkpoint holds, live tensors: the part all processes share and this process's own.

        A continued run begins with ``iteration``: with its evaluation only if ``pending``, else with its rollout.
        """
        device = self.dist.device
        shared = {
            "agent": self.agent.state_tensors() if self.dist.is_root else {},
            "iteration": iteration,
            "samples": self.samples,
            "wall_s": self._wall_s(),
            "pending": pending,
            "report": self.report,
            "health": self.health,
            **self._evaluated(),
            "last_output": self.last_output,
            "side": {**self.side.shared_state(), "row": self.waiting} if self.side else None,
        }
        local = {
            "env": self.env.state_dict(),
            "agent": self.agent.local_state(),
            "tracker": self.tracker.state_tensors(),
            "side": self.side.local_state() if self.side else None,
            "random_cpu": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        return shared, local

    def _evaluated(self) -> dict[str, Any]:
        return {"evaluation": asdict(self.evaluation) if self.evaluation else None, "best": self.best}

    def _resume(self, path: Path) -> None:
        found = load_checkpoint(resolve_checkpoint(path, self.dist), self.dist)
        manifest, shared, local = found.manifest, found.shared, found.local
        if manifest["num_envs"] != self.env.num_envs:
            raise UserError(
                f"{found.path} was written with num_envs {manifest['num_envs']}, this run has {self.env.num_envs}: an "
                f"exact continuation needs the same number. Use --model_file with its model.pt for a warm start"
            )
        changed = differences(manifest.get("configuration", {}), plain(self.options.configuration))
        if changed and self.dist.is_root:
            warn(f"{found.path} was written under another configuration, so this is no exact continuation: "
                 + "; ".join(changed))
        fill_tensors(self.agent.state_tensors(), shared["agent"], str(found.path))
        fill_tensors(self.tracker.state_tensors(), local["tracker"], str(found.path))
        self.agent.load_local_state(local["agent"], str(found.path))
        self.env.load_state_dict(local["env"])
        self.iteration, self.samples = shared["iteration"], shared["samples"]
        self.pending, self.health = shared["pending"], dict(shared["health"])
        self.report = {k: 0.0 if k.startswith("vote.") else v for k, v in shared["report"].items()}
        self.best, self.wall_before = shared["best"], shared["wall_s"]
        self.last_output = shared["last_output"]
        self.evaluation = Evaluation(**shared["evaluation"]) if shared["evaluation"] else None
        self.checkpoint = found.path
        if self.side is not None and shared["side"] is not None:
            self.side.load_shared(shared["side"], str(found.path))
            fill_tensors(self.side.local_state(), local["side"], str(found.path))
            self.waiting = shared["side"].get("row")
        elif self.side is not None:  # its evaluations paused training
            self.env.reset(self.options.eval_envs)
            self.side.begin(self.samples, max(self.iteration - 1, 0))
        if self.dist.is_root:
            print(f"resuming {found.path}: {self.samples:,} samples learned from, next is iteration {self.iteration}",
                  flush=True)
        torch.set_rng_state(local["random_cpu"])
        if self.dist.device.type == "cuda":
            torch.cuda.set_rng_state(local["random_cuda"], self.dist.device)

    def _save_interrupted(self, state: State) -> None:
        received = torch.tensor(self.signals.received or 0, device=self.dist.device)
        self.signal = int(self.dist.max_(received).item())
        self._save_checkpoint(state)
        self._save_models(improved=False)
        self.pending = False
        self.iteration += 1  # rolled out and learned from, though a due evaluation is still to come

    def _save_checkpoint(self, state: State) -> None:
        shared, local = state
        manifest = {
            "samples": self.samples, "num_envs": self.env.num_envs, "time": time.time(),
            "configuration": self.options.configuration, "run": self.options.run,
        }
        self.checkpoint = self.writer.save(shared["iteration"], shared, local, manifest)

    def _save_models(self, improved: bool) -> None:
        if not self.dist.is_root:
            return
        tensors = self.agent.model_tensors()
        save_model(self._model_file(), tensors)
        if self.options.save_int_models:
            save_model(self.out_dir / "int_models" / f"model_{self.iteration:010d}.pt", tensors)
        if improved and self.evaluation is not None:
            best = self.out_dir / "checkpoints" / "best"
            save_model(best / "model.pt", self.side.model if self.side is not None else tensors)
            iteration = self.side.iteration if self.side is not None else self.iteration
            write_json(best / "evaluation.json", {"iteration": iteration, **asdict(self.evaluation)})

    def _model_file(self) -> Path:
        return self.out_dir / "model.pt"

    def _result(self) -> TrainResult:
        assert self.outcome is not None
        wall = time.monotonic() - self.begun
        last = self.evaluation
        evaluation = None if last is None else {
            "return": last.mean_return, "episode_length": last.episode_length, "episodes": last.episodes,
            "samples": last.samples}
        return TrainResult(
            outcome=self.outcome,
            samples=self.samples,
            iterations=self.iteration,
            wall_s=wall,
            samples_per_s=self.samples / max(self._wall_s(), 1e-9),
            total_wall_s=self._wall_s(),
            startup_s=self.startup_s,
            nonfinite=self.health["nonfinite"],
            contact_overflow=self.health["contact_overflow"],
            constraint_overflow=self.health["constraint_overflow"],
            evaluation=evaluation,
            measures=last.measured() if last else {},
            checkpoint=str(self.checkpoint) if self.checkpoint else None,
            model_file=str(self._model_file()),
            world_size=self.dist.world_size,
            num_envs=self.env.num_envs,
            peak_gpu_memory_bytes=max(self.peak_memory, _device_memory(self.dist.device)),
            signal=self.signal,
        )


def _test_columns(evaluation: Evaluation) -> dict[str, Number]:
    return {"Test_Return": evaluation.mean_return, "Test_Episode_Length": evaluation.episode_length,
            "Test_Episodes": evaluation.episodes}


def _part(report: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in report.items() if name.startswith(prefix)}


def _device_memory(device: torch.device) -> int:
    """Bytes in use on a CUDA device by all its users (physics allocates outside torch); 0 on CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free
