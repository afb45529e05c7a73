"""How processes are watched, and how they end: with the one that started them (prctl, Linux), at once, but not with the
reader of what they print. No heavy imports."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

WATCHED = "MIMICKIT_HEARTBEAT"  # environment variable of processes that are watched from their start: the run folder
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
INTERRUPTED = "interrupted"
_tell: Callable[[], str] = INTERRUPTED.__str__
_PRCTL = ctypes.CDLL(None).prctl


def end_with_parent(parent: int) -> None:
    """From now on the system kills this process (SIGKILL) when its parent ends, however that ends.

    The system looks at the thread that started this process: it has to be one that lives as long as its process.

    Args:
        parent: pid of the parent; where it has ended already, this process ends here and now.
    """
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """From now on what descendants leave behind when they end becomes a child of this process."""
    _PRCTL(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def is_alive(pid: int) -> bool:
    """Whether a process of this host can still run code.

    One that was killed and whose memory is gone cannot, though the system may take seconds to take it apart and keeps
    its locks until then.
    """
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and not Path(f"/proc/{pid}/statm").read_text().startswith("0 ")
    return False


def end_at_interrupt() -> None:
    """From now on Ctrl-C ends the process at once: an exception would crash the libraries that are being imported. It
    says what :func:`at_interrupt` was given."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody wants it ignored
        signal.signal(signal.SIGINT, _end_now)


def heed_interrupt() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again, see :func:`end_at_interrupt`."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def at_interrupt(tell: Callable[[], str]) -> None:
    """What to do at Ctrl-C while :func:`end_at_interrupt` holds; returns what to say."""
    global _tell
    _tell = tell


def _end_now(*_: object) -> None:
    os.write(2, f"{_tell()}\n".encode())
    os._exit(128 + signal.SIGINT)


class _Outlet(io.FileIO):
    """A file descriptor that leads nowhere once nobody reads it any more."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for libraries that write there too
            os.close(nowhere)
            return len(data)


def outlive_reader() -> None:
    """From now on what nobody reads (``| head``) is lost, and the program goes on."""
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None:
            stream.flush()
            buffer = io.BufferedWriter(_Outlet(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(
                buffer, stream.encoding, stream.errors, line_buffering=stream.line_buffering,
                write_through=name == "stderr"))


def leave(code: int) -> NoReturn:
    """Flush and end the process at once: Warp's and torch's own clean-up takes seconds and frees nothing more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
