"""How a stage's processes are watched: signs of life, patience, and clocks that somebody sets."""

import os
import time

import pytest

from mimickit.longcycle import stages
from tests.faults.single_stage import run_code as run
from tests.faults.single_stage import stage_spec

BEATS = """
import os, pathlib, time
folder = pathlib.Path("out/heartbeat"); folder.mkdir()
for i in range({count}):
    (folder / "{name}").touch(); time.sleep(0.02)
"""
OK = "open('out/result.json', 'w').write('{\"mode\": \"test\", \"ok\": true}')"


def set_clock(monkeypatch, seconds):
    """From its third reading on the wall clock of this process is wrong."""
    real, readings = time.time, []

    def wall():
        readings.append(1)
        return real() + (seconds if len(readings) > 2 else 0.0)

    monkeypatch.setattr(time, "time", wall)


def test_a_clock_set_ahead_makes_no_healthy_stage_a_hang(tmp_path, monkeypatch):
    set_clock(monkeypatch, 200.0)
    result = run(tmp_path, BEATS.format(count=20, name="rank_0") + OK, hang_seconds=100.0, timeout=100.0)
    assert result.ok, result.message
    assert 0.3 < result.elapsed_s < 60.0


@pytest.mark.parametrize(("name", "patience", "found"), [
    ("rank_0", {"hang_seconds": 0.3}, "hang"), ("none", {"startup_seconds": 0.3}, "no_start"),
    ("rank_0", {}, "timeout")])
def test_a_clock_set_back_hides_nothing(tmp_path, monkeypatch, name, patience, found):
    set_clock(monkeypatch, -200.0)
    limits = {"timeout": 1.0, "hang_seconds": 100.0, **patience}
    result = run(tmp_path, BEATS.format(count=1, name=name) + "time.sleep(5)", **limits)
    assert (result.failure_class, result.elapsed_s < 4.0) == (found, True), result.message


def test_the_first_sign_of_life_ends_the_patience_with_the_start(tmp_path):
    """A process that never came to life is tried again (``no_start``), one that fell silent is not (``hang``)."""
    silent = "import time; time.sleep(100)"
    result = run(tmp_path, silent, startup_seconds=0.3, hang_seconds=100.0)
    assert (result.failure_class, result.message[:28]) == ("no_start", "1 of 1 processes did not sta")
    result = run(tmp_path, BEATS.format(count=1, name="rank_0") + silent, startup_seconds=0.3, hang_seconds=0.6)
    assert result.failure_class == "hang"


class Watched:
    """A stage's files and a clock, without processes."""

    def __init__(self, tmp_path, **changes):
        self.spec = stage_spec(tmp_path, [], **{"hang_seconds": 180.0, "startup_seconds": 300.0, "ranks": 2, **changes})
        (self.spec.out_dir / "heartbeat").mkdir(parents=True)
        self.signs, self.stamp = stages.Signs(self.spec, begin=0.0), 0

    def at(self, now, *names, phase=None):
        """Touch these files, then look at ``now``."""
        paths = [self.spec.out_dir / "heartbeat" / name for name in names]
        if phase is not None:
            paths.append(self.spec.out_dir / "progress.json")
            paths[-1].write_text(f'{{"phase": "{phase}"}}')
        for path in paths:
            self.stamp += 1
            path.touch()
            os.utime(path, ns=(self.stamp, self.stamp))
        self.signs.look(now)
        return self.signs.silence(now)


def test_a_start_may_take_long_while_it_shows_life(tmp_path):
    """Imports, waiting for a compiler and compiling on a busy machine, then training."""
    watched = Watched(tmp_path)
    for now in range(0, 1000, 100):
        assert watched.at(now, "start") is None  # the one that starts the others
    for now in range(1000, 2000, 100):
        assert watched.at(now, "start_0", "start_1") is None
    for now in range(2000, 3000, 100):
        assert watched.at(now, "rank_0", "rank_1", phase="waiting for kernels") is None
    assert watched.at(3050) is None
    assert watched.at(3100) == (
        "hang", "no sign of life from rank_0, rank_1 for 200 s (waiting for kernels)")


def test_a_process_that_never_comes_is_found_while_the_other_waits_for_it(tmp_path):
    watched = Watched(tmp_path)
    assert watched.at(0, "start") is None
    assert watched.at(250, "start_0") is None
    assert watched.at(350, "start_0") == ("no_start", "1 of 2 processes did not start: no sign of life for 350 s")


def test_waiting_for_kernels_costs_no_patience(tmp_path):
    """Seconds in which others compile are not the stage's own."""
    code = BEATS.format(count=1, name="rank_0") + """
pathlib.Path("out/progress.json").write_text('{"phase": "PHASE"}')
time.sleep(1.0)
"""
    assert run(tmp_path, code.replace("PHASE", "waiting for kernels") + OK, timeout=0.6).ok
    result = run(tmp_path, code.replace("PHASE", "compiling") + OK, timeout=0.6)
    assert (result.failure_class, result.message) == ("timeout", "still running after 0.6 s (compiling)")


def test_what_is_started_is_told_where_to_give_signs_of_life(tmp_path):
    assert run(tmp_path, f"import os; assert os.environ['MIMICKIT_HEARTBEAT'] == {str(tmp_path / 'out')!r}; {OK}").ok


def test_what_an_earlier_run_said_is_not_this_ones(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/progress.json").write_text('{"samples": 100}')
    assert run(tmp_path, f"import os; assert not os.path.exists('out/progress.json'); {OK}").ok
