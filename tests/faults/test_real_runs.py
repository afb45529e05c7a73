"""The most valuable faults in the real trainer with real physics, under the suite's watchdog."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from mimickit.longcycle import guard, stages
from mimickit.util.checkpoint import find_latest
from mimickit.util.logging import read_log
from tests.faults.faulty_run import ROOT, Fault
from tests.faults.single_stage import processes_left, run_stage, stage_spec

pytestmark = pytest.mark.sim
ITERATION = 4 * 8  # samples
SIZES = ["--num_envs", "4", "--set", "env.episode_length=0.5", "agent.steps_per_iter=8", "agent.test_episodes=2",
         "agent.actor_epochs=1", "agent.critic_epochs=1", "agent.iters_per_output=2"]


def training(folder, *flags, fault=None, ranks=1, **changes):
    """The stage that trains the humanoid on the CPU, with a fault in it."""
    if fault is not None:
        (folder / "fault.json").write_text(json.dumps(asdict(fault)))
    else:
        (folder / "fault.json").unlink(missing_ok=True)
    argv = [sys.executable, str(ROOT / "tests/faults/faulty_run.py"), *flags, *SIZES,
            "--arg_file", "args/deepmimic_humanoid_ppo_args.txt", "--engine_config", "data/engines/newton_engine.yaml",
            "--devices", *["cpu"] * ranks, "--visualize", "false", "--rand_seed", "7", "--out_dir", str(folder / "out")]
    env = {"FAULT_FILE": str(folder / "fault.json"), "CUDA_VISIBLE_DEVICES": ""}
    return stage_spec(folder, argv, cwd=ROOT, env=env, mode="train", ranks=ranks, grace=20.0, **changes)


def at(iteration, kind, rank=0):
    return Fault(kind, stage="out", rank=rank, iteration=iteration)


@pytest.mark.slow
def test_sigterm_and_sigkill_change_nothing(tmp_path):
    """Stopped by the suite, continued, killed, continued: the same numbers as in one go (CPU physics repeats)."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    goal = ["--max_samples", str(10 * ITERATION)]
    done = run_stage(training(whole, *goal))
    assert done.ok and (done.result["iterations"], done.result["samples"]) == (10, 10 * ITERATION)
    assert [done.result[name] for name in ("nonfinite", "contact_overflow", "constraint_overflow")] == [0, 0, 0]

    spec = training(parts, *goal, fault=at(3, "note"))
    journal = parts / "fault.jsonl"
    ends = []
    with pytest.raises(KeyboardInterrupt):
        stages.run_stage(spec, ends.append, stop_requested=lambda: journal.exists() and "note" in journal.read_text())
    assert [end.outcome for end in ends] == ["interrupted"] and ends[0].rc == 143
    stopped = ends[0].result
    assert stopped["ok"] and stopped["outcome"] == "interrupted" and 2 * ITERATION <= stopped["samples"] < 9 * ITERATION
    assert find_latest(parts / "out") == Path(stopped["checkpoint"])

    journal.unlink()
    killed = run_stage(training(parts, *goal, "--resume", str(parts / "out"), fault=at(2, "kill_trainer")))
    assert (killed.failure_class, killed.rc) == ("preempted", 137)
    last = run_stage(training(parts, *goal, "--resume", str(parts / "out")))
    assert last.ok and last.result["samples"] == 10 * ITERATION and last.result["iterations"] == 10
    assert not processes_left(parts / "fault.json")

    header, rows = read_log(whole / "out/log.txt")
    _, resumed = read_log(parts / "out/log.txt")
    by_iteration = {row[0]: row for row in resumed}
    assert [row[0] for row in rows] == ["0", "2", "4", "6", "8", "9"]
    for row in rows:
        for name, value, other in zip(header, row, by_iteration[row[0]], strict=True):
            if name != "Wall_Time":
                assert float(other) == pytest.approx(float(value), rel=1e-5, abs=1e-5, nan_ok=True), (name, row[0])
    model, other = (torch.load(path / "out/model.pt", weights_only=True) for path in (whole, parts))
    assert model.keys() == other.keys() and all(torch.isfinite(tensor).all() for tensor in model.values())
    for name, tensor in model.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_killed_rank_ends_the_stage_and_leaves_nothing(tmp_path):
    result = run_stage(training(tmp_path, "--max_iters", "50", fault=at(3, "kill_rank", rank=1), ranks=2))
    assert (result.failure_class, result.rc) == ("preempted", 137), result
    assert "SIGKILL" in result.message and not processes_left(tmp_path / "fault.json")
    assert find_latest(tmp_path / "out").name == "0000000001"


@pytest.mark.slow
def test_a_killed_guard_takes_launcher_and_ranks_along(tmp_path):
    """Nobody comes after it who would end what is left: each process ends with the one that started it."""
    spec = training(tmp_path, "--max_iters", "500", fault=at(3, "kill_guard", rank=1), ranks=2)
    with (tmp_path / "stage.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-I", "-S", guard.__file__, *spec.argv], cwd=spec.cwd, stdout=log,
                                   stderr=log, env={**os.environ, **spec.env}, stdin=subprocess.PIPE)
    assert process.wait(400) == -signal.SIGKILL, (tmp_path / "stage.log").read_text()
    deadline = time.monotonic() + 10.0
    while (left := processes_left(tmp_path / "fault.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def test_a_stopped_process_is_a_hang_that_tells_where(tmp_path):
    result = run_stage(training(tmp_path, "--max_iters", "50", fault=at(3, "stop_rank"), hang_seconds=3.0))
    assert result.failure_class == "hang" and "no sign of life from rank_0" in result.message
    assert "stopped by a signal" in result.message
    assert "in action" in (tmp_path / "stage.log").read_text().partition("(most recent call first)")[2]
    assert result.result["outcome"] == "interrupted", "once it may run again it saves what it has"
    assert find_latest(tmp_path / "out") == Path(result.result["checkpoint"])


def test_a_full_disk_keeps_the_checkpoint(tmp_path):
    result = run_stage(training(tmp_path, "--max_iters", "50", fault=at(3, "small_files")))
    assert (result.failure_class, result.rc) == ("disk", 1) and "File too large" in result.message
    assert find_latest(tmp_path / "out").name == "0000000001"
    assert not list((tmp_path / "out").rglob("*.tmp")), os.listdir(tmp_path / "out")
