"""Learning curves: reading logs, and what is drawn of them."""

import re

import numpy as np
import pytest
from PIL import Image

from mimickit.util import plot
from mimickit.util.curves import Curves, joined, read_curves, smooth
from mimickit.util.failures import AssetMissingError, UserError

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


TEXT = "Iteration   Samples Test_Return\n0 1000 1.0\n10 2000 3.0\n20 3000 nan\n"


def test_logs_by_column_name(tmp_path):
    (tmp_path / "log.txt").write_text(TEXT)
    curves = read_curves(tmp_path)
    assert curves.column("Samples").tolist() == [1000.0, 2000.0, 3000.0]
    assert curves.column("Test_Return")[:2].tolist() == [1.0, 3.0] and np.isnan(curves.column("Test_Return")[2])
    with pytest.raises(UserError, match=r"no column 'Test_Retrun'.*did you mean 'Test_Return'.*there are: Iteration"):
        curves.column("Test_Retrun")


def test_logs_of_others(tmp_path):
    """Commas, and the lone carriage returns of MimicKit."""
    (tmp_path / "log.txt").write_bytes(b"Iteration,Samples\r0,10\r1,20\r")
    assert read_curves(tmp_path / "log.txt").column("Samples").tolist() == [10.0, 20.0]


@pytest.mark.parametrize(("text", "message"), [
    ("A B\n1 2\n3\n", "row 3 has 1 cells for 2 columns"), ("A B\n1 x\n", "could not convert string to float: 'x'")])
def test_broken_logs(tmp_path, text, message):
    (tmp_path / "log.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_curves(tmp_path)


def test_missing_log(tmp_path):
    with pytest.raises(AssetMissingError, match="no such log"):
        read_curves(tmp_path)


def test_parts_of_a_run(tmp_path):
    for name, text in (("a", "Samples X Y\n1 2 3\n"), ("b", "Samples Y\n2 5\n")):
        (tmp_path / name).write_text(text)
    whole = joined([read_curves(tmp_path / "a"), read_curves(tmp_path / "b")], "both")
    assert {name: values.tolist() for name, values in whole.columns.items()} == {"Samples": [1, 2], "Y": [3, 5]}


def test_evaluations_beside_training_stand_where_their_policy_was(tmp_path):
    """Also after a trial that paused for its evaluations, whose log does not say what they are of."""
    for name, text in (("a", "Samples Test_Return Test_Episodes\n10 1 4\n20 2 4\n"),
                       ("b", "Samples Test_Return Test_Episodes Test_Samples\n"
                             "30 2 4 20\n40 3 4 30\n50 3 4 30\n60 5 4 50\n")):
        (tmp_path / name).write_text(text)
    parts = [read_curves(tmp_path / name) for name in "ab"]
    samples, values = joined(parts, "both").line("Samples", "Test_Return")
    assert samples.tolist() == [10, 20, 30, 50] and values.tolist() == [1, 2, 3, 5]
    assert "Test_Samples" not in joined(parts[:1], "one").columns


def test_smoothing():
    assert smooth(np.array([1.0, 3.0, 8.0]), 2).tolist() == [1.0, 2.0, 5.5]
    assert smooth(np.array([1.0, 3.0, 8.0]), 1).tolist() == [1.0, 3.0, 8.0]


def test_plotting(tmp_path, capsys):
    (tmp_path / "log.txt").write_text(TEXT)
    out = tmp_path / "curves.png"
    assert plot.main([str(tmp_path), str(tmp_path / "log.txt"), "--labels", "one", "two", "--y", "Test_Return",
                          "Iteration", "--out", str(out)]) == 0
    picture = np.asarray(Image.open(out).convert("RGB")).reshape(-1, 3)
    assert {(31, 119, 180), (255, 127, 14)} <= {tuple(color) for color in picture}  # both runs' lines
    assert plot.main([str(tmp_path), "--list"]) == 0
    assert re.search(r"Samples +3000\n", capsys.readouterr().out)


@pytest.mark.parametrize(("words", "message"), [
    (["--y", "Test_Retrun"], "did you mean 'Test_Return'"), (["--x", "Smaples"], "did you mean 'Samples'"),
    (["--labels", "a", "b"], "2 names for 1 logs"), (["--out", "x.bmp"], "pictures can end in"),
    (["--smooth", "0"], "at least 1")])
def test_mistakes_are_explained(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.txt").write_text(TEXT)
    assert plot.main([".", "--y", "Test_Return", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_log_without_an_evaluation_shows_training(tmp_path, monkeypatch, capsys):
    """Beside the log unless told otherwise; of several runs in the working directory."""
    header = "Iteration Samples Test_Return Test_Episode_Length Train_Return Train_Episode_Length\n"
    log, elsewhere = tmp_path / "run/log.txt", tmp_path / "elsewhere"
    log.parent.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    log.write_text(header)
    assert plot.main([str(log.parent)]) == 2
    assert "nothing to draw: no row has Test_Return or" in capsys.readouterr().err and not list(tmp_path.rglob("*.png"))
    log.write_text(f"{header}3 512 nan nan 2.5 9\n")
    assert plot.main([str(log.parent), "--y", "Test_Return"]) == 2, "what was asked for is not there"
    log.write_text("Iteration Samples Train_Return Train_Episode_Length\n3 512 2.5 9\n")
    for target in (log, log.parent):
        assert plot.main([str(target)]) == 0 and capsys.readouterr().out == f"{log.parent}/log.png\n"
    log.write_text(f"{header}3 512 nan nan 2.5 9\n")
    assert plot.main([str(log), str(log)]) == 0 and [path.name for path in elsewhere.iterdir()] == ["log.png"]
