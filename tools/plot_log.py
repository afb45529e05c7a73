"""``mimickit plot`` as a program of its own: see mimickit/util/plot.py."""

from __future__ import annotations

import sys

from mimickit.util import plot


def main(argv: list[str] | None = None) -> int:
    return plot.main(argv)


if __name__ == "__main__":
    sys.exit(main())
