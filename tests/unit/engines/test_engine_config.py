"""Engine files: what is accepted, what is refused and how; contact capacities; the compile lock."""

from __future__ import annotations

import errno
import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace

import pytest

from mimickit.config import load_yaml
from mimickit.engines.engine_config import (
    CAPACITY_FILE,
    contact_capacity,
    for_newton,
    load_engine_config,
    make_engine_config,
)
from mimickit.util.failures import AssetMissingError, UserError, classify

ENGINES = Path(__file__).resolve().parents[3] / "data" / "engines"
MINIMAL = {"engine_name": "newton", "env_spacing": 5}


def test_shipped_newton_file():
    config = load_engine_config(ENGINES / "newton_engine.yaml")
    assert (config.control_mode, config.control_freq, config.sim_freq, config.env_spacing) == ("pos", 30, 240, 5)
    assert config.substeps == 8


def test_defaults_are_upstreams():
    config = make_engine_config(MINIMAL, "here")
    assert (config.control_mode, config.control_freq, config.sim_freq) == ("none", 10, 60)
    assert config.ground_contact_height == 0.3
    assert (config.solver_iterations, config.solver_ls_iterations, config.impratio) == (20, 20, 10)
    assert config.spherical_limits is False


@pytest.mark.parametrize("name", ["isaac_gym", "isaac_lab"])
def test_files_of_other_engines_run_on_newton(name):
    path = ENGINES / f"{name}_engine.yaml"
    config = load_engine_config(path)
    assert (config.engine_name, config.control_mode, config.control_freq, config.sim_freq) == ("newton", "pos", 30, 240)
    assert config == load_engine_config(ENGINES / "newton_engine.yaml"), "as this project's own"
    data, told = for_newton({**load_yaml(path), "control_freq": 50, "control_mode": "vel"}, "x.yaml")
    assert (data["sim_freq"], data["control_freq"], data["control_mode"]) == (250, 50, "vel")
    assert told.startswith(f"x.yaml is for engine '{name}'; this runs on Newton with sim_freq 250")
    assert for_newton(load_yaml(ENGINES / "newton_engine.yaml"), "x.yaml")[1] is None


def test_unknown_engines_are_refused_by_name():
    with pytest.raises(UserError, match=r"x\.yaml: engine_name 'bullet' is not supported; supported: newton.* Use "
                                        r"--engine_config data/engines/newton_engine\.yaml"):
        make_engine_config({"engine_name": "bullet"}, "x.yaml")


def test_an_environments_engine_block_wins():
    config = load_engine_config(ENGINES / "newton_engine.yaml", {"ground_contact_height": 0.15, "sim_freq": 120})
    assert config.ground_contact_height == 0.15
    assert config.substeps == 4
    other = load_engine_config(ENGINES / "isaac_gym_engine.yaml", {"engine_name": "newton"})
    assert other.sim_freq == 120


@pytest.mark.parametrize(("change", "message"), [
    ({"sim_freq": 100, "control_freq": 30}, "sim_freq 100 must be a multiple of control_freq 30"),
    ({"sim_freq": 30, "control_freq": 60}, "must be a multiple"),
    ({"control_freq": 0}, "control_freq"),
    ({"control_mode": "position"}, "'pos'"),
    ({"sim_frequency": 240}, "did you mean 'sim_freq'"),
    ({"njmax": -1}, "njmax"),
])
def test_wrong_values_are_refused(change, message):
    with pytest.raises(UserError, match=message) as caught:
        make_engine_config({**MINIMAL, **change}, "some_engine.yaml")
    assert "some_engine.yaml" in str(caught.value)


def test_missing_keys_and_files():
    with pytest.raises(UserError, match="missing key 'engine_name'"):
        make_engine_config({"env_spacing": 5}, "here")
    with pytest.raises(UserError, match="missing key 'env_spacing'"):
        make_engine_config({"engine_name": "newton"}, "here")
    with pytest.raises(AssetMissingError, match=r"nowhere\.yaml"):
        load_engine_config("nowhere.yaml")


def test_capacities(tmp_path):
    file = tmp_path / "capacity.yaml"
    file.write_text("default: {njmax: 300, nconmax: 100}\ncharacters:\n  biped: {njmax: 90, nconmax: 30}\n")
    config = make_engine_config(MINIMAL, "here")
    capacity, known = contact_capacity(Path("a/biped.xml"), config, file)
    assert (capacity.njmax, capacity.nconmax, known) == (90, 30, True)
    capacity, known = contact_capacity(Path("a/stranger.xml"), config, file)
    assert (capacity.njmax, capacity.nconmax, known) == (300, 100, False)
    capacity, known = contact_capacity(
        Path("a/stranger.xml"), make_engine_config({**MINIMAL, "njmax": 70, "nconmax": 20}, "here"), file
    )
    assert (capacity.njmax, capacity.nconmax, known) == (70, 20, True)


def test_shipped_capacities():
    capacity, known = contact_capacity(Path("humanoid.xml"), make_engine_config(MINIMAL, "here"), CAPACITY_FILE)
    assert known
    assert capacity.njmax < 450  # sized from a measurement, not from the worst case


def _compile(cache_dir: str, key: str, log: str, cores: int, all_here: Barrier) -> None:
    """Compile; the first who do so go on when all the others compile too, or wait for their turn."""
    from mimickit.engines import kernel_cache

    arrived = []

    def arrive():
        if not arrived:
            arrived.append(True)
            all_here.wait(30.0)

    os.sched_getaffinity = lambda pid: set(range(cores))
    kernel_cache.print = lambda text, **_: arrive() if "waiting for it" in text else None
    with kernel_cache.compile_lock(key, Path(cache_dir)) as cold:
        if cold:
            with open(log, "a", encoding="utf-8") as file:
                file.write("begin\n")
            arrive()
            with open(log, "a", encoding="utf-8") as file:
                file.write("end\n")


@pytest.mark.parametrize(("keys", "cores", "expected"), [
    ("kkk", 8, ["begin", "end"]),
    ("kl", 7, ["begin", "end", "begin", "end"]),
    ("kl", 8, ["begin", "begin", "end", "end"]),
])
def test_one_process_a_combination_compiles_and_no_more_than_there_are_cores_for(tmp_path, keys, cores, expected):
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    all_here = context.Barrier(len(keys))
    workers = [context.Process(target=_compile, args=(str(tmp_path / "cache"), key, str(log), cores, all_here))
               for key in keys]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * len(keys)
    assert log.read_text().split() == expected


@pytest.mark.parametrize(("error", "free", "words"), [
    (OSError(errno.ENOSPC, "No space left on device"), 2**30, "is full, 1024.0 MiB are free: make room there"),
    (Exception("build failed with error code 1"), 2**19, "is full, 0.5 MiB are free"),
    (PermissionError(errno.EACCES, "Permission denied", "{cache}/wp_x"), 2**30, "cannot be written: Permission denied"),
    (OSError(errno.ENOLCK, "No locks available"), 2**30, "cannot be locked: its file system has no locks"),
    (NotImplementedError("use SoftFileLock"), 2**30, "cannot be locked"),
])
def test_a_cache_that_cannot_be_used_is_named(tmp_path, monkeypatch, error, free, words):
    from mimickit.engines import kernel_cache

    if getattr(error, "filename", None):
        error.filename = error.filename.format(cache=tmp_path)
    monkeypatch.setattr(kernel_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(UserError) as caught, kernel_cache.compile_lock("a", tmp_path):
        raise error
    message = str(caught.value)
    assert message.startswith(f"the folder of compiled kernels {tmp_path} {words}") and "WARP_CACHE_PATH" in message
    assert classify(caught.value) == "disk" and not (tmp_path / "mimickit_compiled").exists()


@pytest.mark.parametrize("error", [
    UserError("a wrong key"), RuntimeError("no compiler"), FileNotFoundError(errno.ENOENT, "not found", "/a/mesh.stl"),
    OSError(errno.ENOSPC, "No space left on device", "/elsewhere/file")])
def test_other_errors_are_not_the_caches(tmp_path, error):
    from mimickit.engines.kernel_cache import compile_lock

    with pytest.raises(type(error)) as caught, compile_lock("a", tmp_path):
        raise error
    assert caught.value is error


def test_compile_lock_is_per_key_and_not_marked_after_a_failure(tmp_path, capsys):
    from mimickit.engines.kernel_cache import compile_lock

    with pytest.raises(RuntimeError, match="no compiler"), compile_lock("a", tmp_path):
        raise RuntimeError("no compiler")
    with compile_lock("a", tmp_path) as cold:
        assert cold
    with compile_lock("a", tmp_path) as cold:
        assert not cold
    with compile_lock("b", tmp_path) as cold:
        assert cold
    assert "compiling physics kernels" in capsys.readouterr().out
