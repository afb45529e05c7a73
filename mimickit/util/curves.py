"""Learning curves: columns of ``log.txt`` as numbers and as pictures. Needs matplotlib (extra ``results``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimickit.util.failures import AssetMissingError, UserError
from mimickit.util.files import atomic_path
from mimickit.util.logging import read_log
from mimickit.util.names import nearest

LABELS = {"Samples": "samples", "Wall_Time": "hours", "Iteration": "iteration"}
PANEL = (4.2, 2.8)  # inches


@dataclass(frozen=True)
class Curves:
    """One run's log: ``columns[name]`` [rows]."""

    label: str
    columns: Mapping[str, np.ndarray]

    def column(self, name: str) -> np.ndarray:
        """A column's numbers [rows]. Raises UserError naming the nearest column when there is no such."""
        if name not in self.columns:
            raise UserError(f"{self.label}: no column '{name}'{nearest(name, self.columns)}; there are: "
                            + ", ".join(self.columns))
        return self.columns[name]

    def line(self, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
        """Points of ``y`` over ``x``; rows that were not evaluated have none.

        Older logs have ``Test_Samples`` and repeat evaluations beside training: those stand once, at the samples that
        their policy had learned from.
        """
        across, values = self.column(x), self.column(y)
        if y.startswith("Test_") and {"Test_Samples", "Test_Episodes"} <= set(self.columns):
            of = self.columns["Test_Samples"]
            of = np.where(np.isnan(of), self.column("Samples"), of)  # rows of a newer run that continued
            new = (self.columns["Test_Episodes"] > 0.0) & (np.diff(of, prepend=-1.0) != 0.0)
            across, values = (of if x == "Samples" else across)[new], values[new]
        if y.startswith("Test_"):
            there = ~np.isnan(values)
            across, values = across[there], values[there]
        return across, values


@dataclass(frozen=True)
class Panel:
    """What is drawn in one place: a column of some runs."""

    title: str
    column: str
    runs: Sequence[Curves]


def read_curves(path: Path, label: str = "") -> Curves:
    """Read a ``log.txt``, or that of a run folder, ours or MimicKit's (white space or comma separated).

    Raises:
        AssetMissingError: no such file.
        UserError: not a text file, a row has not as many cells as the first row has names, or a cell is no number.
    """
    file = path / "log.txt" if path.is_dir() else path
    if not file.is_file():
        raise AssetMissingError(f"{file}: no such log (give a log.txt or the folder of a run)")
    try:
        names, rows = read_log(file)
    except UnicodeDecodeError:
        raise UserError(f"{file} is not a text file (give a log.txt or the folder of a run)") from None
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise UserError(f"{file}: row {number} has {len(row)} cells for {len(names)} columns")
    try:
        table = np.array(rows, dtype=float).reshape(len(rows), len(names))
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    return Curves(label or str(path), dict(zip(names, table.T, strict=True)))


def joined(parts: Sequence[Curves], label: str) -> Curves:
    """Runs that continue each other as one; only columns that all have.

    A run without ``Test_Samples`` paused for its evaluations, which are of the policy as it was in their rows.
    """
    if any("Test_Samples" in part.columns for part in parts):
        parts = [Curves(part.label, {"Test_Samples": part.column("Samples"), **part.columns}) for part in parts]
    names = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    return Curves(label, {name: np.concatenate([part.columns[name] for part in parts]) for name in names})


def smooth(values: np.ndarray, rows: int) -> np.ndarray:
    """Mean of each value and the up to ``rows`` - 1 before it, [K]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(1, len(values) + 1)
    start = np.maximum(index - rows, 0)
    return (sums[index] - sums[start]) / (index - start)


def draw_panels(
    rows: Sequence[Sequence[Panel]], path: Path, x: str = "Samples", smoothing: int = 1
) -> None:
    """Draw rows of panels as a picture, in the format of the path's ending (png, svg, pdf).

    Raises:
        UserError: matplotlib is missing, a run lacks a column, or the format is unknown.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("curves need the package matplotlib: pip install -c constraints.txt -e '.[results]'") from None
    width = max(len(row) for row in rows)
    figure = Figure(figsize=(PANEL[0] * width, PANEL[1] * len(rows)), layout="constrained")
    if (ending := path.suffix.removeprefix(".")) not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path}: pictures can end in {', '.join(sorted(figure.canvas.get_supported_filetypes()))}")
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            draw_panel(figure.add_subplot(len(rows), width, i * width + j + 1), panel, x, smoothing)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=ending, dpi=90)


def draw_panel(axes: Any, panel: Panel, x: str, smoothing: int) -> None:
    """Lines of one column, a line each run, with marks where there are few values."""
    for run in panel.runs:
        across, values = run.line(x, panel.column)
        axes.plot(across, smooth(values, smoothing), "-" if len(across) > 30 else ".-", label=run.label, linewidth=1.3,
                  markersize=4)
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel(LABELS.get(x, x), fontsize=8)
    axes.set_ylabel(panel.column, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.xaxis.get_offset_text().set_fontsize(7)
    axes.yaxis.get_offset_text().set_fontsize(7)
    axes.grid(alpha=0.3)
    axes.margins(x=0.02)
    if len(panel.runs) > 1:
        axes.legend(fontsize=7)
