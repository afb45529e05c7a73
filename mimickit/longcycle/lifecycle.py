"""One case from start to end: down the ladder, train, test, film, judge; continues where an earlier session stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, replace
from typing import Any

from mimickit.cases import TUNED, Case, tuned_worlds
from mimickit.longcycle import ladder
from mimickit.longcycle.cases import read_inputs
from mimickit.longcycle.commands import Attempt, digest
from mimickit.longcycle.devices import file_lock, lease
from mimickit.longcycle.judge import GateVerdict, Verdict, check_viz, health_problem, judge_case
from mimickit.longcycle.ledger import AttemptState, CaseState, Ledger
from mimickit.longcycle.rows import case_row
from mimickit.longcycle.settings import TRANSFER, Settings, ladder_name
from mimickit.longcycle.stages import StageResult, StageSpec, run_stage, with_checkpoint_policy
from mimickit.util.files import read_json
from mimickit.util.manifest import is_as_described

NOT_REACHED = "an earlier stage failed"
PATIENCE = {"probe_timeout", "long_timeout", "test_timeout", "transfer_timeout", "viz_timeout", "transfer_processes",
            "hang_seconds", "startup_seconds", "stop_grace"}  # no result depends on these


class CaseRun:
    """Runs one case. A context manager: it holds the devices."""

    def __init__(self, settings: Settings, case: Case, ledger: Ledger) -> None:
        self.settings, self.case, self.ledger = settings, case, ledger
        self.stages: dict[str, StageResult] = {}
        self.attempt: Attempt | None = None
        self.reused_row: dict[str, Any] | None = None
        self.final_row: dict[str, Any] | None = None  # after finish(): the case's line in best_by_case.tsv
        self._afresh: set[ladder.Rung] = set()  # rungs this session started from nothing
        self._held = ExitStack()

    def __enter__(self) -> CaseRun:
        self.inputs = read_inputs(self.settings.repo, self.case, self.settings.engine_config,
                                  self.settings.variants)
        self.key = case_key(self.settings, self.case)
        known = self.ledger.state()
        state, self._session = known.case(self.case.name), known.session.get("session", "")
        if reusable(state, self.key, self.settings.resume_skip_status):
            self.reused_row = state.row
            self.ledger.append("case_reused", case=self.case.name)
            return self
        pool, count = self.settings.pool, self.settings.per_case
        if not self.case.trainable:
            pool, count = self.settings.view_devices or pool, 1
        self.devices = tuple(self._held.enter_context(
            lease(pool, count, self.settings.lock_dir, self.settings.cases_per_device, self._wait_for(pool),
                  self.settings.cost(self.case))))
        self._held.enter_context(file_lock(self.settings.out / ".running.lock", shared=True))
        return self

    def __exit__(self, *exc: object) -> None:
        self._held.close()

    # stages

    def train(self) -> StageResult:
        """Go down the ladder until a rung trains to the end, or a failure ends the case's training."""
        if self.reused_row is not None:
            return self._reused(self.case.train_stage)
        rungs = case_rungs(self.settings, self.case)
        history = self._earlier_memory_trials(rungs) if self.settings.resume_skip_status != "none" else []
        result = StageResult(self.case.train_stage, "not_run")
        while (rung := ladder.next_rung(rungs, history)) is not None:
            self.attempt = self._attempt(rung)
            result = self._train_attempt()
            history.append(ladder.Trial(rung, "ok" if result.ok else result.failure_class))
        return result

    def test(self, trained: StageResult) -> StageResult:
        """Test what was trained; not run when training failed."""
        return self._after(trained, "test")

    def transfer(self, tested: StageResult) -> StageResult | None:
        """Run what was trained in plain MuJoCo; not run when the test failed. None: the profile has no such stage."""
        return self._after(tested, TRANSFER) if TRANSFER in self.settings.stages(self.case) else None

    def view(self, tested: StageResult) -> StageResult:
        """Film one episode; not run when the test failed."""
        return self._after(tested, "viz")

    def finish(self) -> Verdict:
        """Judge the case and write its row."""
        if self.reused_row is not None:
            row = self.final_row = self.reused_row
            gate = GateVerdict(row["gate_verdict"], row["gate_detail"])
            return Verdict(str(row["final_ok"]) == "1", row["failed_stage"], row["failure_class"], row["message"], gate)
        verdict = judge_case(self.settings.stages(self.case), self.stages, self.settings.target(self.case.name),
                             self.settings.profile.enforce_gates)
        known = self._attempt_state()
        trained_s = known.train_seconds if known is not None else 0.0
        self.final_row = case_row(self.attempt, self.stages, verdict, trained_s) | {
            "key": self.key, "session": self._session}
        self.ledger.append("case_end", case=self.case.name, row=self.final_row)
        return verdict

    # ladder and resume

    def _state(self) -> CaseState:
        return self.ledger.state().case(self.case.name)

    def _attempt(self, rung: ladder.Rung) -> Attempt:
        first = first_envs(self.settings, self.case, rung)
        return Attempt(self.settings, self.case, self.inputs, rung, first, self.devices)

    def _attempt_state(self, attempt: Attempt | None = None) -> AttemptState | None:
        """The ledger's record of an attempt (default: the current one), if its fingerprint is unchanged."""
        attempt = attempt or self.attempt
        known = self._state().attempts.get((attempt.rung.variant, attempt.rung.num_envs))
        return known if known is not None and known.fingerprint == attempt.fingerprint else None

    def _earlier_memory_trials(self, rungs: Sequence[ladder.Rung]) -> list[ladder.Trial]:
        """Rungs that ran out of memory in earlier sessions, in order: they are not tried again.

        Other failures are forgotten, since their cause may be fixed; so are these when no rung would be left.
        """
        history = []
        for rung in rungs:
            known = self._attempt_state(self._attempt(rung))
            trained = [known.stages.get(stage, {}) for stage in self.case.stages[:-2]] if known is not None else []
            classes = ladder.MEMORY & {event.get("failure_class") for event in trained}
            if not classes:
                return history
            history.append(ladder.Trial(rung, min(classes)))
        return []

    def _train_attempt(self) -> StageResult:
        """Run the training stages of the current rung, from the first that is not done."""
        afresh = self.settings.resume_skip_status == "none" and self.attempt.rung not in self._afresh
        self._start_afresh = afresh or self._attempt_state() is None
        if self._start_afresh:
            shutil.rmtree(self.attempt.folder, ignore_errors=True)
        self._afresh.add(self.attempt.rung)
        self.stages = {}
        for stage in self.case.stages[:-2]:
            result = self._do(stage)
            if not result.ok:
                break
        return result

    def _after(self, before: StageResult, stage: str) -> StageResult:
        """Run a stage after training; it is repeated once after a transient failure. Training is never
        repeated."""
        if self.reused_row is not None:
            return self._reused(stage)
        if not before.ok:
            self.stages[stage] = StageResult(stage, "not_run", message=NOT_REACHED)
            return self.stages[stage]
        result = self._do(stage)
        if result.failure_class in ladder.TRANSIENT:
            result = self._do(stage)
        return result

    def _do(self, stage: str) -> StageResult:
        """Run a stage of the current attempt, or reuse its recorded success."""
        known = self._attempt_state()
        budget_used = known.train_seconds if known is not None and stage == "long_train" else 0.0
        spec = self.attempt.spec(stage, budget_used)
        done = self._recorded(known, spec)
        if done is None:
            done = self._run(spec)
        self.stages[stage] = done
        return done

    def _recorded(self, known: AttemptState | None, spec: StageSpec) -> StageResult | None:
        """An earlier success of this stage that still holds: same attempt, same key, files unchanged."""
        event = known.stages.get(spec.stage) if known is not None and not self._start_afresh else None
        if event is None or event.get("outcome") != "ok" or event["key"] != dict(spec.key):
            return None
        if health_problem(StageResult.from_event(event)):  # it ended well with an unhealthy result
            return None
        left = {"probe_train": self.attempt.resume_from() is not None,
                "long_train": self._model_is_whole(event),
                "viz": (self.attempt.folder / "viz.mp4").is_file()}
        return StageResult.from_event(event, reused=True) if left.get(spec.stage, True) else None

    def _model_is_whole(self, trained: Mapping[str, Any]) -> bool:
        """Whether the model is the file that training wrote; older versions did not record which that was."""
        described = trained["result"].get("model")
        return self.attempt.model_file.is_file() if described is None else is_as_described(
            self.attempt.model_file, described)

    def _run(self, spec: StageSpec) -> StageResult:
        attempt, settings = self.attempt, self.settings
        about = {
            "case": self.case.name, "variant": attempt.rung.variant, "num_envs": attempt.rung.num_envs,
            "stage": spec.stage, "fingerprint": attempt.fingerprint, "key": dict(spec.key),
            "degraded": attempt.degraded, "devices": list(attempt.devices), "folder": settings.relative(attempt.folder),
            "out_dir": settings.relative(spec.out_dir), "log": settings.relative(spec.log),
            "afresh": self._start_afresh, "started": time.time(),
        }
        if spec.stage == "viz":  # an older film must not count
            for path in (attempt.folder / "viz.mp4", *attempt.folder.glob("viz_*.png")):
                path.unlink(missing_ok=True)
        self.ledger.append("stage_start", **about)
        self._start_afresh = False
        final: list[StageResult] = []

        def record(result: StageResult) -> None:
            final.append(self._examine(result, spec))
            self.ledger.append("stage_end", **{**final[0].to_event(), **about})

        run_stage(spec, record, settings.stop_file.exists)
        return final[0]

    def _examine(self, result: StageResult, spec: StageSpec) -> StageResult:
        """Check what the process cannot: whether its film shows something, whether a budget was reached."""
        result = replace(result, log=self.settings.relative(result.log))
        if spec.stage == "viz" and result.ok:
            problem = check_viz(self.attempt.folder / "viz.mp4", result.result, self.settings.profile.viz_episodes)
            if problem:
                result = replace(result, outcome="failed", failure_class="failed", message=f"video check: {problem}")
        if spec.stage == "long_train" and self.settings.long_success_policy == "budget_checkpoint":
            result = with_checkpoint_policy(result, spec, self._budget_reached(result, spec))
        return result

    def _budget_reached(self, result: StageResult, spec: StageSpec) -> bool:
        if self.settings.long_mode == "time_budget":
            known = self._attempt_state()
            used = (known.train_seconds if known else 0.0) + result.elapsed_s
            return used >= 3600 * self.settings.long_budget_hours or result.failure_class == "timeout"
        samples = read_json(spec.out_dir / "progress.json").get("samples") or 0
        return samples >= self.settings.profile.long_max_samples

    def _wait_for(self, pool: Sequence[str]) -> Callable[[], None]:
        """What to do while all devices are taken: record it once, and stop when the session is interrupted."""
        told = False

        def waiting() -> None:
            nonlocal told
            if not told:
                self.ledger.append("case_waiting", case=self.case.name, devices=" ".join(pool))
                told = True
            if self.settings.stop_file.exists():
                raise KeyboardInterrupt

        return waiting

    def _reused(self, stage: str) -> StageResult:
        ok = str(self.reused_row["final_ok"]) == "1"
        return StageResult(stage, "ok" if ok else "failed", log=self.reused_row.get(f"{stage}_log", ""), reused=True)


def case_rungs(settings: Settings, case: Case) -> list[ladder.Rung]:
    """The attempts to make, in order: the allocation profile's, if there is one, then the usual ones.

    What did not fit with the profile's attempt does not fit with more environments, so those are left out.
    """
    usual, given = usual_rungs(settings, case), settings.allocation.get(case.name)
    if given is None:
        return usual
    first = ladder.Rung(given.variant, given.num_envs)
    smaller = [rung for rung in usual if rung.variant != first.variant or rung.num_envs < first.num_envs]
    return [first] if settings.allocation_only else [first, *smaller]


def first_envs(settings: Settings, case: Case, rung: ladder.Rung) -> int:
    """Environments of the usual first attempt with a rung's variant; an attempt with fewer is degraded."""
    usual = [known.num_envs for known in usual_rungs(settings, case) if known.variant == rung.variant]
    return usual[0] if usual else rung.num_envs


def usual_rungs(settings: Settings, case: Case) -> list[ladder.Rung]:
    """Sizes to try per variant: from an option, the case's own list, the profile's list, or by halving.

    Halving starts at the args file's size; for ``tuned`` at its share of the environments that it is tuned for.
    """
    profile = settings.profile
    if not case.trainable:
        return [ladder.Rung("default", profile.nontrainable_num_envs)]
    target = settings.target(case.name)
    given = settings.ladders.get(ladder_name(case.name)) or settings.ladder or target.env_ladder or profile.env_ladder
    tuned = target.tuned_envs or (profile.tuned_envs and tuned_worlds(case.agent_config, profile.tuned_envs))
    first = {TUNED: max(1, tuned // settings.per_case)} if tuned else {}
    return ladder.rungs({name: given or ladder.halving(first.get(name, case.num_envs))
                         for name in case.variants(settings.repo, settings.variants)})


def case_key(settings: Settings, case: Case) -> str:
    """What a case's verdict depends on: inputs, sizes and gates. A verdict under another key does not count."""
    inputs = read_inputs(settings.repo, case, settings.engine_config, settings.variants)
    return digest({
        "sha256": dict(inputs.sha256), "profile": settings.profile_name,
        "sizes": settings.profile.model_dump(exclude=PATIENCE),
        "rungs": [astuple(rung) for rung in case_rungs(settings, case)], "scale_steps": settings.scale_steps,
        "long_mode": settings.long_mode, "budget": settings.long_budget_hours,
        "gates": [gate.model_dump() for gate in settings.target(case.name).gates],
        "transfer": [gate.model_dump() for gate in settings.target(case.name).transfer],
    })


def passed(state: CaseState, key: str) -> bool:
    """Whether the case passed under this key."""
    return state.passed and state.row.get("key") == key


def reusable(state: CaseState, key: str, policy: str) -> bool:
    """Whether ``--resume-skip-status`` keeps a case's recorded end."""
    if policy == "all":
        return state.row is not None and state.row.get("key") == key
    return policy == "ok" and passed(state, key)


def close_open_stages(ledger: Ledger, only: str | None = None,
                      message: str = "the session that ran it was killed") -> list[str]:
    """Record stages whose pytest was killed as interrupted, at the time of their last sign of life.

    ``only``: one case to look at instead of all.
    """
    closed = []
    for name, case in ledger.state().cases.items():
        if (event := case.running) is None or only not in (None, name):
            continue
        out_dir = ledger.repo / event["out_dir"]
        seen = [path.stat().st_mtime for path in (ledger.repo / event["log"], *out_dir.glob("heartbeat/*"),
                                                  out_dir / "progress.json") if path.exists()]
        result = StageResult(event["stage"], "interrupted", message=message,
                             elapsed_s=round(max([*seen, event["time"]]) - event["time"], 2), log=event["log"])
        about = {key: value for key, value in event.items() if key not in ("event", "time")}
        ledger.append("stage_end", **{**result.to_event(), **about})
        closed.append(name)
    return closed
