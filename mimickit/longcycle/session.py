"""A session that runs cases: what it selects, locks and records, and how it ends, interrupted or not."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pytest

from mimickit.cases import Case
from mimickit.longcycle import report
from mimickit.longcycle.cases import manifest_rows
from mimickit.longcycle.devices import try_lock
from mimickit.longcycle.environment import describe
from mimickit.longcycle.estimate import Estimate
from mimickit.longcycle.gpu_sharing import shared_gpus
from mimickit.longcycle.kernels import compile_kernels
from mimickit.longcycle.ledger import Ledger, State
from mimickit.longcycle.lifecycle import CaseRun, case_key, close_open_stages, passed, reusable
from mimickit.longcycle.live import LiveLine, SessionProgress, own_stdout
from mimickit.longcycle.results.data import Root, Yardsticks
from mimickit.longcycle.results.history import HISTORY, append, night_of
from mimickit.longcycle.results.live import LivePage
from mimickit.longcycle.roots import ENVIRONMENTS, lock_session
from mimickit.longcycle.scheduler import OneAtATime, make_scheduler, run_without_waiting
from mimickit.longcycle.settings import YARDSTICK, Settings
from mimickit.longcycle.yardstick import PAGE, write_page
from mimickit.util.failures import UserError
from mimickit.util.files import read_tsv, remove_half_written, write_json, write_text, write_tsv
from mimickit.util.processes import end_with_parent

CASE = "longcycle_case"  # test parameter
CASES_PER_DEVICE = "cases-per-device"
ONE_AT_A_TIME, PASSED_BEFORE = "longcycle_one_at_a_time", "longcycle_passed_before"
DEFERRED = "longcycle_deferred"
OTHERS_WAIT = 60.0  # s for workers to end their stages after an interruption
NOTHING = "no case selected: look at -k, --cases, --exclude-nontrainable, --shard and args/"


def side_by_side(config: pytest.Config) -> int:
    """The number of cases that run at once: pytest-xdist's workers."""
    if hasattr(config, "workerinput"):
        return int(config.workerinput["workercount"])
    return int(getattr(config.option, "numprocesses", None) or 1)


def is_case(item: pytest.Item) -> bool:
    """False for pytest's placeholder for an empty list of cases."""
    return isinstance(item.callspec.params[CASE], Case)


def case_of(test: str) -> str:
    """The case name in a test id."""
    return test.rpartition("[")[2].removesuffix("]")


class Session:
    """The hooks of one session that runs cases: of the only process, or of xdist's controller or worker."""

    def __init__(self, config: pytest.Config, settings: Settings, cases: list[Case]) -> None:
        self.config, self.settings, self.cases = config, settings, cases
        self.ledger = Ledger(settings.out, settings.repo)
        given = getattr(config, "workerinput", {})
        self.worker = given.get("workerid", "")
        self.command = list(given.get("mainargv", sys.argv))
        self.idle = bool(config.getoption("--collect-only"))  # nothing runs, nothing is written
        self.selected: list[str] = []
        self.passed_before = set(given.get(PASSED_BEFORE, ()))  # left out by --lf
        self.lock: IO[str] | None = None
        self.live: LiveLine | None = None
        self.page: LivePage | None = None
        self.started = False
        self.sharing = ""  # how cases share GPUs, if they do
        self.until_end = contextlib.ExitStack()
        self.unwritten = ""  # why the end could not be recorded
        self.no_history = ""  # why the history has no line of this session
        if self.worker:  # end with the controller, however it ends
            end_with_parent(os.getppid())
        else:
            self.terminal = own_stdout()

    def open_case(self, case: Case) -> CaseRun:
        return CaseRun(self.settings, case, self.ledger)

    def pytest_report_header(self) -> str:
        return f"longcycle: {self.settings.header()}" + (f"; GPUs are shared {self.sharing}" if self.sharing else "")

    # pytest-xdist: one case at a time

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config) -> OneAtATime | None:
        return make_scheduler(config, self.cost) if config.getvalue("dist") in ("load", "worksteal") else None

    def cost(self, item: str) -> float:
        """Cost of a test (:meth:`Settings.cost`); 0 for pytest's placeholder for an empty list."""
        return next((self.settings.cost(case) for case in self.cases if case.name == case_of(item)), 0.0)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[CASES_PER_DEVICE] = self.settings.cases_per_device  # -n auto is the controller's
        node.workerinput[ONE_AT_A_TIME] = self.config.getvalue("dist") in ("load", "worksteal")
        node.workerinput[DEFERRED] = list(self.settings.deferred)
        node.workerinput[PASSED_BEFORE] = sorted(self.passed_before)  # a replacement for a dead worker selects the same

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        """The first worker reports the selected cases, before any begins."""
        if not self.idle and self.live is None:
            self.begin_cases([case_of(test) for test in ids])

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        """A worker died: its case counts as interrupted, and ``--lf`` continues it."""
        close_open_stages(self.ledger, case_of(crashitem), "the pytest-xdist worker that ran it died")

    # begin

    def pytest_sessionstart(self) -> None:
        if not self.worker and self.config.getoption("lf", False):
            state = self.ledger.state()
            self.passed_before = {case.name for case in self.cases
                                  if passed(state.case(case.name), case_key(self.settings, case))}
        if self.idle:
            return
        signal.signal(signal.SIGTERM, on_sigterm)
        if self.worker:
            return
        with self.needs_disk():
            self.lock = lock_session(self.settings.out)
            if self.lock is None:
                raise pytest.UsageError(f"another session works in {self.settings.relative(self.settings.out)}; "
                                        "wait for it, or give --root-out NAME")
            self.settings.stop_file.unlink(missing_ok=True)
            remove_half_written(self.settings.out)
            close_open_stages(self.ledger)
        self.session_before = self.ledger.state().session.get("session")
        gpus = any(device.startswith("cuda") for device in self.settings.pool)
        if gpus and self.settings.cases_per_device > 1 and side_by_side(self.config) > 1:
            self.sharing = self.until_end.enter_context(shared_gpus(self.settings.out / "mps"))

    def choose(self, items: list[pytest.Item]) -> list[pytest.Item]:
        """Note the selected cases, add the back-stop timeout, and return the items that ``--lf`` leaves out."""
        real = [item for item in items if is_case(item)]
        by_name = {item.callspec.params[CASE].name: item for item in real}
        self.selected = sorted(by_name)
        if self.config.getoption("timeout", None) is None and self.config.pluginmanager.has_plugin("timeout"):
            for item in items:
                item.add_marker(pytest.mark.timeout(self.back_stop(), method="signal"))
        self.passed_before &= by_name.keys()
        none = [item for item in items if item not in real]
        return [*none, *(by_name[name] for name in self.passed_before)]

    def back_stop(self) -> float:
        """Seconds after which pytest-timeout ends a case; 0 (never) where a stage has no timeout."""
        profile = self.settings.profile
        stages = (profile.probe_timeout, profile.long_timeout, profile.test_timeout, profile.viz_timeout,
                  *((profile.transfer_timeout,) if profile.transfer_episodes else ()))
        return 0 if 0 in stages else 16 * sum(stages)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Record the start (with xdist: in the first worker, since the controller collects nothing)."""
        distributing = not self.worker and side_by_side(self.config) > 1
        if self.idle or distributing or self.worker not in ("", "gw0"):
            return
        settings, out = self.settings, self.settings.out
        chosen = [case for case in self.cases if case.name in self.selected]
        table = manifest_rows(settings.repo, chosen, settings.engine_config, settings.variants)
        name, environment = uuid.uuid4().hex[:8], describe(settings, self.command)
        with self.needs_disk():
            if table:  # add to the rows of earlier sessions
                rows = {row["case"]: row for row in [*read_tsv(out / "case_manifest.tsv"), *table]}
                write_tsv(out / "case_manifest.tsv", list(table[0]), [row for _, row in sorted(rows.items())])
            write_json(out / "environment.json", environment)
            write_json(out / ENVIRONMENTS / f"{name}.json", environment)
            self.ledger.append("session_start", session=name, pid=os.getpid(), cases=self.selected,
                               passed_before=sorted(self.passed_before), profile=settings.profile_name,
                               command=self.command)
            for name in sorted(self.passed_before):
                self.ledger.append("case_reused", case=name)

    @contextlib.contextmanager
    def needs_disk(self) -> Iterator[None]:
        """End the session with the reason when its root cannot be written or locked."""
        try:
            yield
        except UserError as error:
            raise pytest.UsageError(str(error)) from None
        except OSError as error:
            raise pytest.UsageError(f"cannot write to {self.settings.relative(self.settings.out)}: {error}") from None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        if self.worker and self.config.workerinput.get(ONE_AT_A_TIME):
            run_without_waiting(self.config)
        distributes = self.config.pluginmanager.has_plugin("dsession")  # then the workers report the selection
        if not self.idle and not self.worker and not distributes:
            self.begin_cases([name for name in self.selected if name not in self.passed_before])

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No dots between the progress lines; -v keeps pytest's words."""
        return (report.outcome, "", report.outcome.upper()) if report.when == "call" else None

    def begin_cases(self, names: Sequence[str]) -> None:
        """Before the first case: begin the page, compile kernels, estimate the time, and start the progress line."""
        state, policy = self.ledger.state(), self.settings.resume_skip_status
        chosen = [case for case in self.cases if case.name in names
                  and not reusable(state.case(case.name), case_key(self.settings, case), policy)]
        workers = side_by_side(self.config)
        estimate = Estimate(self.settings, workers, len(os.sched_getaffinity(0)))
        self.progress = SessionProgress(self.ledger, chosen, estimate)
        self.page = LivePage(self.settings.out, self.progress.outlook, report.deferred_line(self.settings))
        self.page.start()
        self.terminal.write(f"\npage: {self.settings.relative(self.settings.out / 'index.html')}\n")
        if chosen and self.settings.compiles:
            compile_kernels(self.settings, chosen, self.terminal)
        if chosen:
            self.terminal.write(f"{self.progress.forecast()}\n")
        self.live = LiveLine(self.progress.look, self.terminal)
        self.live.start()

    # end

    def pytest_keyboard_interrupt(self) -> None:
        """With xdist: tell the workers, and wait until their stages have ended with a checkpoint."""
        if self.worker or self.idle or side_by_side(self.config) <= 1:
            return
        self.settings.stop_file.touch()
        deadline = time.monotonic() + OTHERS_WAIT
        while (lock := try_lock(self.settings.out / ".running.lock")) is None and time.monotonic() < deadline:
            time.sleep(0.2)
        if lock is not None:
            lock.close()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.live is not None:
            self.live.stop()
            with contextlib.suppress(OSError):
                self.terminal.close()
        self.until_end.close()
        if self.worker or self.lock is None:
            return
        state = self.ledger.state()
        self.started = state.session.get("session") != self.session_before
        if not self.started:
            self.lock.close()
            return
        try:
            self.record_end(session, exitstatus, state)
        except OSError as error:  # most likely a full disk
            self.unwritten = str(error)
            session.exitstatus = exitstatus or pytest.ExitCode.INTERNAL_ERROR
        if self.page is not None:
            self.page.stop()
        self.lock.close()

    def record_end(self, session: pytest.Session, exitstatus: int, state: State) -> None:
        """Record the end, and set the exit code: 0 exactly when every selected case passed."""
        interrupted = exitstatus == pytest.ExitCode.INTERRUPTED
        self.ledger.append("session_end", status="interrupted" if interrupted else "finished")
        selected = state.session.get("cases", [])
        complete = all(name in state.touched and state.case(name).passed for name in selected)
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and selected and complete:
            session.exitstatus = pytest.ExitCode.OK  # --lf with nothing left to do
        elif exitstatus == pytest.ExitCode.OK and not complete:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        summary = report.markdown(state, self.cases_of(state), self.reused(state), self.settings)
        self.add_to_history()
        write_text(self.settings.out / "summary.md", summary)
        report.add_to_job_summary(summary)

    def add_to_history(self) -> None:
        """Append the session to the history of nights, if a case ended in it; what hinders that fails no session."""
        try:
            gates = Yardsticks(self.settings.targets)
            night = night_of(Root(self.settings.out), gates, deferred=self.settings.deferred)
            if night.cases:
                append(self.settings.repo / HISTORY, night)
        except (OSError, ValueError, UserError) as error:
            self.no_history = f"{HISTORY} has no line of this session: {error}"

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.worker or self.lock is None or not self.started:
            return
        state = self.ledger.state()
        cases = self.cases_of(state)
        terminalreporter.section("longcycle")
        if self.unwritten:
            terminalreporter.line(f"the tables may be older than the results, they could not be written: "
                                  f"{self.unwritten}. Make room and continue with --lf", red=True)
        if self.no_history:
            terminalreporter.line(self.no_history, red=True)
        if not cases:
            terminalreporter.line(NOTHING)
            return
        if set(state.session.get("passed_before", [])) == {case.name for case in cases}:
            terminalreporter.line("--lf: every selected case has passed already, nothing to run")
        for line in report.summary(state, cases, self.reused(state), self.settings):
            terminalreporter.line(line, red=line.startswith("FAILED"))
        if self.settings.case_set == YARDSTICK:
            write_page([self.settings.out], self.settings.out / PAGE)
            terminalreporter.line(f"beside published numbers: {self.settings.relative(self.settings.out / PAGE)}")

    def cases_of(self, state: State) -> list[Case]:
        """The cases that the session selected."""
        return [case for case in self.cases if case.name in state.session.get("cases", [])]

    def reused(self, state: State) -> set[str]:
        """Cases whose earlier result was kept."""
        events = self.ledger.events()
        begin = max((i for i, event in enumerate(events) if event["event"] == "session_start"), default=0)
        return {*state.session.get("passed_before", []),
                *(event["case"] for event in events[begin:] if event["event"] == "case_reused")}


def on_sigterm(number: int, frame: object) -> None:
    """End as Ctrl-C does: the running stage writes its checkpoint, tables and summary are written."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pytest.exit("SIGTERM")
