"""Runs a command so that no part of it outlives the pytest process.

``python guard.py command ...`` leads a stage's process group. Its standard input is a pipe whose other end only pytest
holds: when pytest dies, however it dies, the pipe closes and the guard kills everything below itself. As a child
subreaper (prctl, Linux) it adopts processes that left the group, as torchrun's workers do, so a finished or killed
command leaves nothing behind either. When the guard itself is killed, the system kills the command, and the next stage
kills the rest: all processes of a stage carry its folder in their environment. SIGTERM and SIGINT are passed to the
command alone, once: it tells its own children, for whom a second signal would mean "at once". Exit code: the
command's, or 128 + signal when a signal ended it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # run as a script, isolated: import the package, not the files beside this one
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mimickit.util.processes import WATCHED, adopt_orphans, end_with_parent

KILLED = 128 + signal.SIGKILL


def descendants(pid: int, states: str = "") -> list[int]:
    """Living (not zombie) processes below ``pid``, whatever their group or session.

    ``states``: only those in one of these states (letters of proc(5): T stopped, t traced).
    """
    children: dict[int, list[int]] = {}
    out = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # has ended
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            children.setdefault(int(parent), []).append(int(stat.parent.name))
            if state == "Z" or (states and state not in states):
                out.add(int(stat.parent.name))
    found, frontier = [], [pid]
    while frontier:
        below = children.get(frontier.pop(), [])
        found += below
        frontier += below
    return [process for process in found if process not in out]


def processes_of(folder: Path) -> list[int]:
    """Living processes of this host that belong to the stage in a folder, whatever their parent."""
    entry, found = f"{WATCHED}={folder.absolute()}".encode(), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # has ended, or belongs to somebody else
            if entry in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def kill_descendants(pid: int) -> None:
    """SIGKILL everything below ``pid``."""
    _kill_all(functools.partial(descendants, pid))


def kill_stage(folder: Path) -> None:
    """SIGKILL everything that belongs to the stage in a folder."""
    _kill_all(functools.partial(processes_of, folder))


def _kill_all(find: Callable[[], list[int]]) -> None:
    """SIGKILL what is found until nothing is left: new processes may appear meanwhile."""
    deadline = time.monotonic() + 10.0
    while (found := find()) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)


def dump_stacks(pid: int) -> int:
    """Send SIGUSR1 to every process below ``pid`` that handles it (faulthandler prints its stacks); returns how
    many.

    Stopped ones are continued first: they could neither print nor write a checkpoint.
    """
    count = 0
    for process in descendants(pid):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{process}/status").read_text()
            caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
            if caught >> (signal.SIGUSR1 - 1) & 1:
                os.kill(process, signal.SIGUSR1)
                os.kill(process, signal.SIGCONT)
                count += 1
                time.sleep(0.1)  # one at a time: they write to one file
    return count


def main(command: list[str]) -> int:
    adopt_orphans()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                               preexec_fn=functools.partial(end_with_parent, os.getpid()))
    child = process.pid

    def forward(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # a child's end wakes the select
    try:
        while True:
            ready = select.select([0, woken], [], [], 0.2)[0]
            if 0 in ready and not os.read(0, 1):  # end of file: pytest is gone or gave up
                return KILLED
            if woken in ready:
                os.read(woken, 4096)
            while (ended := reap())[0]:
                if ended[0] == child:
                    process.returncode = ended[1]
                    return ended[1] if ended[1] >= 0 else 128 - ended[1]
    finally:
        kill_descendants(os.getpid())


def reap() -> tuple[int, int]:
    """(pid, exit code) of one ended child, adopted ones included; (0, 0) when none has ended."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return 0, 0
    return pid, os.waitstatus_to_exitcode(status) if pid else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
