"""Which devices are here, and who uses them: one lock file per device, released by the system when a process dies."""

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

GATHERING = 0.3  # s, in which cases that begin together have all asked for a device
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
LONGEST_TURN = 2.0  # s, after which nobody waits any longer for a dearer one


@functools.cache
def gpu_listing() -> str:
    """What nvidia-smi says of the GPUs this process may see, without loading any GPU library; empty without it."""
    if not shutil.which("nvidia-smi"):
        return ""
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False).stdout


def gpu_uuids() -> list[str]:
    """Identities of the GPUs in the order of their indices; none where nvidia-smi does not say."""
    return re.findall(r"^GPU \d+: .*\(UUID: (\S+)\)", gpu_listing(), flags=re.MULTILINE)


def gpu_names() -> list[str]:
    """Names of all NVIDIA GPUs of the machine."""
    names = re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", gpu_listing(), flags=re.MULTILINE)
    if names:
        return names
    return [path.name for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*"))]


def visible_cuda(environ: Mapping[str, str] | None = None, gpus: Sequence[str] | None = None) -> list[str]:
    """``cuda:0`` ... as a process with this environment sees them, at most as many as the machine has."""
    environ = os.environ if environ is None else environ
    count = len(gpu_names() if gpus is None else gpus)
    mask = environ.get("CUDA_VISIBLE_DEVICES")
    if mask is not None:
        entries = [entry.strip() for entry in mask.split(",")]
        valid = entries.index("-1") if "-1" in entries else len(entries)  # CUDA stops at the first invalid entry
        count = min(count, len([entry for entry in entries[:valid] if entry]))
    return [f"cuda:{i}" for i in range(count)]


def training_pool(visible: Sequence[str], sessions: int) -> tuple[list[str], int]:
    """Devices to lease from and how many different ones a case takes: up to two, and all of one host's to lease from
    when ``sessions`` run side by side.

    As many cases as devices take one each, also where they share: what a case gains by a second device, the others
    lose and more (``benchmarks/EXPERIMENTS.md``).
    """
    if sessions <= 1:
        return list(visible[:2]), min(2, len(visible))
    return list(visible), max(1, min(2, len(visible) // sessions))


def physical_name(device: str, environ: Mapping[str, str] | None = None, uuids: Sequence[str] | None = None) -> str:
    """Name of a device that two sessions of a host agree on, whatever ``CUDA_VISIBLE_DEVICES`` each of them has.

    It is the GPU's identity where nvidia-smi tells it: two jobs of a batch system may both call their only GPU
    number 0 and mean different ones.
    """
    environ = os.environ if environ is None else environ
    uuids = gpu_uuids() if uuids is None else uuids
    mask = [entry.strip() for entry in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    index = int(device.split(":")[1]) if ":" in device else 0
    visible = mask[index] if index < len(mask) else str(index)
    if visible.isdigit():
        return uuids[int(visible)] if int(visible) < len(uuids) else f"cuda-{visible}"
    return next((uuid for uuid in uuids if uuid.startswith(visible)), visible)  # identities may be abbreviated


@contextmanager
def file_lock(path: Path, shared: bool = False) -> Iterator[IO[str]]:
    """Hold an flock on ``path``; waits for it. The system releases it when the process dies.

    Raises:
        UserError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield file


def try_lock(path: Path, shared: bool = False) -> IO[str] | None:
    """Take an flock now, or None when someone holds it. Close the file to release.

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

    Of several that share devices and ask at the same time the dearest chooses first.

    Args:
        pool: device names; with a ``cpu`` entry among them nothing is locked and the first ``count`` are returned.
        slots: leases of one device at once. With 1 it is held alone, whatever other sessions allow.
        waiting: called once a second while devices are busy; raise in it to give up.
        cost: how busy the lease will keep a device; a device is as busy as its leases' costs add up to.

    Raises:
        ValueError: the pool has fewer different devices than asked for, so no wait would ever end.
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
    """Of those that come at the same time the dearest enters first: only then costs fill devices evenly."""
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
    """Costs of those that asked a moment ago; who asked longer ago has had its turn, or died."""
    for path in asking.iterdir():
        cost, asked, *_ = path.name.split("_")
        if 0.0 <= time.monotonic() - float(asked) < LONGEST_TURN:  # negative: before the machine was started again
            yield float(cost)
        else:
            path.unlink(missing_ok=True)


def _take_free(pool: Sequence[str], count: int, slots: int, lock_dir: Path, held: ExitStack, cost: float) -> list[str]:
    """Lock ``count`` devices, the least busy first, and have ``held`` release them; fewer than that: none is locked."""
    taken = []
    with file_lock(lock_dir / "choosing.lock"):  # one chooses at a time: each sees what those before it took
        for device in sorted(dict.fromkeys(pool), key=lambda device: _busy(device, lock_dir)):
            if len(taken) < count and any(_take(device, slot, slots, lock_dir, held, cost) for slot in range(slots)):
                taken.append(device)
        if len(taken) < count:
            held.close()
    return taken


def _take(device: str, slot: int, slots: int, lock_dir: Path, held: ExitStack, cost: float) -> bool:
    """Lock one slot of a device and, together with those who share it, the device; False when either is taken."""
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
    """The costs of a device's leases together."""
    total = 0.0
    for path in lock_dir.glob(f"{physical_name(device)}.*.lock"):
        if (lock := try_lock(path)) is None:
            total += float(path.read_text() or 1.0)
        else:
            lock.close()
    return total
