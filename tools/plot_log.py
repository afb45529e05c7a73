"""Plots columns of log.txt over samples: one panel per column, one line per run.

    python tools/plot_log.py output/spinkick
    python tools/plot_log.py output/a output/b/log.txt --y Test_Return Clip_Frac --labels SGD Adam --out ab.svg
    python tools/plot_log.py output/a --list

Logs of MimicKit are read as well (columns by name, separated by white space or commas).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mimickit.util.curves import Panel, draw_panels, read_curves
from mimickit.util.failures import UserError, explains_mistakes

PER_ROW = 3
DEFAULT_COLUMNS = ["Test_Return", "Test_Episode_Length"]


@explains_mistakes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="log.txt, or the folder of a run")
    parser.add_argument("--y", nargs="+", default=DEFAULT_COLUMNS, metavar="COLUMN",
                        help=f"columns to plot ({' '.join(DEFAULT_COLUMNS)})")
    parser.add_argument("--x", default="Samples", metavar="COLUMN", help="horizontal axis (Samples)")
    parser.add_argument("--labels", nargs="+", default=[], metavar="TEXT", help="names of the runs, in order")
    parser.add_argument("--smooth", type=int, default=1, metavar="ROWS", help="mean over so many rows (1)")
    parser.add_argument("--out", type=Path, default=Path("log.png"), help="picture: png, svg, pdf (log.png)")
    parser.add_argument("--list", action="store_true", help="print the columns and their last values, plot nothing")
    args = parser.parse_args(argv)
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
    if not any(len(run.line(args.x, column)[0]) for run in runs for column in args.y):
        raise UserError(f"{', '.join(map(str, args.logs))}: nothing to draw yet: no row has {' or '.join(args.y)} (an "
                        "evaluation beside training ends with its episodes)")
    panels = [Panel(column, column, runs) for column in args.y]
    rows = [panels[i:i + PER_ROW] for i in range(0, len(panels), PER_ROW)]
    draw_panels(rows, args.out, x=args.x, smoothing=args.smooth)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
