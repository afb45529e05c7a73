"""The pytest side of the acceptance suite: options, selection, live progress, summary, exit code, interruption."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import IO, Any

import pytest

from mimickit.util.failures import UserError
from mimickit.util.files import write_json, write_text
from tests.acceptance import report
from tests.acceptance.cases import Case, manifest_rows, select
from tests.acceptance.devices import try_lock, visible_cuda
from tests.acceptance.environment import describe
from tests.acceptance.ledger import Ledger, to_tsv
from tests.acceptance.lifecycle import case_key, close_open_stages, passed
from tests.acceptance.settings import (
    DEFAULT_ENGINE,
    PROFILES_FILE,
    TARGETS_FILE,
    Settings,
    choose_devices,
    choose_profile,
    load_profiles,
    load_targets,
    parse_env,
    parse_ladder,
    parse_list,
    parse_runner,
)

NAME = "longcycle"
CASE, LEDGER, SETTINGS = "longcycle_case", "longcycle_ledger", "longcycle_settings"
PR_SET_PDEATHSIG = 1
OTHERS_WAIT = 60.0  # s, for pytest-xdist workers to end their stages after an interruption
LINE_EVERY = 15.0  # s, where the terminal cannot update a line

OVERRIDES = {  # option -> (key of the profile, type, meaning)
    "--long-max-samples": ("long_max_samples", int, "samples of long_train in all (full: 30000000)"),
    "--probe-iters": ("probe_iters", int, "iterations of probe_train (full: 8)"),
    "--probe-timeout": ("probe_timeout", float, "seconds, 0 for none (900)"),
    "--long-timeout": ("long_timeout", float, "seconds, 0 for none (full: 0)"),
    "--test-timeout": ("test_timeout", float, "seconds, 0 for none (600)"),
    "--viz-timeout": ("viz_timeout", float, "seconds, 0 for none (600)"),
    "--test-episodes": ("test_episodes", int, "episodes of the test (full: 10)"),
    "--viz-episodes": ("viz_episodes", int, "episodes to film (1)"),
    "--nontrainable-num-envs": ("nontrainable_num_envs", int, "environments of a nontrainable case (1)"),
    "--nontrainable-max-samples": ("nontrainable_max_samples", int, "samples of bootstrap_train (128)"),
    "--hang-seconds": ("hang_seconds", float, "a process without a sign of life for so long hangs (full: 300)"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup(NAME, "acceptance suite (pytest -m longcycle, docs/longcycle.md)")
    add = group.addoption
    add("--longcycle-profile", metavar="NAME", help="full or smoke (default: full with a CUDA device, else smoke)")
    add("--cases", metavar="A,B", help="cases by name, args file name or its stem (default: all)")
    add("--include-nontrainable", dest="nontrainable", action="store_true", default=True, help="(default)")
    add("--exclude-nontrainable", dest="nontrainable", action="store_false", help="only cases that train")
    add("--root-out", metavar="NAME", help="folder below output/train (default: longcycle, longcycle_smoke)")
    add("--resume-skip-status", choices=("ok", "all", "none"), default="ok",
        help="reuse cases that passed (ok), every recorded end (all), or nothing (none)")
    add("--engine-config", metavar="FILE", default=DEFAULT_ENGINE, help=f"physics of all cases ({DEFAULT_ENGINE})")
    add("--devices-train", metavar="D,D", help="training devices (default: CUDA devices, up to two; cpu,cpu in smoke)")
    add("--devices-nontrainable", metavar="D", help="device of nontrainable cases (default: the first training device)")
    add("--env-ladder", metavar="N,N", help="environments per device to try (default: the case's, halved down to 32)")
    add("--no-scale-steps", action="store_true", help="keep steps_per_iter on smaller rungs of the ladder")
    add("--long-mode", choices=("max_samples", "time_budget"), default="max_samples", help="when long_train ends")
    add("--long-budget-hours", type=float, metavar="H", help="for --long-mode time_budget, all sessions together")
    add("--long-success-policy", choices=("strict_exit", "budget_checkpoint"), default="strict_exit",
        help="budget_checkpoint: long_train counts when it reached its budget and left a model, however it ended")
    add("--train-env", metavar="K=V,K=V", help="environment of training stages instead of the NCCL settings; or none")
    add("--runner", metavar="COMMAND", help="program that runs a stage (default: {python} mimickit/run.py)")
    add("--longcycle-profiles", metavar="FILE", default=str(PROFILES_FILE), help="sizes and stage environments")
    add("--longcycle-targets", metavar="FILE", default=str(TARGETS_FILE), help="learning gates and ladders per case")
    for option, (_, kind, meaning) in OVERRIDES.items():
        add(option, type=kind, metavar="N" if kind is int else "S", help=meaning)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{NAME}: a whole case through training, test and visualisation")
    if not asked_for(config):
        if config.getoption("--cases"):
            raise pytest.UsageError("--cases chooses among the acceptance cases: add -m longcycle")
        return
    if config.pluginmanager.has_plugin("lfplugin"):  # ours knows interrupted and never started cases too
        config.pluginmanager.unregister(name="lfplugin")
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"  # the message tells all, the fixtures' values only hide it
    try:
        settings = make_settings(config)
        cases = select(config.rootpath, parse_list(config.getoption("--cases")), config.getoption("nontrainable"))
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    config.pluginmanager.register(Session(config, settings, cases), "longcycle-session")


def asked_for(config: pytest.Config) -> bool:
    """Whether ``-m`` selects the acceptance cases; without ``-m`` they never run."""
    expression = config.getoption("-m") or ""
    return bool(re.search(r"\blongcycle\b", expression)) and not re.search(r"\bnot\s+longcycle\b", expression)


def nothing_else(config: pytest.Config) -> bool:
    """Whether ``-m`` selects only the acceptance cases, so that no other test file needs to be imported."""
    return set(re.findall(r"\w+", config.getoption("-m") or "")) == {NAME}


def sessions_beside(config: pytest.Config) -> int:
    if hasattr(config, "workerinput"):
        return int(config.workerinput["workercount"])
    return int(getattr(config.option, "numprocesses", None) or 1)


def make_settings(config: pytest.Config) -> Settings:
    """All options together. Raises UserError for values that cannot be."""
    option = config.getoption
    data, cuda = load_profiles(Path(option("--longcycle-profiles"))), visible_cuda()
    name, reason = choose_profile(option("--longcycle-profile"), data.profiles, cuda)
    given = {key: value for flag, (key, *_) in OVERRIDES.items() if (value := option(flag)) is not None}
    if negative := [flag for flag, (key, *_) in OVERRIDES.items() if given.get(key, 0) < 0]:
        raise UserError(f"{negative[0]} {option(negative[0])}: must not be negative")
    profile = data.profiles[name].model_copy(update=given)
    long_mode, hours = option("--long-mode"), option("--long-budget-hours")
    if (long_mode == "time_budget") != (hours is not None) or (hours is not None and hours <= 0):
        raise UserError("--long-mode time_budget and --long-budget-hours H (above 0) belong together")
    pool, per_case = choose_devices(parse_list(option("--devices-train")), name, cuda, profile.cpu_processes,
                                    sessions_beside(config))
    root = option("--root-out") or (NAME if name == "full" else f"{NAME}_{name}")
    base = config.rootpath / "output" / "train"
    out = (base / root).resolve()
    if not out.is_relative_to(base.resolve()) or out == base.resolve():
        raise UserError(f"--root-out {root}: give a folder name below output/train")
    return Settings(
        repo=config.rootpath, out=base / root, profile_name=name, profile_reason=reason, profile=profile,
        targets=load_targets(Path(option("--longcycle-targets"))),
        train_env=parse_env(option("--train-env"), data.train_env), viz_env=data.viz_env, pool=pool, per_case=per_case,
        view_devices=tuple(parse_list(option("--devices-nontrainable")) or ()),
        engine_config=option("--engine-config"), runner=parse_runner(option("--runner")),
        ladder=parse_ladder(option("--env-ladder")), scale_steps=not option("--no-scale-steps"),
        long_mode=long_mode, long_budget_hours=hours, long_success_policy=option("--long-success-policy"),
        resume_skip_status=option("--resume-skip-status"))


# selection


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Other test files are not imported for the acceptance suite: they load torch and more."""
    if collection_path.suffix == ".py" and collection_path.name != "test_longcycle.py" and nothing_else(config):
        return True
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if CASE not in metafunc.fixturenames:
        return
    session = metafunc.config.pluginmanager.get_plugin("longcycle-session")
    cases = session.cases if session is not None else select(metafunc.config.rootpath, None)
    metafunc.parametrize(CASE, cases, ids=[case.name for case in cases])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.get_closest_marker(NAME) is not None]
    session = config.pluginmanager.get_plugin("longcycle-session")
    if session is None:
        deselect(config, items, ours)
    else:
        deselect(config, items, session.choose(ours))


def deselect(config: pytest.Config, items: list[pytest.Item], out: list[pytest.Item]) -> None:
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session")
def longcycle_settings(pytestconfig: pytest.Config) -> Settings:
    return pytestconfig.pluginmanager.get_plugin("longcycle-session").settings


@pytest.fixture(scope="session")
def longcycle_ledger(pytestconfig: pytest.Config) -> Ledger:
    return pytestconfig.pluginmanager.get_plugin("longcycle-session").ledger


class Session:
    """Hooks of one session that runs acceptance cases: the only process, or the controller or a worker of xdist."""

    def __init__(self, config: pytest.Config, settings: Settings, cases: list[Case]) -> None:
        self.config, self.settings, self.cases = config, settings, cases
        self.ledger = Ledger(settings.out, settings.repo)
        self.worker = getattr(config, "workerinput", {}).get("workerid", "")
        self.idle = bool(config.getoption("--collect-only"))  # nothing runs, nothing is written
        self.selected: list[str] = []
        self.passed_before: set[str] = set()
        self.lock: IO[str] | None = None
        self.live: LiveLine | None = None
        if self.worker:  # a killed controller must not leave workers behind
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        else:
            self.terminal = own_stdout()
            if getattr(config.option, "dist", "no") == "load":
                config.option.dist = "worksteal"  # cases take hours: none may wait behind another

    def pytest_report_header(self) -> str:
        return f"longcycle: {self.settings.header()}"

    def pytest_sessionstart(self) -> None:
        if self.idle:
            return
        signal.signal(signal.SIGTERM, on_sigterm)
        if self.worker:
            return
        self.lock = try_lock(self.settings.out / ".session.lock")
        if self.lock is None:
            raise pytest.UsageError(f"another session works in {self.settings.relative(self.settings.out)}; "
                                    "wait for it, or give --root-out NAME")
        self.settings.stop_file.unlink(missing_ok=True)
        close_open_stages(self.ledger, self.settings)
        self.session_before = self.ledger.state().session.get("session")

    def choose(self, items: list[pytest.Item]) -> list[pytest.Item]:
        """Note the selected cases, add the back-stop timeout, and name the items that ``--lf`` leaves out."""
        real = [item for item in items if isinstance(item.callspec.params[CASE], Case)]
        by_name = {item.callspec.params[CASE].name: item for item in real}
        self.selected = sorted(by_name)
        state = self.ledger.state()
        if self.config.getoption("timeout", None) is None and self.config.pluginmanager.has_plugin("timeout"):
            for item in items:
                item.add_marker(pytest.mark.timeout(self.back_stop(), method="signal"))
        none = [item for item in items if item not in real]  # pytest's stand-in for an empty list of cases
        if not self.config.getoption("lf", False):
            return none
        self.passed_before = {name for name, item in by_name.items() if passed(
            state.case(name), case_key(self.settings, item.callspec.params[CASE]))}
        return [*none, *(by_name[name] for name in self.passed_before)]

    def back_stop(self) -> float:
        """Seconds after which pytest-timeout ends a case; 0 (never) while a stage has no timeout."""
        profile = self.settings.profile
        stages = (profile.probe_timeout, profile.long_timeout, profile.test_timeout, profile.viz_timeout)
        return 0 if 0 in stages else 16 * sum(stages)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write what is known at the start (xdist: by the first worker, the controller collects nothing)."""
        distributing = not self.worker and sessions_beside(self.config) > 1
        if self.idle or distributing or self.worker not in ("", "gw0"):
            return
        settings, out = self.settings, self.settings.out
        chosen = [case for case in self.cases if case.name in self.selected]
        table = manifest_rows(settings.repo, chosen, settings.engine_config)
        if table:
            write_text(out / "case_manifest.tsv", to_tsv(list(table[0]), table))
        write_json(out / "environment.json", describe(settings))
        self.ledger.append("session_start", session=uuid.uuid4().hex[:8], pid=os.getpid(), cases=self.selected,
                           passed_before=sorted(self.passed_before), profile=settings.profile_name, command=sys.argv)
        for name in sorted(self.passed_before):
            self.ledger.append("case_reused", case=name)

    def pytest_runtestloop(self) -> None:
        if not self.idle and not self.worker:
            self.live = LiveLine(self.ledger, self.terminal)
            self.live.start()

    def pytest_keyboard_interrupt(self) -> None:
        """xdist: tell the workers, and wait until their stages have ended with a checkpoint."""
        if self.worker or self.idle or sessions_beside(self.config) <= 1:
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
        if self.worker or self.lock is None:
            return
        state = self.ledger.state()
        self.started = state.session.get("session") != self.session_before
        if self.started:
            interrupted = exitstatus == pytest.ExitCode.INTERRUPTED
            self.ledger.append("session_end", status="interrupted" if interrupted else "finished")
            selected = state.session["cases"]
            complete = all(name in state.touched and state.case(name).passed for name in selected)
            if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and selected and complete:
                session.exitstatus = pytest.ExitCode.OK  # --lf with nothing left to do
            elif exitstatus == pytest.ExitCode.OK and not complete:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self.lock.close()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.worker or self.lock is None or not self.started:
            return
        state = self.ledger.state()
        names = state.session["cases"]
        cases = [case for case in self.cases if case.name in names]
        terminalreporter.section(NAME)
        if not cases:
            terminalreporter.line("no case selected: look at -k, --cases, --exclude-nontrainable and args/")
            return
        before = set(state.session["passed_before"])
        if before == set(names):
            terminalreporter.line("--lf: every selected case has passed already, nothing to run")
        reused = before | {event["case"] for event in self.events_of_session() if event["event"] == "case_reused"}
        for line in report.summary(state, cases, reused, self.settings):
            terminalreporter.line(line, red=line.startswith("FAILED"))

    def events_of_session(self) -> list[dict[str, Any]]:
        events = self.ledger.events()
        begin = max(i for i, event in enumerate(events) if event["event"] == "session_start")
        return events[begin:]


def on_sigterm(number: int, frame: object) -> None:
    """End like Ctrl-C does: the running stage writes its checkpoint, the tables and the summary are written."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pytest.exit("SIGTERM")


def own_stdout() -> IO[str]:
    """A copy of the real standard output, which works while pytest captures."""
    return os.fdopen(os.dup(sys.__stdout__.fileno()), "w", buffering=1, errors="replace")


class LiveLine(threading.Thread):
    """Shows what runs: one line that updates itself on a terminal, a line every 15 s and at every stage elsewhere."""

    def __init__(self, ledger: Ledger, terminal: IO[str]) -> None:
        super().__init__(name="longcycle-progress", daemon=True)
        self.ledger, self.terminal = ledger, terminal
        self.ended = threading.Event()
        self.shown: Any = None
        self.written = 0.0

    def run(self) -> None:
        updating = self.terminal.isatty()
        while not self.ended.wait(1.0 if updating else 0.5):
            progress = self.ledger.refresh_progress()
            stages = [(run["case"], run["stage"], run["rung"]) for run in progress["running"]]
            if not stages:
                continue
            fresh = stages != self.shown
            if updating:
                columns = os.get_terminal_size(self.terminal.fileno()).columns or 120
                start = "\n" if fresh else "\r"
                self.terminal.write(f"{start}{report.live_line(progress)[:columns - 1]}\x1b[K")
            elif fresh or time.monotonic() - self.written >= LINE_EVERY:
                self.terminal.write(f"{'' if self.shown else chr(10)}{report.live_line(progress)}\n")
                self.written = time.monotonic()
            self.terminal.flush()
            self.shown = stages

    def stop(self) -> None:
        self.ended.set()
        self.join(timeout=10.0)
        with contextlib.suppress(OSError):
            self.terminal.close()
