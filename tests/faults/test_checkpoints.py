"""Checkpoints survive whatever ends the process that writes them: kills at any moment, a full disk."""

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mimickit.util.checkpoint import find_latest, load_checkpoint, save_model
from mimickit.util.distributed import Distributed
from mimickit.util.failures import classify
from tests.saving import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
ALONE = Distributed.single()
KILLS = 50

# A process forks savers, kills each at a random moment and looks at what is there. Sizes are the humanoid's: 2 networks
# of 1024 and 512 units, 6 MB a checkpoint.
KILL_SAVERS = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from mimickit.util.checkpoint import CheckpointWriter, find_latest, load_checkpoint
from mimickit.util.distributed import Distributed
alone, run = Distributed.single(), Path(sys.argv[1])

def save(iteration):
    value = float(iteration)
    agent = {{f"{{net}}.{{i}}": torch.full(shape, value) for net in ("actor", "critic")
             for i, shape in enumerate([(1024, 160), (512, 1024), (31, 512)])}}
    writer = CheckpointWriter(run / "checkpoints", alone)
    writer.save(iteration, {{"agent": agent, "iteration": iteration}}, {{"env": torch.full((64, 500), value)}},
                {{"samples": iteration}})
    writer.wait()

save(0)
begin = time.perf_counter(); save(1); duration = time.perf_counter() - begin
random.seed(5)
newest, moments = 1, set()
for kill in range({kills}):
    first = newest + (kill % 3 > 0)  # every third saver begins with the iteration that is there
    delay = random.uniform(0, 1.5 * duration)
    saver = os.fork()
    if saver == 0:
        try:
            for iteration in range(first, first + 1000):
                save(iteration)
        finally:
            os._exit(1)
    next_one, deadline = run / "checkpoints" / f"{{newest + 1:010d}}", time.monotonic() + 60
    while kill % 5 == 0 and not next_one.exists() and time.monotonic() < deadline:  # some get on, whatever the load
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(saver, signal.SIGKILL)
    status = os.waitpid(saver, 0)[1]
    assert os.WIFSIGNALED(status), "the saver failed by itself"
    moments |= {{p.name[:5] for p in (run / "checkpoints").iterdir() if p.name.startswith(".")}}
    found = find_latest(run)
    assert found is not None, sorted((run / "checkpoints").iterdir())
    checkpoint = load_checkpoint(found, alone)
    assert checkpoint.shared["iteration"] >= newest, (found, newest)
    newest = checkpoint.shared["iteration"]
    tensors = [*checkpoint.shared["agent"].values(), checkpoint.local["env"]]
    assert len(tensors) == 7 and all(bool((t == newest).all()) for t in tensors)
print(json.dumps({{"newest": newest, "moments": sorted(moments)}}))
"""


def test_a_killed_saver_always_leaves_a_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILL_SAVERS.format(root=str(ROOT), kills=KILLS), str(tmp_path)],
                          capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["newest"] >= KILLS // 5 and ".tmp-" in seen["moments"], "some kills hit a half-written checkpoint"


def test_a_kill_between_the_two_renames_leaves_the_replaced_one(tmp_path):
    path = save(tmp_path, 3, size=10)
    path.rename(path.with_name(".old-0000000003"))
    assert find_latest(tmp_path).name == ".old-0000000003"
    assert load_checkpoint(find_latest(tmp_path), ALONE).shared["iteration"] == 3
    save(tmp_path, 4, size=10)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0000000004"]


@pytest.fixture
def full_disk(tmp_path):
    """(folder, context in which it has room for 2 MiB more at most). A small tmpfs, else a limit on file sizes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        yield folder, contextlib.nullcontext
        subprocess.run(["umount", str(folder)], check=True)
    else:
        yield folder, file_limit


@contextlib.contextmanager
def file_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save(run, iteration, size):
    shared = {"agent": {"w": torch.full((size,), float(iteration))}, "iteration": iteration}
    return write_checkpoint(run, iteration, shared, {"x": torch.ones(2)})


@pytest.mark.parametrize("limit", ["disk", "file size"])
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, full_disk, limit):
    run, when_full = full_disk if limit == "disk" else (tmp_path, file_limit)
    save(run, 1, size=10**6)
    save_model(run / "model.pt", {"w": torch.zeros(10)})
    with when_full():
        with pytest.raises(OSError) as caught:
            save(run, 2, size=10**6)
        assert classify(caught.value) == "disk", caught.value
        assert caught.value.filename.endswith("shared.pt")
        assert re.search(r": 3\.8 MiB are needed, [\d.]+ MiB are free", caught.value.strerror)
        with pytest.raises(OSError) as caught:
            save_model(run / "model.pt", {"w": torch.zeros(10**6)})
        assert classify(caught.value) == "disk", caught.value
    assert find_latest(run).name == "0000000001"
    assert torch.equal(load_checkpoint(find_latest(run), ALONE).shared["agent"]["w"], torch.ones(10**6))
    assert torch.equal(torch.load(run / "model.pt", weights_only=True)["w"], torch.zeros(10))
    used = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert used < 4_100_000, "what was half written is gone, so that the failure can be recorded"
    save(run, 3, size=10)
    assert find_latest(run).name == "0000000003"
