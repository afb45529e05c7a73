"""A small server of a page, for this machine only unless told otherwise. It sends the page's files and no others."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mimickit.util.failures import UserError

LOOPBACK = "127.0.0.1"
PORT = 8100
RANGE = re.compile(r"bytes=(\d+)-(\d*)")  # of a request: the part of a file that is wanted
FRESH = 2.0  # s for which a page that was written is young enough


class Handler(SimpleHTTPRequestHandler):
    """``index.html`` and what lies in ``page/``; nothing else of the folder, links out of it neither."""

    def __init__(self, *args: Any, renew: Callable[[], str], **kwargs: Any) -> None:
        self.renew = renew
        super().__init__(*args, **kwargs)

    def send_head(self) -> Any:
        path = unquote(urlsplit(self.path).path)
        if path in ("/", "/index.html", "/page/live.js") and (trouble := self.renew()):
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=trouble)
            return None
        parts = path.lstrip("/").split("/")
        own = path in ("/", "/index.html") or (parts[0] == "page" and len(parts) > 1 and parts[-1])
        file = Path(self.translate_path(self.path)).resolve()
        inside = file.is_relative_to(Path(self.directory).resolve())
        if not own or not inside or ".." in parts or any(part.startswith(".") for part in parts):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        wanted = RANGE.fullmatch(self.headers.get("Range", ""))
        return self.send_part(file, wanted) if wanted and file.is_file() else super().send_head()

    def send_part(self, file: Path, wanted: re.Match[str]) -> io.BytesIO | None:
        """The bytes that ``Range`` asks for: without them a browser cannot move to a place in a film."""
        data = file.read_bytes()
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if first > last:
            self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return None
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", self.guess_type(str(file)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        return io.BytesIO(data[first:last + 1])

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        pass


def make_server(folder: Path, write: Callable[[], None], host: str = LOOPBACK, port: int = PORT) -> ThreadingHTTPServer:
    """A server of a page's folder, on the next free port from ``port`` on (0: any).

    Args:
        write: writes the page anew; called when somebody looks and the last time is ``FRESH`` ago.

    Raises:
        OSError: no port is free, or the host is none of this machine's.
    """
    lock, written = threading.Lock(), [0.0]

    def renew() -> str:
        with lock:
            if time.monotonic() - written[0] >= FRESH or not written[0]:
                try:
                    write()
                except (UserError, OSError) as error:  # the root was removed, its disk is full
                    return f"the page cannot be written: {error}"
                written[0] = time.monotonic()
        return ""

    handler = partial(Handler, directory=str(folder), renew=renew)
    for candidate in range(port, port + 20 if port else 1):
        try:
            return ThreadingHTTPServer((host, candidate), handler)
        except OSError:
            if candidate == port + 19 or not port:
                raise
    raise AssertionError("unreachable")
