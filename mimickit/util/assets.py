"""Where files of ``args/`` and ``data/`` are found: in the working directory, else among the shipped ones."""

from __future__ import annotations

import os
from pathlib import Path

FOLDERS = ("args", "data")
DEFAULT_ENGINE_FILE = "data/engines/newton_engine.yaml"
_PACKAGE = Path(__file__).resolve().parents[1]
# the wheel carries both folders in the package; in a checkout they stand beside it
SHIPPED = _PACKAGE / "_shipped" if (_PACKAGE / "_shipped").is_dir() else _PACKAGE.parent


def locate(path: str | Path, root: Path = Path()) -> Path:
    """A path below ``root`` (the working directory), or the shipped file of that name where there is none.

    Only relative paths into :data:`FOLDERS` are looked up. What is found nowhere stays as given, for messages.
    """
    path, own = Path(path), root / path
    if not path.parts or path.parts[0] not in FOLDERS or os.path.lexists(own):
        return own
    shipped = SHIPPED / path
    return shipped if os.path.exists(shipped) else own
