"""Learning curves: what is drawn of a log."""

import numpy as np

from mimickit.util.curves import Curves

LOG = {"Samples": [1.0, 2.0, 3.0, 4.0], "Train_Return": [5.0, 6.0, 7.0, 8.0], "Test_Return": [0.0, 3.0, 3.0, 4.0],
       "Test_Episodes": [0.0, 128.0, 128.0, 64.0], "Test_Samples": [0.0, 1.0, 1.0, 3.0]}


def curves(**changes):
    return Curves("run", {name: np.array(values) for name, values in {**LOG, **changes}.items()})


def test_evaluations_beside_training_stand_at_their_policys_samples_once():
    across, values = curves().line("Samples", "Test_Return")
    assert (across.tolist(), values.tolist()) == ([1.0, 3.0], [3.0, 4.0])
    assert curves(Iteration=[0.0, 1.0, 2.0, 3.0]).line("Iteration", "Test_Return")[0].tolist() == [1.0, 3.0]


def test_other_columns_are_drawn_row_by_row():
    assert curves().line("Samples", "Train_Return")[1].tolist() == LOG["Train_Return"]
    old = curves()
    del old.columns["Test_Samples"]
    assert old.line("Samples", "Test_Return")[1].tolist() == LOG["Test_Return"]


def test_an_older_log_that_a_newer_run_continued():
    """Its new rows say nothing in the older column: their evaluations are their own."""
    across, values = curves(Test_Samples=[0.0, 1.0, np.nan, np.nan]).line("Samples", "Test_Return")
    assert (across.tolist(), values.tolist()) == ([1.0, 3.0, 4.0], [3.0, 3.0, 4.0])


def test_rows_that_were_not_evaluated_have_no_point():
    now = curves(Test_Return=[3.0, np.nan, 4.0, np.nan], Test_Episodes=[4.0, 0.0, 4.0, 0.0])
    del now.columns["Test_Samples"]
    across, values = now.line("Samples", "Test_Return")
    assert (across.tolist(), values.tolist()) == ([1.0, 3.0], [3.0, 4.0])
    assert now.line("Samples", "Train_Return")[0].tolist() == LOG["Samples"]
