"""Names that are not known, and which was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path

from mimickit.util.assets import FOLDERS, SHIPPED
from mimickit.util.failures import UserError

MOST_FILES = 5000  # of a folder that are looked at


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`` (did you mean 'x'?)`` for the closest known name, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{prefix}{close[0]}'?)" if close else ""


def check_known(names: Iterable[str], known: Collection[str], what: str) -> None:
    """Raises UserError that says ``what`` of all names that are not known, and which are."""
    if unknown := [f"{what} '{name}'{nearest(name, known)}" for name in names if name not in known]:
        raise UserError(f"{'; '.join(unknown)}; known are {', '.join(known) or 'none'}")


def missing_file(path: str | Path) -> str:
    """A path where no file is, for a message, with the nearest of the same ending: in its folder, here or among the
    shipped ones; below ``args/`` and ``data/`` in any folder. A name without a folder, as ``mimickit list`` prints it,
    is looked for in all of these."""
    path = Path(path)
    if path.parent == Path() and (known := _of_name(path.name)):
        return f"{path} (did you mean '{known}'?)"
    known = [file for folder in (path.parent, SHIPPED / path.parent) for file in _files(folder, f"*{path.suffix}")]
    if known:
        return f"{path}{nearest(path.name, known, '' if path.parent == Path() else f'{path.parent}/')}"
    if path.parts[:1] and path.parts[0] in FOLDERS:
        found = islice((SHIPPED / path.parts[0]).rglob(f"*{path.suffix}"), MOST_FILES)
        return f"{path}{nearest(str(path), (str(file.relative_to(SHIPPED)) for file in found))}"
    return str(path)


def _of_name(name: str) -> Path | None:
    """The first file of ``args/`` and ``data/`` with a name, its ending given or not."""
    files = (file.relative_to(root) for root in (Path(), SHIPPED) for folder in FOLDERS
             for file in islice((root / folder).rglob("*.*"), MOST_FILES))
    return next((file for file in files if name in (file.name, file.stem)), None)


def _files(folder: Path, pattern: str) -> list[str]:
    try:
        return [file.name for file in islice(folder.glob(pattern), MOST_FILES)]
    except (OSError, ValueError):  # not readable, or no name that a folder can have
        return []
