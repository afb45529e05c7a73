"""Which test notices which mistake: ``python tests/mutants/run.py [--area learning] [--name TEXT] [--table FILE]``.

Copies the working tree to a scratch folder, makes one change of ``mutants.toml`` at a time there, and runs the tests
that should notice it until the first one fails. Writes a table (TSV), line by line; mutants that it already holds are
passed over, so that a run can be continued. Not a part of the tests: it takes an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = Path(__file__).with_name("mutants.toml")
COLUMNS = ("area", "mutant", "verdict", "noticed by", "seconds", "file")
FROM_TORCH = multiprocessing.get_context("forkserver")  # processes in which torch, slow to load, is there already
PATIENCE = 300.0  # s; a mistake that makes processes wait for each other is noticed too


@dataclass(frozen=True)
class Mutant:
    """A change of one file, and the tests (files or pytest's ids) most likely to notice it, in order.

    ``named``: it survived once, or its like.
    """

    name: str
    area: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    named: bool = False


def load_mutants(path: Path = MUTANTS) -> list[Mutant]:
    """All mutants of the list. Raises ValueError when two have one name."""
    found = [Mutant(**{**entry, "tests": tuple(entry["tests"])})
             for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]]
    if twice := [name for name, count in Counter(mutant.name for mutant in found).items() if count > 1]:
        raise ValueError(f"{path}: named twice: {', '.join(twice)}")
    return found


def problem(mutant: Mutant, root: Path = ROOT) -> str:
    """Why a mutant cannot be made any more, or an empty string."""
    files = (mutant.file, *(test.partition("::")[0] for test in mutant.tests))
    if missing := [file for file in files if not (root / file).is_file()]:
        return f"no such file: {', '.join(missing)}"
    count = (root / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    return "" if count == 1 else f"its old text occurs {count} times in {mutant.file}"


def copy_tree(target: Path) -> None:
    """The files of the working tree that git knows or would add."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def run_tests(tree: Path, tests: tuple[str, ...]) -> tuple[int | None, str]:
    """Exit code of pytest (None: out of patience) and the first test that failed."""
    output = tree / "mutant.log"
    process = FROM_TORCH.Process(target=_pytest, args=(tree, tests, output))
    process.start()
    process.join(PATIENCE)
    over = process.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with all that the tests have left behind
    process.join()
    text = output.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", text, flags=re.MULTILINE)
    by = found[1] if found else "out of patience" if over else (text.strip().splitlines() or ["nothing"])[-1]
    return None if over else process.exitcode, by


def _pytest(tree: Path, tests: tuple[str, ...], output: Path) -> None:
    os.setsid()
    with output.open("w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(tree)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.path[0] = str(tree)
    code = pytest.main(["-x", "-q", "-rfE", "-p", "no:cacheprovider", "--tb=no", *tests])
    sys.stdout.flush()
    os._exit(code)


def judge(tree: Path, mutant: Mutant) -> tuple[str, str]:
    """``noticed`` or ``survived``, and by which test."""
    path = tree / mutant.file
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code, by = run_tests(tree, mutant.tests)
    finally:
        path.write_text(original, encoding="utf-8")
    return ("survived", "") if code == 0 else ("noticed", by)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--area", action="append", help="only mutants of this area (may be repeated)")
    parser.add_argument("--name", default="", help="only mutants with this text in their names")
    parser.add_argument("--named", action="store_true", help="only mutants that survived once")
    parser.add_argument("--table", type=Path, default=ROOT / "output" / "mutants.tsv", help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="only say which mutants cannot be made any more")
    args = parser.parse_args(argv)
    chosen = [mutant for mutant in load_mutants() if args.name in mutant.name and (mutant.named or not args.named)
              and (not args.area or mutant.area in args.area)]
    stale = {mutant.name: why for mutant in chosen if (why := problem(mutant))}
    for name, why in stale.items():
        print(f"stale: {name}: {why}", file=sys.stderr)
    if args.check or not chosen:
        print(f"{len(chosen)} mutants, {len(stale)} of them stale")
        return 1 if stale or not chosen else 0

    args.table.parent.mkdir(parents=True, exist_ok=True)
    if not args.table.exists():
        args.table.write_text("\t".join(COLUMNS) + "\n")
    known = {line.split("\t")[1]: line.split("\t")[2] for line in args.table.read_text().splitlines()[1:]}
    FROM_TORCH.set_forkserver_preload(["torch", "pydantic"])
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        for mutant in chosen:
            if mutant.name in known or mutant.name in stale:
                continue
            begin = time.monotonic()
            verdict, by = judge(tree, mutant)
            known[mutant.name] = verdict
            row = (mutant.area, mutant.name, verdict, by, f"{time.monotonic() - begin:.0f}", mutant.file)
            with args.table.open("a") as table:
                table.write("\t".join(row) + "\n")
            print(f"{verdict:<9}{mutant.name}{f' ({by})' if by else ''}", flush=True)
    survived = [mutant.name for mutant in chosen if known.get(mutant.name) == "survived"]
    print(f"{len(chosen)} mutants: {len(chosen) - len(survived) - len(stale)} noticed, {len(survived)} survived, "
          f"{len(stale)} stale")
    return 1 if survived or stale else 0


if __name__ == "__main__":
    sys.exit(main())
