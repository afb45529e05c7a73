"""The pytest plugin of the acceptance suite: what is registered when, and which tests are selected.

The table of options is in options.py, a session that runs cases in session.py, one that judges recorded results in
recorded.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mimickit.cases import Case, select
from mimickit.engines.engine_config import load_engine_config
from mimickit.longcycle.budget import within_budget
from mimickit.longcycle.cases import parse_shard, part
from mimickit.longcycle.environment import require_modules, smallest_gpu
from mimickit.longcycle.ledger import Ledger
from mimickit.longcycle.lifecycle import case_key, reusable
from mimickit.longcycle.options import NAME, add_options, automatic, make_settings, option_values
from mimickit.longcycle.recorded import RecordedSession
from mimickit.longcycle.session import CASE, CASES_PER_DEVICE, DEFERRED, Session, side_by_side
from mimickit.longcycle.settings import YARDSTICK, Settings, parse_list
from mimickit.longcycle.yardstick import yardstick_cases
from mimickit.util.assets import locate
from mimickit.util.failures import UserError
from mimickit.util.names import nearest

PLUGIN = "longcycle-session"


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{NAME}: a whole case through training, test and visualisation")
    if not asked_for(config):
        for option in ("--cases", "--shard", "--from-results"):
            if config.getoption(option):
                raise pytest.UsageError(f"{option} is about the acceptance cases: add -m longcycle")
        return
    if config.pluginmanager.has_plugin("lfplugin"):  # the suite's own --lf knows interrupted cases too
        config.pluginmanager.unregister(name="lfplugin")
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"  # the message says everything
    try:
        values = option_values(config)
        values["cases-per-device"] = getattr(config, "workerinput", values).get(CASES_PER_DEVICE)
        settings = make_settings(values, config.rootpath, side_by_side(config))
        names = parse_list(values["cases"])
        cases = part(yardstick_cases(config.rootpath, names) if settings.case_set == YARDSTICK else
                     select(config.rootpath, names, not values["exclude-nontrainable"]), parse_shard(values["shard"]))
        if values["budget-gpu-hours"] is not None and not values["from-results"]:
            settings, cases = affordable(config, settings, cases, values["budget-gpu-hours"])
        if not values["from-results"]:
            check_gates(settings, cases, values["longcycle-targets"])
            load_engine_config(locate(settings.engine_config, config.rootpath))  # of all cases
            if values["require-deps"] and not hasattr(config, "workerinput"):
                require_modules(parse_list(values["require-deps"]))
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    kind = RecordedSession if values["from-results"] else Session
    config.pluginmanager.register(kind(config, settings, cases), PLUGIN)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """``-n auto`` of the acceptance suite: as many cases at once as the GPUs hold."""
    if not asked_for(config):
        return None
    try:
        workers, slots = automatic(option_values(config), len(os.sched_getaffinity(0)), smallest_gpu())
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    config.option.cases_per_device = slots
    return workers


def affordable(config: pytest.Config, settings: Settings, cases: list[Case],
               hours: float) -> tuple[Settings, list[Case]]:
    """The settings with what is deferred, and the cases that the budget allows, as xdist's controller chose them."""
    if hasattr(config, "workerinput"):
        deferred = config.workerinput[DEFERRED]
        return replace(settings, deferred=tuple(deferred)), [case for case in cases if case.name not in deferred]
    state = Ledger(settings.out, settings.repo).state()
    done = [case.name for case in cases if reusable(state.case(case.name), case_key(settings, case),
                                                    settings.resume_skip_status)]
    choice = within_budget(settings, cases, hours, done)
    deferred = tuple(case.name for case in choice.deferred)
    return (replace(settings, notes=(*settings.notes, choice.note(hours)), deferred=deferred),
            [case for case in cases if case in choice.chosen])


def check_gates(settings: Settings, cases: Sequence[Case], file: str) -> None:
    """Raise UserError where gates decide and a case has none: better now than after its training."""
    without = [case.name for case in cases if not settings.target(case.name).gates]
    if settings.profile.enforce_gates and without:
        raise UserError(f"{file}: no gates for {', '.join(without)}{nearest(without[0], settings.targets)}; "
                        f"profile {settings.profile_name} needs them")


def asked_for(config: pytest.Config) -> bool:
    """Whether ``-m`` selects the acceptance cases; without ``-m`` they never run."""
    expression = config.getoption("-m") or ""
    return bool(re.search(r"\blongcycle\b", expression)) and not re.search(r"\bnot\s+longcycle\b", expression)


def nothing_else(config: pytest.Config) -> bool:
    """Whether ``-m`` selects the acceptance cases alone, so that no other test file needs to be imported."""
    return set(re.findall(r"\w+", config.getoption("-m") or "")) == {NAME}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip all other test files when only the acceptance suite runs: they load torch and more."""
    if collection_path.suffix == ".py" and collection_path.name != "test_longcycle.py" and nothing_else(config):
        return True
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if CASE not in metafunc.fixturenames:
        return
    session = metafunc.config.pluginmanager.get_plugin(PLUGIN)
    cases = session.cases if session is not None else select(metafunc.config.rootpath, None)
    metafunc.parametrize(CASE, cases, ids=[case.name for case in cases])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.get_closest_marker(NAME) is not None]
    session = config.pluginmanager.get_plugin(PLUGIN)
    if session is None:
        deselect(config, items, ours)
    else:
        deselect(config, items, session.choose(ours))


def deselect(config: pytest.Config, items: list[pytest.Item], out: list[pytest.Item]) -> None:
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session")
def longcycle_session(pytestconfig: pytest.Config) -> Session | RecordedSession:
    """The session that opens cases: to run them, or to judge what was recorded of them."""
    return pytestconfig.pluginmanager.get_plugin(PLUGIN)
