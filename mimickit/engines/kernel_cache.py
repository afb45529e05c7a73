"""Compile physics kernels once per machine.

Warp keeps compiled kernels in a cache folder (``WARP_CACHE_PATH``). Processes that start on an empty one would all
compile everything; here the first compiles and the others wait for it, then load. A marker file for each combination
of versions, device, character and settings lets warm starts skip the lock. Several combinations compile side by side
where the machine has cores to spare, each in one thread; what they share is then compiled more than once (Warp renames
what is finished into place).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import warp as wp
from filelock import FileLock, Timeout

from mimickit.util.alive import ALIVE, WAITING
from mimickit.util.failures import FailureClass, MimicKitError, UserError
from mimickit.util.files import write_text

PROGRESS_INTERVAL_S = 15.0
CORES_A_COMPILER = 4  # of the machine, for each process that compiles
POLL_S = 0.5
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
NO_ROOM = 2**20  # bytes: with less a disk counts as full


class KernelCacheError(UserError):
    """Compiled kernels cannot be kept; the message says where and what to do."""

    failure_class: FailureClass = "disk"


def cache_key(*parts: object) -> str:
    """Name of a combination that needs its own kernels: what the caller names, plus versions of the libraries."""
    versions = [f"{name}={importlib.metadata.version(name)}" for name in ("warp-lang", "newton", "mujoco-warp")]
    return hashlib.sha256(repr((versions, parts)).encode()).hexdigest()[:24]


@contextlib.contextmanager
def compile_lock(key: str, cache_dir: Path | None = None, what: str = "physics") -> Iterator[bool]:
    """Hold while kernels are compiled or loaded; yields whether they have to be compiled.

    Args:
        key: see :func:`cache_key`.
        cache_dir: Warp's cache folder of this version; found by default.
        what: for the messages.

    Raises:
        KernelCacheError: the folder is full or cannot be written, or its file system has no locks.
    """
    cache_dir = Path(cache_dir) if cache_dir is not None else warp_cache_dir()
    done = marker(key, cache_dir)
    if done.exists():
        yield False
        return
    with contextlib.ExitStack() as held:
        held.enter_context(_naming_the_cache(cache_dir))
        cache_dir.mkdir(parents=True, exist_ok=True)
        held.enter_context(_first_free([cache_dir / f"mimickit_compile_{key}.lock"]))
        if done.exists():
            held.close()
            yield False
            return
        slots = max(1, len(os.sched_getaffinity(0)) // CORES_A_COMPILER)
        held.enter_context(_first_free([cache_dir / f"mimickit_compiler_{i}.lock" for i in range(slots)]))
        print(f"compiling {what} kernels (once per machine, about a minute)...", flush=True)
        started = time.perf_counter()
        with ALIVE.compiling(), _progress(cache_dir):
            yield True
        write_text(done, "")
        print(f"{what} kernels ready after {time.perf_counter() - started:.0f} s", flush=True)


@contextlib.contextmanager
def _naming_the_cache(folder: Path) -> Iterator[None]:
    """Say so where the cache is why kernels cannot be compiled; compilers leave other words behind, or none."""
    try:
        yield
    except Exception as error:
        number, file = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
        if isinstance(error, MimicKitError) or (file and folder not in (Path(file), *Path(file).parents)
                                                and Path(file) not in folder.parents):
            raise  # about something else
        place = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(place).free
        if number in NO_LOCKS or isinstance(error, NotImplementedError):  # filelock's word for ENOSYS
            problem = "cannot be locked: its file system has no locks"
        elif number in (errno.ENOSPC, errno.EDQUOT) or free < NO_ROOM:
            problem = f"is full, {free / 2**20:.1f} MiB are free: make room there"
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            problem = f"cannot be written: {error.strerror}"
        else:
            raise
        raise KernelCacheError(f"the folder of compiled kernels {folder} {problem}, or let the environment variable "
                               f"WARP_CACHE_PATH name a folder on a local disk with room") from error


def marker(key: str, cache_dir: Path | None = None) -> Path:
    """A file that exists when these kernels were compiled."""
    return (cache_dir or warp_cache_dir()) / "mimickit_compiled" / key


def warp_cache_dir() -> Path:
    """Warp's kernel cache folder of the installed version."""
    wp.init()
    return Path(wp.config.kernel_cache_dir)


@contextlib.contextmanager
def _first_free(files: Sequence[Path]) -> Iterator[None]:
    """Hold the first lock that is free; says so once if it has to wait for one, and beats as long as it waits."""
    locks, told = [FileLock(file) for file in files], False
    while (free := next(filter(_try_acquire, locks), None)) is None:
        if not told:
            print("another process compiles kernels; waiting for it...", flush=True)
            ALIVE.enter(WAITING)
            told = True
        ALIVE.beat()
        time.sleep(POLL_S)
    if told:
        ALIVE.enter("starting")
    try:
        yield
    finally:
        free.release()


def _try_acquire(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


@contextlib.contextmanager
def _progress(cache_dir: Path) -> Iterator[None]:
    """Say every few seconds that compilation goes on."""
    stop = threading.Event()
    started = time.perf_counter()

    def report() -> None:
        while not stop.wait(PROGRESS_INTERVAL_S):
            modules = sum(1 for path in cache_dir.glob("wp_*") if path.is_dir())
            print(f"  ...{time.perf_counter() - started:.0f} s, {modules} kernel modules in the cache", flush=True)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
