"""Writes an agent file of MimicKit before February 2026 (one optimizer for all networks) in the present layout.

    python tools/convert_agent.py OLD.yaml [NEW.yaml]

NEW.yaml is OLD_converted.yaml beside the old file unless given, and must not exist yet. Its first lines say what became
of each older key. Training reads older files by the same mapping, with a warning.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mimickit.learning.agents import convert_agent_file
from mimickit.util.failures import EXIT_OK
from tools.command import explains_mistakes


@explains_mistakes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD.yaml")
    parser.add_argument("new", type=Path, nargs="?", metavar="NEW.yaml", help="(OLD_converted.yaml)")
    args = parser.parse_args(argv)
    new = args.new or args.old.with_name(f"{args.old.stem}_converted.yaml")
    print(f"{new}: {convert_agent_file(args.old, new)}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
