"""A small server of a page, for this machine only unless told otherwise. It sends the page's files and no others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LOOPBACK = "127.0.0.1"
PORT = 8100
FRESH = 2.0  # s for which a page that was written is young enough


class Handler(SimpleHTTPRequestHandler):
    """``index.html`` and what lies in ``page/``; nothing else of the folder, links out of it neither."""

    def __init__(self, *args: Any, renew: Callable[[], None], **kwargs: Any) -> None:
        self.renew = renew
        super().__init__(*args, **kwargs)

    def send_head(self) -> Any:
        path = unquote(urlsplit(self.path).path)
        if path in ("/", "/index.html", "/page/live.js"):
            self.renew()
        parts = path.lstrip("/").split("/")
        own = path in ("/", "/index.html") or (parts[0] == "page" and len(parts) > 1 and parts[-1])
        if not own or ".." in parts or any(part.startswith(".") for part in parts):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

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

    def renew() -> None:
        with lock:
            if time.monotonic() - written[0] >= FRESH or not written[0]:
                write()
                written[0] = time.monotonic()

    handler = partial(Handler, directory=str(folder), renew=renew)
    for candidate in range(port, port + 20 if port else 1):
        try:
            return ThreadingHTTPServer((host, candidate), handler)
        except OSError:
            if candidate == port + 19 or not port:
                raise
    raise AssertionError("unreachable")
