"""``--lf`` after the cause of a fault is gone."""

import pytest

from tests.longcycle.conftest import CASES, TRAINED, project, sample_videos  # noqa: F401


@pytest.mark.parametrize("stage", ["test", "viz"])
def test_a_stage_that_ended_well_but_met_nan_is_run_again(project, stage):  # noqa: F811
    """It was recorded as ended well; the verdict came later."""
    project.rules({"stage": stage, "do": "nan_measure"})
    assert project.run("--cases", TRAINED).ret == 1
    assert project.rows()[TRAINED]["failure_class"] == "nan"
    project.forget_calls()
    project.rules()
    assert project.run("--cases", TRAINED, "--lf").ret == 0
    assert project.stages() == (["test", "viz"] if stage == "test" else ["viz"])


def test_dropped_contacts_are_looked_for_again(project):  # noqa: F811
    project.rules({"stage": "test", "do": "overflow"})
    assert project.run("--cases", CASES[2]).ret == 1
    project.forget_calls()
    assert project.run("--cases", CASES[2], "--lf").ret == 1
    assert project.stages(CASES[2]) == ["test", "viz"]
    project.rules()
    assert project.run("--cases", CASES[2], "--lf").ret == 0
