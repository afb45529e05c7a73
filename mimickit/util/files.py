"""Files that are never half written: everything is written aside, flushed to disk and renamed. No heavy imports."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it and rename it over ``path``, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming_full_disk(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with naming_full_disk(path):
            yield temporary
            fsync(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming_full_disk(path: Path, size: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Let the OSError of a full disk, quota or size limit say what was written, how much it needs and what is free.

    Args:
        size: bytes that ``path`` needs; 0 where it is small.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or isinstance(error, FullDiskError):
            raise
        need = f" {size() / 2**20:.1f} MiB are needed," if size() else ""
        state = os.statvfs(path.parent)
        free = state.f_bavail * state.f_frsize / 2**20
        raise FullDiskError(error.errno, f"{error.strerror}:{need} {free:.1f} MiB are free", str(path)) from error


class FullDiskError(OSError):
    """A full disk, quota or size limit; the message names the file and sizes."""


def remove_half_written(folder: Path) -> None:
    """Remove what processes that were killed in :func:`atomic_path` left below a folder in which nobody writes now."""
    for path in Path(folder).rglob(".*.tmp"):
        if path.is_file():
            path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Flush a file or a folder entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Replace ``path`` by ``data`` as indented JSON, atomically. Non-finite numbers become strings ("nan", "inf")."""
    write_text(path, json.dumps(plain(data), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The mapping that a JSON file holds; {} when there is no such file, or none that can be read."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def plain(data: Any) -> Any:
    """``data`` as :func:`read_json` would give it back after :func:`write_json`."""
    if isinstance(data, dict):
        return {str(k): plain(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(v) for v in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return str(data)
    if isinstance(data, Path):
        return str(data)
    return data


def write_tsv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace ``path`` by a table, atomically; tabs and line ends inside values become spaces, None an empty cell."""
    cells = [columns, *([" ".join(str("" if row.get(c) is None else row[c]).split()) for c in columns] for row in rows)]
    write_text(path, "".join("\t".join(line) + "\n" for line in cells))


def read_tsv(path: Path) -> list[dict[str, str]]:
    """The rows of a table by column; none when there is no such file."""
    if not path.is_file():
        return []
    table = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [dict(zip(table[0], cells)) for cells in table[1:]]
