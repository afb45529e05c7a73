"""What a run tells while it runs: ``log.txt``, the console, TensorBoard or W&B, ``progress.json`` and heartbeats."""

from __future__ import annotations

import math
import shutil
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from mimickit.util.failures import UserError
from mimickit.util.files import write_json, write_text

LoggerKind = Literal["txt", "tb", "wandb"]
Number = int | float

CELL = 25
_MAIN = frozenset({"Test_Return", "Test_Episode_Length", "Train_Return", "Train_Episode_Length"})
_INFO = frozenset({"Iteration", "Wall_Time", "Samples", "Test_Episodes", "Train_Episodes"})


def column_name(name: str) -> str:
    """``root_pos_err`` -> ``Root_Pos_Err``."""
    return "_".join(word.capitalize() for word in name.split("_"))


def format_row(cells: Iterable[str]) -> str:
    """Left-aligned cells of 25 characters, with at least one blank after each, ended by a newline."""
    return "".join(f"{cell:<{CELL}}" if len(cell) < CELL else f"{cell} " for cell in cells) + "\n"


def read_log(path: Path) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of a ``log.txt``; carriage returns are accepted as row ends, commas as separators."""
    lines = path.read_text(encoding="utf-8").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    rows = [line.replace(",", " ").split() for line in lines if line.strip()]
    return (rows[0], rows[1:]) if rows else ([], [])


class Logger:
    """The table of output iterations, on the root process only.

    Columns are fixed by the first row: later ones are dropped with a warning, absent ones are written as ``nan``.

    Args:
        out_dir: run folder.
        kind: ``txt``, or ``tb`` / ``wandb`` beside it.
        resume_iteration: continue an existing ``log.txt``, dropping rows of this and later iterations, and rows that
            were not evaluated before the end (``Test_Return`` nan). None truncates.
        config: agent configuration, for W&B.
        enabled: False (other ranks) writes nothing.

    Raises:
        UserError: the library for ``kind`` is not installed.
    """

    def __init__(
        self,
        out_dir: Path,
        kind: LoggerKind = "txt",
        resume_iteration: int | None = None,
        config: Mapping[str, Any] | None = None,
        enabled: bool = True,
    ) -> None:
        self._path = Path(out_dir) / "log.txt"
        self._enabled = enabled
        self._columns: list[str] | None = None
        self._dropped: set[str] = set()
        self._sink: _TensorBoard | _Wandb | None = None
        if not enabled:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if resume_iteration is not None and self._path.exists():
            self._keep_rows_before(resume_iteration)
        else:
            write_text(self._path, "")
        if kind == "tb":
            self._sink = _TensorBoard(out_dir)
        elif kind == "wandb":
            self._sink = _Wandb(out_dir, config)
        elif kind != "txt":
            raise UserError(f"--logger must be txt, tb or wandb, got '{kind}'")

    def write(self, row: Mapping[str, Number], measures: Iterable[str] = ()) -> None:
        """Append a row and flush it. ``measures`` names the columns that the environment contributed."""
        if not self._enabled:
            return
        header = ""
        if self._columns is None:
            self._columns = list(row)
            header = format_row(self._columns)
        for name in row:
            if name not in self._columns and name not in self._dropped:
                self._dropped.add(name)
                warnings.warn(f"log column {name} appeared after the first row and is not logged", stacklevel=2)
        cells = [_exact(row.get(name, math.nan)) for name in self._columns]
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(header + format_row(cells))
        if self._sink is not None:
            measures = set(measures)
            known = {name: row[name] for name in self._columns if not math.isnan(row.get(name, math.nan))}
            self._sink.write({f"{_collection(k, measures)}/{k}": v for k, v in known.items()}, int(row["Samples"]))

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()

    def _keep_rows_before(self, iteration: int) -> None:
        columns, rows = read_log(self._path)
        if "Iteration" not in columns:
            write_text(self._path, "")
            return
        rows = [dict(zip(columns, row)) for row in rows if len(row) == len(columns)]
        kept = [list(row.values()) for row in rows
                if int(float(row["Iteration"])) < iteration and row.get("Test_Return") != "nan"]
        self._columns = columns if kept else None
        write_text(self._path, "".join(format_row(r) for r in [columns, *kept]) if kept else "")


class _TensorBoard:
    def __init__(self, out_dir: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError("--logger tb needs the package tensorboardX: pip install tensorboardX") from None
        self._writer = SummaryWriter(logdir=str(out_dir))

    def write(self, tags: Mapping[str, Number], step: int) -> None:
        for tag, value in tags.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, out_dir: Path, config: Mapping[str, Any] | None) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("--logger wandb needs the package wandb: pip install wandb") from None
        self._run = wandb.init(project="mimickit", name="log", dir=str(out_dir), config=dict(config or {}))

    def write(self, tags: Mapping[str, Number], step: int) -> None:
        self._run.log(dict(tags), step=step)

    def close(self) -> None:
        self._run.finish()


def print_row(row: Mapping[str, Number], progress: Progress) -> None:
    """Print one iteration: a line of progress, then the numbers with 3 significant digits in a compact table."""
    cells = [f"{name} {_short(value)}" for name, value in row.items()]
    width = max(len(cell) for cell in cells) + 2
    per_line = max(1, min(4, shutil.get_terminal_size((120, 24)).columns // width))
    lines = ["".join(f"{c:<{width}}" for c in cells[i:i + per_line]).rstrip() for i in range(0, len(cells), per_line)]
    print("\n".join([f"--- {progress.describe()}", *lines]), flush=True)


class Progress:
    """``progress.json`` of a run and its speed over the last iterations. Writes at most once a second."""

    def __init__(self, out_dir: Path, max_samples: int, enabled: bool = True) -> None:
        self._path = Path(out_dir) / "progress.json"
        self._enabled = enabled
        self._written = -math.inf
        self._recent: deque[tuple[float, int]] = deque(maxlen=21)
        self._max_samples = max_samples
        self._limited = max_samples < 2**62
        self.iteration = 0
        self.samples = 0
        self.phase = "starting"

    @property
    def samples_per_s(self) -> float:
        """Speed over the last 20 iterations, evaluations included; 0 before the second one."""
        if len(self._recent) < 2:
            return 0.0
        (t0, s0), (t1, s1) = self._recent[0], self._recent[-1]
        return (s1 - s0) / max(t1 - t0, 1e-9)

    @property
    def eta_s(self) -> float | None:
        """Seconds until ``max_samples`` at the present speed, None while unknown or without a limit."""
        if self.samples_per_s <= 0.0 or not self._limited:
            return None
        return max(self._max_samples - self.samples, 0) / self.samples_per_s

    def advance(self, iteration: int, samples: int) -> None:
        """An iteration ended."""
        self.iteration, self.samples = iteration, samples
        self._recent.append((time.monotonic(), samples))
        self.write()

    def enter(self, phase: str) -> None:
        """Change the phase: starting, compiling, training, evaluating, testing, done. Written soon."""
        if phase != self.phase:
            self.phase = phase
            self.write(now=phase in ("starting", "compiling", "testing", "done"))

    def write(self, now: bool = False) -> None:
        if not self._enabled or (not now and time.monotonic() - self._written < 1.0):
            return
        self._written = time.monotonic()
        write_json(self._path, {
            "iteration": self.iteration,
            "samples": self.samples,
            "max_samples": self._max_samples if self._limited else None,
            "samples_per_s": self.samples_per_s,
            "eta_s": self.eta_s,
            "phase": self.phase,
            "time": time.time(),
        })

    def describe(self) -> str:
        """``iteration 12 | 1.57M of 30M samples (5.2%) | 88.1k samples/s | 5m24s left``"""
        share = f" of {_si(self._max_samples)} samples ({self.samples / self._max_samples:.1%})"
        parts = [f"iteration {self.iteration}", f"{_si(self.samples)}{share if self._limited else ' samples'}"]
        if self.samples_per_s > 0:
            parts.append(f"{_si(self.samples_per_s)} samples/s")
        if self.eta_s is not None:
            parts.append(f"{_duration(self.eta_s)} left")
        return " | ".join(parts)


class Heartbeat:
    """``heartbeat/rank_<r>``: an empty file whose modification time is this process's sign of life.

    Touched at most once a second, so that it may be called every step.
    """

    def __init__(self, out_dir: Path, rank: int) -> None:
        self._path = Path(out_dir) / "heartbeat" / f"rank_{rank}"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._last = -math.inf
        self.beat()

    def beat(self) -> None:
        if time.monotonic() - self._last >= 1.0:
            self._last = time.monotonic()
            self._path.touch()


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _collection(name: str, measures: set[str]) -> str:
    if name in _MAIN:
        return "0_Main"
    if name in _INFO:
        return "1_Info"
    return "2_Env" if name in measures else "Misc"


def _exact(value: Number) -> str:
    return str(int(value)) if isinstance(value, int) else repr(float(value))


def _short(value: Number) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _si(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
