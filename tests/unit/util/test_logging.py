"""The log table, progress and heartbeat files."""

import json
import math
import os
import sys
import warnings
from types import SimpleNamespace

import pytest

from mimickit.util.failures import UserError
from mimickit.util.logging import Heartbeat, Logger, Progress, column_name, format_row, print_row, read_log


def row(iteration, **more):
    return {"Iteration": iteration, "Wall_Time": 0.1, "Samples": 100 * (iteration + 1), "Test_Return": 1 / 3, **more}


def test_table(tmp_path):
    logger = Logger(tmp_path)
    logger.write(row(0))
    logger.write(row(100))
    text = (tmp_path / "log.txt").read_bytes().decode()
    assert "\r" not in text
    header, first, second = text.splitlines()
    assert header == f"{'Iteration':<25}{'Wall_Time':<25}{'Samples':<25}{'Test_Return':<25}"
    assert first == f"{'0':<25}{'0.1':<25}{'100':<25}{'0.3333333333333333':<25}"
    assert second.split()[0] == "100"
    assert text.endswith("\n")


def test_long_cells_keep_a_blank():
    assert format_row(["x" * 24, "y" * 25, "z"]) == "x" * 24 + " " + "y" * 25 + " " + f"{'z':<25}\n"


def test_a_new_run_truncates_and_a_continued_one_keeps_earlier_rows(tmp_path):
    first = Logger(tmp_path)
    for iteration in (0, 100, 200):
        first.write(row(iteration))
    continued = Logger(tmp_path, resume_iteration=101)
    continued.write(row(200))
    columns, rows = read_log(tmp_path / "log.txt")
    assert columns == list(row(0))
    assert [r[0] for r in rows] == ["0", "100", "200"]
    Logger(tmp_path)
    assert (tmp_path / "log.txt").read_text() == ""


def test_a_torn_last_row_is_dropped_on_continuing(tmp_path):
    logger = Logger(tmp_path)
    logger.write(row(0))
    with open(tmp_path / "log.txt", "a") as file:
        file.write("100   0.1")
    Logger(tmp_path, resume_iteration=500).write(row(500))
    assert [r[0] for r in read_log(tmp_path / "log.txt")[1]] == ["0", "500"]


@pytest.mark.parametrize(("text", "message", "left"), [
    ("Iteration Samples\n0 100\n3 400 0.5\nIteration Samples\n5 six\n9 nan\n", "4 of 5 lines are no rows of 2 numbers",
     ["0"]),
    ("Iteration Samples\n0 100\n8 900\n4 500\n", "holds rows of more than one run", ["0", "8", "4"]),
    ("\x00\x00\n", "is no log of this program", []),
    ("Epoch Loss\n1 2\n", "is no log of this program (its first line names no Iteration and Samples)", []),
])
def test_a_torn_or_mixed_log_is_told_in_one_sentence(tmp_path, capsys, text, message, left):
    (tmp_path / "log.txt").write_text(text)
    Logger(tmp_path, resume_iteration=10).write({"Iteration": 10, "Samples": 1100})
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said and str(tmp_path / "log.txt") in said
    assert [r[0] for r in read_log(tmp_path / "log.txt")[1]] == [*left, "10"]
    if not left:
        assert (tmp_path / "log_1.txt").read_text() == text, "kept under another name"


def test_tensorboard_goes_on_where_the_log_does(tmp_path):
    """Steps that are written again after a resume are shown once."""
    from tensorboardX.proto.event_pb2 import Event

    first = Logger(tmp_path, "tb")
    for iteration in (0, 10, 20):
        first.write(row(iteration))
    first.close()
    again = Logger(tmp_path, "tb", resume_iteration=15)
    again.write(row(20))
    again.close()
    purges = []
    for file in sorted(tmp_path.glob("events.out.tfevents*")):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12:12 + size])
            purges += [event.step] if event.HasField("session_log") else []
            data = data[16 + size:]
    assert purges == [1101], "the last row that stays has 1,100 samples"


def test_wandb_goes_on_under_the_same_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **keys: calls.append(keys)))
    Logger(tmp_path, "wandb", run="abc")
    Logger(tmp_path, "wandb", resume_iteration=3, run="abc")
    assert [(call["id"], call["resume"]) for call in calls] == [("abc", "allow")] * 2


def test_late_and_absent_columns(tmp_path):
    logger = Logger(tmp_path)
    logger.write(row(0, Extra=1.0))
    with pytest.warns(UserWarning, match="Late"):
        logger.write(row(1, Late=2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # warned once
        logger.write(row(2, Late=2.0))
    columns, rows = read_log(tmp_path / "log.txt")
    assert columns == [*row(0), "Extra"]
    assert rows[1][-1] == "nan"


def test_reader_accepts_carriage_returns_and_commas(tmp_path):
    (tmp_path / "log.txt").write_bytes(b"A   B\r1   2\r3,4\r\n")
    assert read_log(tmp_path / "log.txt") == (["A", "B"], [["1", "2"], ["3", "4"]])


def test_other_ranks_write_nothing(tmp_path):
    Logger(tmp_path, enabled=False).write(row(0))
    Progress(tmp_path, 100, enabled=False).advance(0, 10)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_tags(tmp_path, monkeypatch):
    import tensorboardX

    scalars = []
    monkeypatch.setattr(tensorboardX.SummaryWriter, "add_scalar", lambda _, tag, __, step: scalars.append((tag, step)))
    logger = Logger(tmp_path, "tb")
    logger.write(row(0, Critic_Loss=1.0, Root_Pos_Err=0.1), measures=["Root_Pos_Err"])
    logger.close()
    assert scalars == [
        ("1_Info/Iteration", 100), ("1_Info/Wall_Time", 100), ("1_Info/Samples", 100), ("0_Main/Test_Return", 100),
        ("Misc/Critic_Loss", 100), ("2_Env/Root_Pos_Err", 100),
    ]


def test_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        Logger(tmp_path, "wandb")


def test_column_names():
    assert column_name("root_ang_vel_err") == "Root_Ang_Vel_Err"
    assert column_name("Adv_Mean") == "Adv_Mean"


def test_progress_speed_and_file(tmp_path, monkeypatch):
    clock = iter(x * 2.0 for x in range(100))
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(tmp_path, 1000)
    progress.enter("training")
    for samples in (0, 100, 200):
        now[0] = next(clock)
        progress.advance(samples // 100, samples)
    found = json.loads((tmp_path / "progress.json").read_text())
    assert {k: found[k] for k in ("iteration", "samples", "max_samples", "samples_per_s", "eta_s", "phase")} == {
        "iteration": 2, "samples": 200, "max_samples": 1000, "samples_per_s": 50.0, "eta_s": 16.0, "phase": "training"}
    assert "20.0%" in progress.describe()
    progress.advance(3, 1100)
    assert progress.describe().startswith("iteration 3 | 1.1k samples | "), "a whole iteration, beyond the limit"
    progress.advance(3, 300)  # within the same second
    assert json.loads((tmp_path / "progress.json").read_text())["samples"] == 200
    progress.enter("done")
    assert json.loads((tmp_path / "progress.json").read_text())["phase"] == "done"


def test_console_rounds_to_three_digits(capsys, tmp_path):
    print_row({"Iteration": 12345, "Wall_Time": 1.51, "Test_Return": 1 / 3}, Progress(tmp_path, 2**63 - 1))
    text = capsys.readouterr().out
    assert "Iteration 12345" in text and "Wall_Time 1h30m" in text
    assert "Test_Return 0.333" in text
    assert "0.3333" not in text


def test_heartbeat_is_touched_at_most_once_a_second(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    heartbeat = Heartbeat(tmp_path, 3)
    path = tmp_path / "heartbeat" / "rank_3"
    os.utime(path, (1.0, 1.0))
    now[0] = 100.5
    heartbeat.beat()
    assert path.stat().st_mtime == 1.0
    now[0] = 101.5
    heartbeat.beat()
    assert path.stat().st_mtime > 1.0


def test_rows_that_were_not_evaluated(tmp_path):
    """They have no tags elsewhere, and a continued run drops them."""
    logger, seen = Logger(tmp_path), []
    logger._sink = SimpleNamespace(write=lambda tags, step: seen.append(sorted(tags)), close=lambda: None)
    logger.write(row(0))
    logger.write(row(1, Test_Return=math.nan))
    assert [tag for tag in seen[0] if tag not in seen[1]] == ["0_Main/Test_Return"]
    Logger(tmp_path, resume_iteration=2).write(row(2))
    assert [r[0] for r in read_log(tmp_path / "log.txt")[1]] == ["0", "2"]
