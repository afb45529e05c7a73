"""Several cases on one GPU: leases of its slots, and the service that runs kernels side by side."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from mimickit.longcycle import devices, environment, gpu_sharing, options, settings
from mimickit.longcycle.gpu_sharing import LOGS, PIPES, PROGRAM, shared_gpus
from tests.longcycle.test_resume import alive, wait_for


def give_up():
    raise TimeoutError


def test_a_device_with_two_slots_serves_two_cases_and_the_idle_one_comes_first(tmp_path):
    pool = ["cuda:0", "cuda:1"]
    with devices.lease(pool, 1, tmp_path, 2) as first, devices.lease(pool, 1, tmp_path, 2) as second:
        assert (first, second) == (["cuda:0"], ["cuda:1"])
        with devices.lease(pool, 2, tmp_path, 2) as both:
            assert both == pool
            with pytest.raises(TimeoutError), devices.lease(pool, 1, tmp_path, 2, give_up):
                pass


def test_devices_are_filled_by_what_cases_cost(tmp_path):
    """The next case goes where the costs of those that run add up to least, as long as there is a slot."""
    taken = []
    with ExitStack() as held:
        for cost in (3.0, 3.0, 2.0, 1.0, 1.0, 0.2):
            taken += held.enter_context(devices.lease(["cuda:0", "cuda:1"], 1, tmp_path, 4, give_up, cost))
        # busy with 3, 3 | 5, 3 | 5, 4 | 5, 5 | 5.2, 5
        assert taken == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:1", "cuda:0"]
        assert held.enter_context(devices.lease(["cuda:0", "cuda:1"], 1, tmp_path, 4, give_up)) == ["cuda:1"]
        assert held.enter_context(devices.lease(["cuda:0", "cuda:1"], 1, tmp_path, 4, give_up)) == ["cuda:0"]
        with pytest.raises(TimeoutError):
            held.enter_context(devices.lease(["cuda:0", "cuda:1"], 1, tmp_path, 4, give_up))
    with devices.lease(["cuda:1", "cuda:0"], 1, tmp_path, 4, give_up) as first:
        assert first == ["cuda:1"], "what was written for leases that ended does not count"


def test_of_cases_that_begin_together_the_dearest_choose_first(tmp_path):
    """A session's workers ask within milliseconds of each other, in any order; devices end up equally busy."""
    costs = [1.0, 0.7, 1.0, 1.0, 3.0, 1.3, 1.0, 3.0, 1.0, 3.0, 1.0]
    all_leased = threading.Barrier(len(costs))

    def begin(cost):
        with devices.lease(["cuda:0", "cuda:1"], 1, tmp_path, 8, give_up, cost) as leased:
            all_leased.wait(30)
        return leased[0]

    with ThreadPoolExecutor(len(costs)) as workers:
        taken = list(workers.map(begin, costs))
    shares = [sum(cost for cost, device in zip(costs, taken, strict=True) if device == name)
              for name in ("cuda:0", "cuda:1")]
    assert sum(shares) == pytest.approx(17.0) and max(shares) == pytest.approx(8.7), shares
    assert not list((tmp_path / "asking").iterdir())


def test_nobody_waits_for_the_turn_of_one_that_died(tmp_path):
    (tmp_path / "asking").mkdir()
    left = tmp_path / "asking" / f"9.0_{time.monotonic()}_died"
    left.touch()
    started = time.monotonic()
    with devices.lease(["cuda:0"], 1, tmp_path, 2, give_up):
        assert time.monotonic() - started < devices.LONGEST_TURN + 1.0
    assert not left.exists()


def test_a_clock_that_is_set_costs_nobody_its_turn(tmp_path, monkeypatch):
    with devices._turn(9.0, tmp_path):
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 200.0)
        assert list(devices._asked_costs(tmp_path / "asking")) == [9.0]
    rebooted = tmp_path / "asking" / f"9.0_{time.monotonic() + 1000}_before"
    rebooted.touch()
    assert list(devices._asked_costs(tmp_path / "asking")) == [] and not rebooted.exists()


def test_who_wants_a_device_alone_gets_it_alone(tmp_path):
    for first, second in ((2, 1), (1, 2)):
        with (devices.lease(["cuda:0"], 1, tmp_path, first), pytest.raises(TimeoutError),
              devices.lease(["cuda:0"], 1, tmp_path, second, give_up)):
            pass


@pytest.mark.parametrize(("gpus", "sessions", "slots", "per_case"), [
    (2, 1, 3, 2), (2, 2, 16, 1), (2, 3, 3, 1), (1, 4, 4, 1), (1, 2, 16, 1), (4, 2, 1, 2), (8, 4, 1, 2), (8, 16, 4, 1)])
def test_cases_get_two_devices_while_there_are_two_for_each(gpus, sessions, slots, per_case, tmp_path):
    visible = [f"cuda:{i}" for i in range(gpus)]
    pool, count = devices.training_pool(visible, sessions)
    assert count == per_case
    with devices.lease(pool, count, tmp_path, slots, give_up) as leased:
        assert len(set(leased)) == count


@pytest.mark.parametrize(("gpus", "memory", "cores", "given", "expected"), [
    (2, 139.0, 32, {}, (16, 8)),  # two H200s
    (2, 23.5, 64, {}, (4, 2)),
    (1, 79.6, 8, {}, (4, 4)),
    (1, 8.0, 16, {}, (0, 1)),  # one case at a time: no workers
    (2, 0.0, 64, {}, (2, 1)),  # nobody says how large they are
    (2, 139.0, 32, {"cases-per-device": 3}, (6, 3)),
    (2, 139.0, 32, {"devices-train": "cuda:0,cuda:1"}, (8, 8)),  # both for every case
    (2, 139.0, 32, {"longcycle-profile": "smoke"}, (8, 1)),
    (0, 0.0, 1, {}, (0, 1)),
    (0, 0.0, 2, {}, (2, 1)),
    (0, 0.0, 16, {}, (8, 1)),
])
def test_automatic_numbers_fit_the_machine(monkeypatch, gpus, memory, cores, given, expected):
    monkeypatch.setattr(options, "visible_cuda", lambda: [f"cuda:{i}" for i in range(gpus)])
    values = {name: option.default for name, option in options.OPTIONS.items()} | given
    workers, slots = options.automatic(values, cores, memory)
    assert (workers, slots) == expected
    if gpus and workers and "longcycle-profile" not in given:
        pool, per_case = options.choose_devices(
            settings.parse_list(values["devices-train"]), "full", options.visible_cuda(), 2, workers)
        assert workers * per_case == slots * len(pool), "every slot is used, and nobody waits for one"


def test_the_smallest_gpu_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.smallest_gpu() == 0.0
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 143771\necho 81920\necho '[N/A]'\n")
    program.chmod(0o755)
    assert environment.smallest_gpu() == 80.0


def test_a_lease_of_more_devices_than_there_are_is_refused_at_once(tmp_path):
    with (pytest.raises(ValueError, match=r"2 devices from a pool of 1 \(cuda:0\)"),
          devices.lease(["cuda:0"], 2, tmp_path, 16, give_up)):
        pass


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A stand-in for NVIDIA's control daemon: it opens its pipe, starts a server and stays."""
    program = tmp_path / "bin" / PROGRAM
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nsleep 600 &\necho $! > "${LOGS}/server"\ntouch "${PIPES}/control"\nwait\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv(PIPES, raising=False)
    return program


def server_of(logs: Path) -> int:
    """The pid of the stand-in's server, once it says so."""
    path = logs / "server"
    return int(wait_for(lambda: path.exists() and path.read_text()))


def test_the_service_lives_as_long_as_the_session(service, tmp_path):
    logs = tmp_path / "mps"
    with shared_gpus(logs, works=lambda environ: Path(environ[PIPES], "control").exists()) as how:
        assert how == "side by side (Multi-Process Service)"
        pipes, server = os.environ[PIPES], server_of(logs)
        assert alive(server) and os.environ[LOGS] == str(logs)
    assert PIPES not in os.environ and not Path(pipes).exists() and not alive(server)


@pytest.mark.parametrize(("mask", "seen"), [("2,0", "GPU-c,GPU-a"), ("GPU-b", "GPU-b"), (None, None)])
def test_the_service_and_its_clients_name_gpus_by_identity(service, tmp_path, monkeypatch, mask, seen):
    """The service counts what it sees from 0, so that numbers of a mask would mean other GPUs, or none, to a client."""
    listing = "".join(f"GPU {i}: NVIDIA H200 (UUID: GPU-{name})\n" for i, name in enumerate("abc"))
    monkeypatch.setattr(devices, "gpu_listing", lambda: listing)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if mask is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    pool, names = devices.visible_cuda(), [devices.physical_name(device) for device in devices.visible_cuda()]
    asked = []
    with shared_gpus(tmp_path / "mps", works=lambda environ: asked.append(environ.get("CUDA_VISIBLE_DEVICES")) or True):
        assert asked == [seen] and os.environ.get("CUDA_VISIBLE_DEVICES") == seen
        assert devices.visible_cuda() == pool and [devices.physical_name(device) for device in pool] == names
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == mask


def test_the_service_ends_with_a_killed_session(service, tmp_path):
    code = ("import sys, time, pathlib; from mimickit.longcycle.gpu_sharing import shared_gpus\n"
            "with shared_gpus(pathlib.Path(sys.argv[1]), works=lambda environ: True): time.sleep(600)")
    session = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "mps")], cwd=Path(__file__).parents[2])
    server = server_of(tmp_path / "mps")
    assert alive(server)
    session.kill()
    session.wait()
    wait_for(lambda: not alive(server), 10.0)


def test_without_a_working_service_kernels_take_turns(service, tmp_path, monkeypatch):
    with shared_gpus(tmp_path / "mps", works=lambda environ: False) as how:
        assert how.startswith("in turns") and "does not work here" in how and PIPES not in os.environ
    monkeypatch.setattr(gpu_sharing, "PROGRAM", "no-such-program")
    with shared_gpus(tmp_path / "mps") as how:
        assert how.startswith("in turns") and "no-such-program is not installed" in how


def test_somebody_elses_service_is_used(service, monkeypatch, tmp_path):
    monkeypatch.setenv(PIPES, "/somewhere")
    with shared_gpus(tmp_path / "mps") as how:
        assert how == f"by the service at {PIPES}" and not (tmp_path / "mps").exists()
