"""``--from-results``: judge a root's records by the current gates. Nothing runs, is locked or is written there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mimickit.cases import Case
from mimickit.longcycle import report
from mimickit.longcycle.events import EventFile
from mimickit.longcycle.judge import GateVerdict, Verdict, judge_case
from mimickit.longcycle.ledger import CaseState, State, replay
from mimickit.longcycle.roots import LEDGER, rebased
from mimickit.longcycle.rows import verdict_columns
from mimickit.longcycle.session import NOTHING, is_case
from mimickit.longcycle.settings import TRANSFER, Settings
from mimickit.longcycle.stages import StageResult

NOT_RUN = "no recorded end in these results"


def read_state(settings: Settings) -> State:
    """The record of the root of ``settings``, with paths as they are now."""
    root = settings.relative(settings.out)
    content = EventFile(settings.out / LEDGER).read()
    return replay((rebased(event, root) for event in content.events), content.damaged)


class RecordedCase:
    """The recorded results of a case, in place of a CaseRun."""

    def __init__(self, settings: Settings, case: Case, state: CaseState) -> None:
        self.settings, self.case = settings, case
        self.row = state.row
        attempts = state.attempts
        rung = (self.row["variant"], int(self.row["num_envs"])) if self.row else next(reversed(attempts), None)
        events = attempts[rung].stages if rung in attempts else {}
        self.stages = {stage: recorded_stage(stage, events.get(stage)) for stage in settings.stages(case)}
        self.reused_row = self.final_row = None if self.row is None else {
            **self.row, **verdict_columns(settings, case, self.finish(), str(self.row.get("degraded")) == "1")}

    def __enter__(self) -> RecordedCase:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def train(self) -> StageResult:
        return self.stages[self.case.train_stage]

    def test(self, trained: StageResult) -> StageResult:
        return self.stages["test"]

    def transfer(self, tested: StageResult) -> StageResult | None:
        return self.stages.get(TRANSFER)

    def view(self, tested: StageResult) -> StageResult:
        return self.stages["viz"]

    def finish(self) -> Verdict:
        """The verdict by the current gates; a case without a recorded end, or of another profile, does not
        pass."""
        if self.row is None:
            stage = next((name for name in self.case.stages if not self.stages[name].ok), self.case.stages[0])
            return Verdict(False, stage, "not_run", NOT_RUN, GateVerdict("missing", "not tested"))
        verdict = judge_case(self.settings.stages(self.case), self.stages, self.settings.target(self.case.name),
                             self.settings.profile.enforce_gates)
        profile, asked = self.row.get("profile"), self.settings.profile_name
        if verdict.final_ok and profile != asked:
            return replace(verdict, final_ok=False, failed_stage=self.case.stages[0], failure_class="config",
                           message=f"recorded with profile {profile}, judged for {asked}")
        return verdict


def recorded_stage(stage: str, event: dict[str, Any] | None) -> StageResult:
    """A stage's last event as its result."""
    if event is None:
        return StageResult(stage, "not_run")
    if event["event"] == "stage_start":
        return StageResult(stage, "interrupted", message="no end was recorded", log=event["log"], reused=True)
    return StageResult.from_event(event, reused=True)


class RecordedSession:
    """The hooks of a session that judges recorded results, in place of a Session."""

    def __init__(self, config: pytest.Config, settings: Settings, cases: list[Case]) -> None:
        if config.getoption("lf", False):
            raise pytest.UsageError("--from-results judges everything that was recorded: --lf does not go with it")
        self.settings, self.cases = settings, cases
        self.state = read_state(settings)
        self.selected: set[str] = set()
        self.silent = hasattr(config, "workerinput") or bool(config.getoption("--collect-only"))

    def open_case(self, case: Case) -> RecordedCase:
        return RecordedCase(self.settings, case, self.state.case(case.name))

    def pytest_report_header(self) -> str:
        return (f"longcycle: judging {self.settings.relative(self.settings.out)} again, nothing runs; "
                f"profile {self.settings.profile_name} ({self.settings.profile_reason})")

    def choose(self, items: list[pytest.Item]) -> list[pytest.Item]:
        """Deselect pytest's placeholder for an empty list of cases."""
        return [item for item in items if not is_case(item)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note which cases were judged; with pytest-xdist only reports reach the controller."""
        found = report.nodeid.rpartition("[")[2].rstrip("]")
        self.selected.add(found)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.silent:
            return
        terminalreporter.section("longcycle")
        cases = [case for case in self.cases if case.name in self.selected]
        if not cases:
            terminalreporter.line(NOTHING)
            return
        state = self.judged(cases)
        for line in report.summary(state, cases, set(), self.settings, resumable=False):
            terminalreporter.line(line, red=line.startswith("FAILED"))
        report.add_to_job_summary(report.markdown(state, cases, set(), self.settings))

    def judged(self, cases: list[Case]) -> State:
        """The recorded state with the current verdicts in its rows."""
        rows = {case.name: self.open_case(case).final_row for case in cases}
        return replace(self.state, touched={name for name, row in rows.items() if row is not None},
                       cases={name: replace(self.state.case(name), row=row) for name, row in rows.items()})
