"""The acceptance suite: every case of args/ through its whole life. ``pytest -m longcycle``, see docs/longcycle.md.

The fixtures run the stages in order and hand on how they ended; they assert nothing. The test judges.
"""

import pytest

from mimickit.longcycle.report import explain, properties


@pytest.fixture
def case_run(longcycle_case, longcycle_session):
    """The case with its devices leased; with ``--from-results`` what was recorded of it."""
    with longcycle_session.open_case(longcycle_case) as run:
        yield run


@pytest.fixture
def trained(case_run):
    """probe_train and long_train (or bootstrap_train), down the ladder until one attempt fits."""
    return case_run.train()


@pytest.fixture
def tested(case_run, trained):
    return case_run.test(trained)


@pytest.fixture
def transferred(case_run, tested):
    return case_run.transfer(tested)


@pytest.fixture
def viewed(case_run, tested, transferred):
    return case_run.view(tested)


@pytest.mark.longcycle
def test_longcycle(case_run, trained, tested, viewed, request):
    verdict = case_run.finish()
    request.node.user_properties += properties(case_run.case, case_run.final_row)  # for --junitxml
    reason = explain(case_run.case, verdict, case_run.stages, case_run.reused_row, case_run.settings.repo)
    assert verdict.final_ok, reason
