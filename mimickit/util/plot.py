"""``mimickit plot``: columns of log.txt over samples, one panel per column, one line per run.

    mimickit plot output/spinkick
    mimickit plot output/a output/b/log.txt --y Test_Return Clip_Frac --labels SGD Adam --out ab.svg
    mimickit plot output/a --list

Logs of MimicKit are read as well (columns by name, separated by white space or commas).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mimickit.util.curves import Curves, Panel, draw_panels, read_curves
from mimickit.util.failures import UserError, explains_mistakes

PER_ROW = 3
EVALUATED, TRAINED = (("Test_Return", "Test_Episode_Length"), ("Train_Return", "Train_Episode_Length"))


def parser() -> argparse.ArgumentParser:
    """The options of ``mimickit plot``."""
    found = argparse.ArgumentParser("mimickit plot", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("logs", nargs="+", type=Path, metavar="RUN", help="the folder of a run, or its log.txt")
    found.add_argument("--y", nargs="+", metavar="COLUMN", help=f"columns to plot ({' '.join(EVALUATED)}; of runs "
                       f"without an evaluation {' '.join(TRAINED)})")
    found.add_argument("--x", default="Samples", metavar="COLUMN", help="horizontal axis (Samples)")
    found.add_argument("--labels", nargs="+", default=[], metavar="TEXT", help="names of the runs, in order")
    found.add_argument("--smooth", type=int, default=1, metavar="ROWS", help="mean over so many rows (1)")
    found.add_argument("--out", type=Path, metavar="FILE",
                       help="picture: png, svg, pdf (log.png beside the log; of several runs in the working directory)")
    found.add_argument("--list", action="store_true", help="print the columns and their last values, plot nothing")
    return found


@explains_mistakes
def main(argv: Sequence[str] | None = None) -> int:
    """Plot or list; returns the exit code."""
    args = parser().parse_args(argv)
    if args.labels and len(args.labels) != len(args.logs):
        raise UserError(f"--labels: {len(args.labels)} names for {len(args.logs)} logs")
    if args.smooth < 1:
        raise UserError(f"--smooth {args.smooth}: at least 1")
    labels = args.labels or [""] * len(args.logs)
    runs = [read_curves(path, label) for path, label in zip(args.logs, labels, strict=True)]
    if args.list:
        for run in runs:
            print(f"{run.label}:")
            for name, values in run.columns.items():
                print(f"  {name:25} {values[-1]:.6g}" if len(values) else f"  {name}")
        return 0
    known = [names for names in (EVALUATED, TRAINED) if all(name in run.columns for name in names for run in runs)]
    choices = [args.y] if args.y else known or [EVALUATED]
    columns = next((names for names in choices if _has_points(runs, args.x, names)), None)
    if columns is None:
        raise UserError(f"{', '.join(map(str, args.logs))}: nothing to draw: no row has "
                        + " or ".join(name for names in choices for name in names))
    panels = [Panel(column, column, runs) for column in columns]
    rows = [panels[i:i + PER_ROW] for i in range(0, len(panels), PER_ROW)]
    log = args.logs[0]
    beside = (log if log.is_dir() else log.parent) if len(runs) == 1 else Path()
    out = args.out or beside / "log.png"
    draw_panels(rows, out, x=args.x, smoothing=args.smooth)
    print(out)
    return 0


def _has_points(runs: Sequence[Curves], x: str, columns: Sequence[str]) -> bool:
    return any(len(run.line(x, column)[0]) for run in runs for column in columns)
