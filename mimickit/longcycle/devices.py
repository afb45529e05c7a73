"""The devices of this machine and who uses them: one lock file per device, released when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO

from mimickit.util.failures import UserError

GATHERING = 0.3  # s in which cases that begin together have all asked for a device
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
LONGEST_TURN = 2.0  # s after which a request for a device no longer holds up cheaper ones


@functools.cache
def gpu_listing() -> str:
    """Output of ``nvidia-smi -L``, which loads no GPU library; empty without it."""
    if not shutil.which("nvidia-smi"):
        return ""
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False).stdout


def gpu_uuids() -> list[str]:
    """UUIDs of the GPUs in order of index; none without nvidia-smi."""
    return re.findall(r"^GPU \d+: .*\(UUID: (\S+)\)", gpu_listing(), flags=re.MULTILINE)


def gpu_names() -> list[str]:
    """Names of all NVIDIA GPUs of the machine."""
    names = re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", gpu_listing(), flags=re.MULTILINE)
    if names:
        return names
    return [path.name for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*"))]


def visible_cuda(environ: Mapping[str, str] | None = None, gpus: Sequence[str] | None = None) -> list[str]:
    """``cuda:0`` ... as a process with this environment sees them, no more than the machine has."""
    environ = os.environ if environ is None else environ
    count = len(gpu_names() if gpus is None else gpus)
    mask = environ.get("CUDA_VISIBLE_DEVICES")
    if mask is not None:
        entries = [entry.strip() for entry in mask.split(",")]
        valid = entries.index("-1") if "-1" in entries else len(entries)  # CUDA stops at the first invalid entry
        count = min(count, len([entry for entry in entries[:valid] if entry]))
    return [f"cuda:{i}" for i in range(count)]


def training_pool(visible: Sequence[str], sessions: int) -> tuple[list[str], int]:
    """The devices to lease from, and how many a case takes: up to two, of all of the host's when ``sessions`` run
    side by side.

    With as many cases as devices each case takes one: a second device would gain it less than the others lose
    (``benchmarks/EXPERIMENTS.md``).
    """
    if sessions <= 1:
        return list(visible[:2]), min(2, len(visible))
    return list(visible), max(1, min(2, len(visible) // sessions))


def physical_name(device: str, environ: Mapping[str, str] | None = None, uuids: Sequence[str] | None = None) -> str:
    """A device's name on this host, the same whatever ``CUDA_VISIBLE_DEVICES`` a session has.

    The GPU's UUID where nvidia-smi gives it: two batch jobs may both call their only GPU number 0 and mean different
    ones.
    """
    environ = os.environ if environ is None else environ
    uuids = gpu_uuids() if uuids is None else uuids
    mask = [entry.strip() for entry in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    index = int(device.split(":")[1]) if ":" in device else 0
    visible = mask[index] if index < len(mask) else str(index)
    if visible.isdigit():
        return uuids[int(visible)] if int(visible) < len(uuids) else f"cuda-{visible}"
    return next((uuid for uuid in uuids if uuid.startswith(visible)), visible)  # UUIDs may be abbreviated


@contextmanager
def file_lock(path: Path, shared: bool = False) -> Iterator[IO[str]]:
    """Wait for an flock on ``path`` and hold it. The system releases it when the process dies.

    Raises:
        UserError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield file


def try_lock(path: Path, shared: bool = False) -> IO[str] | None:
    """Take an flock without waiting; None when it is held. Close the file to release it.

    Raises:
        UserError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        file = opened.enter_context(path.open("a+"))
        try:
            _lock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        opened.pop_all()
        return file


def _lock(file: IO[str], operation: int) -> None:
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"{file.name} cannot be locked, its file system has no locks ({error.strerror}). The suite needs them so "
            "that two sessions do not write to one file: let `output` be a link to a folder on a local disk, or have "
            "this file system mounted with locks (NFS with lockd, Lustre with -o flock)") from None


@contextmanager
def lease(pool: Sequence[str], count: int, lock_dir: Path, slots: int = 1,
          waiting: Callable[[], None] = lambda: None, cost: float = 1.0) -> Iterator[list[str]]:
    """Hold ``count`` devices of ``pool``, all or none at a time, the least busy first; CPU entries need no lock.

    Of several that share devices and ask at the same time the most expensive chooses first.

    Args:
        pool: device names; with a ``cpu`` entry among them nothing is locked and the first ``count`` are returned.
        slots: how many leases may share a device. With 1 it is held alone, whatever other sessions allow.
        waiting: called once a second while devices are busy; raise in it to give up.
        cost: how busy the lease keeps a device; a device's load is the sum of its leases' costs.

    Raises:
        ValueError: the pool has fewer different devices than ``count``, so the wait would never end.
    """
    if any(device == "cpu" for device in pool):
        yield list(pool[:count])
        return
    if count > len(set(pool)):
        raise ValueError(f"a lease of {count} devices from a pool of {len(set(pool))} ({', '.join(pool)}) never comes")
    with ExitStack() as held:
        with _turn(cost, lock_dir) if slots > 1 else nullcontext():
            taken = _take_free(pool, count, slots, lock_dir, held, cost)
        while len(taken) < count:
            waiting()
            time.sleep(1.0)
            taken = _take_free(pool, count, slots, lock_dir, held, cost)
        yield sorted(taken, key=pool.index)


@contextmanager
def _turn(cost: float, lock_dir: Path) -> Iterator[None]:
    """Let the most expensive of those that ask at the same time go first, so that costs spread evenly."""
    asking = lock_dir / "asking"
    asking.mkdir(parents=True, exist_ok=True)
    mine = asking / f"{cost}_{time.monotonic()}_{uuid.uuid4().hex}"
    mine.touch()
    try:
        time.sleep(GATHERING)
        while any(other > cost for other in _asked_costs(asking)):
            time.sleep(0.02)
        yield
    finally:
        mine.unlink(missing_ok=True)


def _asked_costs(asking: Path) -> Iterator[float]:
    """Costs of recent requests; an older one was served, or its process died."""
    for path in asking.iterdir():
        cost, asked, *_ = path.name.split("_")
        if 0.0 <= time.monotonic() - float(asked) < LONGEST_TURN:  # negative: made before a reboot
            yield float(cost)
        else:
            path.unlink(missing_ok=True)


def _take_free(pool: Sequence[str], count: int, slots: int, lock_dir: Path, held: ExitStack, cost: float) -> list[str]:
    """Lock ``count`` devices, the least busy first, to be released by ``held``; none when fewer are free."""
    taken = []
    with file_lock(lock_dir / "choosing.lock"):  # one at a time, so that each sees what the others took
        for device in sorted(dict.fromkeys(pool), key=lambda device: _busy(device, lock_dir)):
            if len(taken) < count and any(_take(device, slot, slots, lock_dir, held, cost) for slot in range(slots)):
                taken.append(device)
        if len(taken) < count:
            held.close()
    return taken


def _take(device: str, slot: int, slots: int, lock_dir: Path, held: ExitStack, cost: float) -> bool:
    """Lock one slot of a device, and the device itself, shared with its other slots; False when either is taken."""
    name = physical_name(device)
    with ExitStack() as locks:
        for path, shared in ((lock_dir / f"{name}.lock", slots > 1), (lock_dir / f"{name}.{slot}.lock", False)):
            if (lock := try_lock(path, shared)) is None:
                return False
            locks.enter_context(lock)
        lock.truncate(0)
        lock.write(str(cost))
        lock.flush()
        held.enter_context(locks.pop_all())
    return True


def _busy(device: str, lock_dir: Path) -> float:
    """Sum of the costs of a device's leases."""
    total = 0.0
    for path in lock_dir.glob(f"{physical_name(device)}.*.lock"):
        if (lock := try_lock(path)) is None:
            total += float(path.read_text() or 1.0)
        else:
            lock.close()
    return total
