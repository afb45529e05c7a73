"""The start of a real run: a compiler may take longer than the suite's patience, one that is stuck is found."""

import sys
from pathlib import Path

import pytest

from tests.faults.single_stage import run_stage, stage_spec

ROOT = Path(__file__).resolve().parents[2]
# The run program with a compiler that works for longer than anybody waits for a sign of life, and is then stuck.
STUCK = """
import contextlib, sys, time
import mimickit.run
from mimickit.engines import kernel_cache

def stuck(cache_dir):
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        sum(range(10000))
    print("worked for 5 s", flush=True)
    time.sleep(1000.0)

kernel_cache._progress = stuck
sys.exit(mimickit.run.main(sys.argv[1:]))
"""


@pytest.mark.sim
def test_a_compiler_that_is_stuck_is_found_and_one_that_works_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("WARP_CACHE_PATH", str(tmp_path / "cache"))
    flags = ["--arg_file", "args/view_motion_go2_args.txt", "--engine_config", "data/engines/newton_engine.yaml",
             "--mode", "test", "--devices", "cpu", "--num_envs", "1", "--test_episodes", "1", "--visualize", "false",
             "--out_dir", str(tmp_path / "out")]
    result = run_stage(stage_spec(tmp_path, [sys.executable, "-c", STUCK, *flags], cwd=ROOT, hang_seconds=3.5,
                                  startup_seconds=60.0))
    assert (result.failure_class, result.message[:38]) == ("hang", "no sign of life from rank_0 for 4 s (c"), result
    log = (tmp_path / "stage.log").read_text()
    assert "(compiling)" in result.message and "worked for 5 s" in log and "in stuck" in log
