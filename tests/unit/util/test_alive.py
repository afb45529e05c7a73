"""Signs of life of a process that starts."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock

from mimickit.engines import kernel_cache
from mimickit.util import alive
from mimickit.util.alive import Alive


@pytest.fixture
def beats(monkeypatch):
    """An Alive that looks often, and the list of its beats."""
    monkeypatch.setattr(alive, "PERIOD", 0.02)
    counted, it = [], Alive()
    monkeypatch.setattr(it, "beat", lambda: counted.append(1))
    yield it, counted
    it.stop()


def test_who_works_beats_and_who_is_stuck_does_not(beats, monkeypatch):
    """A compiler that is wedged, and one that compiles."""
    it, counted = beats
    it.start()
    end = time.monotonic() + 20.0  # a busy machine gives this process little time
    while time.monotonic() < end and len(counted) < 2:
        sum(range(1000))
    assert len(counted) >= 2
    used = time.process_time()  # stands still from here, whatever other threads of the test runner do
    monkeypatch.setattr(alive.time, "process_time", lambda: used)
    time.sleep(0.03)  # the last work is over
    counted.clear()
    threading.Event().wait(0.2)
    assert len(counted) <= 1, "CPU time did not advance"


def test_nobody_beats_for_a_process_after_its_start(beats):
    it, counted = beats
    with it.compiling():
        pass
    counted.clear()
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        sum(range(1000))
    assert not counted
    it.start()
    with it.compiling():
        pass
    assert it._ended is not None, "compiling is a part of the start: it goes on"


def test_waiting_for_a_compiler_and_compiling_are_told(tmp_path, monkeypatch):
    run_dir, cache = tmp_path / "run", tmp_path / "cache"
    it, phases, counted, real = Alive(), [], [], Alive.enter
    monkeypatch.setattr(kernel_cache, "ALIVE", it)
    monkeypatch.setattr(kernel_cache, "POLL_S", 0.01)
    it.begin(run_dir, 0, is_root=True)
    waits, polls = threading.Event(), threading.Event()

    def enter(phase):
        real(it, phase)
        phases.append(json.loads((run_dir / "progress.json").read_text())["phase"])
        if phase == alive.WAITING:
            waits.set()

    def beat():
        counted.append(1)
        if waits.is_set() and len(counted) > 5:
            polls.set()

    monkeypatch.setattr(it, "enter", enter)
    monkeypatch.setattr(it, "beat", beat)

    def compile_it():
        with kernel_cache.compile_lock("key", cache):
            pass

    cache.mkdir()
    other = FileLock(cache / "mimickit_compile_key.lock")
    with other:
        thread = threading.Thread(target=compile_it)
        thread.start()
        assert polls.wait(10.0), "it beats at every poll"
    thread.join(10.0)
    assert phases == ["waiting for kernels", "starting", "compiling", "starting"]
    assert (run_dir / "heartbeat" / "rank_0").exists()


@pytest.mark.parametrize(("rank", "file"), [(None, "start"), ("1", "start_1")])
def test_a_run_beats_before_it_imports_anything_heavy(tmp_path, rank, file):
    environment = {**os.environ, "MIMICKIT_HEARTBEAT": str(tmp_path), "PYTHONPATH": os.getcwd()}
    if rank is not None:
        environment |= {"RANK": rank, "LOCAL_RANK": rank}
    code = "import sys, mimickit.run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert [path.name for path in (tmp_path / "heartbeat").iterdir()] == [file]
