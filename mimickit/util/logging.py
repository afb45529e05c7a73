"""What a run tells while it runs: ``log.txt``, the console, TensorBoard or W&B, ``progress.json`` and heartbeats."""

from __future__ import annotations

import functools
import math
import os
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


def read_log(path: Path, errors: str = "strict") -> tuple[list[str], list[list[str]]]:
    """Column names and rows of a ``log.txt``; carriage returns are accepted as row ends, commas as separators.

    Raises:
        UnicodeDecodeError: it is no text, unless ``errors`` (as of :meth:`bytes.decode`) says otherwise.
    """
    text = path.read_text(encoding="utf-8", errors=errors)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
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
            Lines that are no rows are dropped with a warning; a file that is no log at all is kept under another name.
        config: agent configuration, for W&B.
        enabled: False (other ranks) writes nothing.
        run: name of the run, under which W&B continues it.

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
        run: str = "",
    ) -> None:
        self._path = Path(out_dir) / "log.txt"
        self._logged = -1  # samples of the last row that is kept
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
            self._sink = _TensorBoard(out_dir, None if resume_iteration is None else self._logged + 1)
        elif kind == "wandb":
            self._sink = _Wandb(out_dir, config, run)
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
        columns, rows = read_log(self._path, errors="replace")
        if "Iteration" not in columns or "Samples" not in columns:
            if columns:
                aside = _free_name(self._path)
                self._path.rename(aside)
                warn(f"{self._path} is no log of this program (its first line names no Iteration and Samples): it is "
                     f"now {aside.name}, a new one begins")
            write_text(self._path, "")
            return
        index, samples = columns.index("Iteration"), columns.index("Samples")
        whole = [r for r in rows if len(r) == len(columns) and all(map(_is_number, r))
                 and math.isfinite(float(r[index]) + float(r[samples]))]
        if len(whole) < len(rows):
            warn(f"{self._path}: {len(rows) - len(whole)} of {len(rows)} lines are no rows of {len(columns)} numbers "
                 "(torn, or of another log) and are dropped")
        tested = columns.index("Test_Return") if "Test_Return" in columns else index
        kept = [r for r in whole if float(r[index]) < iteration and not math.isnan(float(r[tested]))]
        order = [float(r[index]) for r in kept]
        if order != sorted(set(order)):
            warn(f"{self._path} holds rows of more than one run: iterations do not rise from row to row; all are kept")
        self._columns = columns if kept else None
        self._logged = max((int(float(r[samples])) for r in kept), default=-1)
        write_text(self._path, "".join(format_row(r) for r in [columns, *kept]) if kept else "")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _free_name(path: Path) -> Path:
    """``log_1.txt`` beside ``log.txt``, or the next that is not taken."""
    n = 1
    while (free := path.with_stem(f"{path.stem}_{n}")).exists():
        n += 1
    return free


class _TensorBoard:
    def __init__(self, out_dir: Path, first_step: int | None) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError("--logger tb needs the package tensorboardX: pip install tensorboardX") from None
        # What an earlier process of this run wrote from this step on is not shown.
        self._writer = SummaryWriter(logdir=str(out_dir), purge_step=first_step)

    def write(self, tags: Mapping[str, Number], step: int) -> None:
        for tag, value in tags.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, out_dir: Path, config: Mapping[str, Any] | None, run: str) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("--logger wandb needs the package wandb: pip install wandb") from None
        again = {"id": run, "resume": "allow"} if run else {}
        self._run = wandb.init(project="mimickit", name="log", dir=str(out_dir), config=dict(config or {}), **again)

    def write(self, tags: Mapping[str, Number], step: int) -> None:
        self._run.log(dict(tags), step=step)

    def close(self) -> None:
        self._run.finish()


def print_row(row: Mapping[str, Number], progress: Progress) -> None:
    """Print one iteration: a line of progress, then the numbers with 3 significant digits in a compact table, the time
    (h) in words; what was not measured (NaN) is left out."""
    cells = [f"{name} {duration(3600.0 * value) if name == 'Wall_Time' else _short(value)}"
             for name, value in row.items() if not math.isnan(value)]
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
        """Change the phase: starting, waiting for kernels, compiling, training, evaluating, testing, done; written
        soon."""
        if phase != self.phase:
            self.phase = phase
            self.write(now=phase not in ("training", "evaluating"))

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
        share = ""  # the last iteration is a whole one, so the samples may be more than asked for
        if self._limited and self.samples <= self._max_samples:
            share = f" of {_si(self._max_samples)} samples ({self.samples / self._max_samples:.1%})"
        parts = [f"iteration {self.iteration}", f"{_si(self.samples)}{share or ' samples'}"]
        if self.samples_per_s > 0:
            parts.append(f"{_si(self.samples_per_s)} samples/s")
        if self.eta_s is not None:
            parts.append(f"{duration(self.eta_s)} left")
        return " | ".join(parts)


class Heartbeat:
    """``heartbeat/rank_<r>``: an empty file, touched as this process's sign of life; ``start_<r>`` until it has met the
    others, ``start`` before it has a rank.

    Touched at most once a second, so that it may be called every step. Watch for changes of its modification time: its
    value is the wall clock's, which somebody may set.
    """

    def __init__(self, out_dir: Path, rank: int | None, starting: bool = False) -> None:
        name = "start" if rank is None else f"{'start' if starting else 'rank'}_{rank}"
        self._path = Path(out_dir) / "heartbeat" / name
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


@functools.cache
def warn_once(message: str) -> None:
    """One line on stderr, however often it is said; of several processes the first one says it."""
    if int(os.environ.get("RANK", 0)) == 0:
        warn(message)


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


def duration(seconds: float) -> str:
    """``5m24s``, ``1h05m``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
