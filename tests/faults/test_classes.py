"""Which class a fault gets from what dying processes leave behind (exceptions: tests/unit/util/test_failures.py)."""

import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from mimickit.longcycle import stages
from mimickit.util.failures import FAILURE_CLASSES, NonFiniteError, read_failures, root_cause, write_failure
from tests.faults import table
from tests.faults.faulty_run import Journal
from tests.faults.single_stage import run_code as run
from tests.faults.table import SCENARIOS, Scenario

ROOT = Path(__file__).resolve().parents[2]
CRASH = """Fatal Python error: Segmentation fault

Thread 0x00007fbeb4ebb6c0 (most recent call first):
  <no Python frame>

Current thread 0x00007fc1f3fdc140 (most recent call first):
  File "/venv/lib/python3.12/site-packages/{}", line 139 in replay
  File "mimickit/util/graphs.py", line 70 in __call__
"""
GLOO = ("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:38312. This is "
        "typically caused by a remote worker crashing.")


def test_a_lost_connection_is_not_the_root_cause(tmp_path, monkeypatch):
    monkeypatch.setattr("mimickit.util.failures.time", SimpleNamespace(time=itertools.count(100.0).__next__))
    write_failure(tmp_path, 0, RuntimeError(GLOO))  # the survivor was quicker
    write_failure(tmp_path, 1, NonFiniteError("iteration 3"))
    failures = read_failures(tmp_path)
    assert [failure["rank"] for failure in failures] == [0, 1]
    assert root_cause(failures)["failure_class"] == "nan"
    assert root_cause(failures[:1])["failure_class"] == "nccl" and root_cause([]) is None


def test_a_failure_that_cannot_be_written_is_told_on_stderr(tmp_path, capsys):
    (tmp_path / "failures").write_text("a file where the folder should be")
    write_failure(tmp_path, 0, RuntimeError("the error that matters"))
    assert "rank_0.json could not be written" in capsys.readouterr().err


LEAVE = """import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from mimickit.util.failures import NonFiniteError, write_failure
for rank, error in enumerate({errors}):
    write_failure(Path("out"), rank, error)
print({says!r}, flush=True)
{end}
"""


@pytest.mark.parametrize(("errors", "says", "end", "expected"), [
    (f"[RuntimeError({GLOO!r})]", "", "os._exit(137)", "preempted"),  # a rank was killed, the other lost it
    (f"[RuntimeError({GLOO!r})]", "", "os._exit(1)", "nccl"),
    (f"[RuntimeError({GLOO!r})]", f"error (nccl): {GLOO}", "os._exit(139)", "failed"),  # a rank crashed
    (f"[RuntimeError({GLOO!r})]", f"error (nccl): {GLOO}", "os._exit(134)", "nccl"),  # gloo and NCCL abort
    (f"[RuntimeError({GLOO!r})]", "", "os._exit(143)", "preempted"),
    (f"[RuntimeError({GLOO!r}), NonFiniteError('x')]", "", "os._exit(137)", "nan"),
    (f"[RuntimeError({GLOO!r}), MemoryError('x')]", "", "os._exit(1)", "oom_host"),
    ("[ValueError('x')]", "", "os._exit(1)", "failed"),
    ("[]", "terminate called after throwing: CUDA error: device-side assert triggered", "os.abort()", "cuda_fault"),
    ("[]", "terminate called after throwing an instance of 'std::bad_alloc'", "os.abort()", "oom_host"),
    ("[]", "Traceback\nerror (disk): [Errno 28] no room", "os._exit(1)", "disk"),
    ("[]", "error: out is in use by process 7 on here since today: wait for it or end it", "os._exit(2)", "preempted"),
    ("[]", "error: out is a file", "os._exit(2)", "config"),
    ("[]", "", "os.kill(os.getpid(), signal.SIGSEGV)", "failed"),
    ("[]", CRASH.format("torch/cuda/graphs.py"), "os._exit(139)", "cuda_fault"),  # where an H200 crashed
    ("[]", CRASH.format("warp/context.py"), "os._exit(139)", "failed"),
])
def test_what_processes_leave_behind(tmp_path, errors, says, end, expected):
    (tmp_path / "out").mkdir()
    result = run(tmp_path, LEAVE.format(root=str(ROOT), errors=errors, says=says, end=end))
    assert (result.outcome, result.failure_class) == ("failed", expected), result


def test_a_crash_names_its_signal(tmp_path):
    result = run(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert result.rc == 139 and "SIGSEGV" in result.message


def test_memory_kills_are_told_from_others(tmp_path, monkeypatch):
    counts = iter([3, 4])
    monkeypatch.setattr(stages, "oom_kills", lambda: next(counts))
    result = run(tmp_path, "import os; os.kill(os.getpid(), 9)")
    assert result.failure_class == "oom_host" and "out of memory" in result.message


def test_a_full_disk_is_noticed_where_nothing_could_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "free_space", lambda path: 100)
    assert run(tmp_path, "raise SystemExit(1)").failure_class == "disk"


def test_stopped_processes_are_named_and_give_their_stacks(tmp_path):
    code = ("import faulthandler, os, signal, time; faulthandler.register(signal.SIGUSR1)\n"
            "open('pid', 'w').write(str(os.getpid()))\n"
            "def stopped_here(): os.kill(os.getpid(), signal.SIGSTOP); time.sleep(100)\nstopped_here()")
    result = run(tmp_path, code, timeout=1.0)
    pid = (tmp_path / "pid").read_text()
    assert result.failure_class == "timeout" and f"stopped by a signal: process {pid}" in result.message
    assert "in stopped_here" in result.tail


def test_all_silent_ranks_are_named(tmp_path):
    code = ("import os, time; os.makedirs('out/heartbeat'); now = time.time()\n"
            "for rank in range(2):\n"
            "    open(f'out/heartbeat/rank_{rank}', 'w').close()\n"
            "    os.utime(f'out/heartbeat/rank_{rank}', (now, now))\n"
            "time.sleep(100)")
    result = run(tmp_path, code, hang_seconds=0.5)
    assert result.failure_class == "hang" and "no sign of life from rank_0, rank_1 for" in result.message


def test_every_class_a_machine_can_provoke_has_a_scenario():
    provoked = {scenario.failure_class for scenario in SCENARIOS.values()}
    # tests/longcycle and tests/sim/test_bad_input.py
    elsewhere = {"timeout", "config", "viz_gl", "no_result", "no_start"}
    assert set(FAILURE_CLASSES) - elsewhere <= provoked
    assert [Scenario(None, name).then for name in ("oom_gpu", "nccl", "nan")] == ["smaller", "again", "end"]


@pytest.mark.parametrize(("options", "message"), [
    (["--faults", "dead_rnk"], "dead_rnk: allowed are host_oom"),
    (["--faults", "device_assert", "--devices", "cpu"], "device_assert needs gpu"),
    (["--faults", "dead_rank", "--devices", "cpu"], "dead_rank needs ranks")])
def test_the_table_refuses_what_is_not_here(capsys, options, message):
    assert table.main(options) == 2 and message in capsys.readouterr().err


def test_the_journal_is_read_as_it_is_written(tmp_path):
    journal = Journal(tmp_path / "fault.jsonl", "long_train")
    journal.write("fault", kind="nan", samples=3)
    entry = json.loads(journal.path.read_text())
    assert (entry["stage"], entry["kind"], entry["rank"], entry["pid"]) == ("long_train", "nan", 0, os.getpid())
    assert journal.hits() == set(), "this start's own line does not count"
