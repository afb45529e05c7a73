"""Tables as files: tab separated text with a header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mimickit.util.files import write_text


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
