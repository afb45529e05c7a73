"""Merge the roots of several sessions into one: ``python -m mimickit.longcycle.merge OUT ROOT [ROOT ...]``.

Cases are independent, so a set may be split over machines (``--shard``, ``--cases``), each with a root of its own. The
merged root is as if one session had run them all: judge it with ``--from-results``, continue it with ``--lf``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimickit.longcycle.devices import try_lock
from mimickit.longcycle.events import EventFile, to_line
from mimickit.longcycle.ledger import LEDGER, CaseState, Ledger, State, attempts_table, damaged_lines, replay
from mimickit.longcycle.lifecycle import close_open_stages
from mimickit.longcycle.roots import ENVIRONMENTS, SESSION_LOCK, find_root, lock_session, rebased, root_path
from mimickit.longcycle.settings import relative_to
from mimickit.util.failures import UserError
from mimickit.util.files import atomic_path, read_json, read_tsv, write_json, write_tsv
from mimickit.util.manifest import model_problem

MERGED = "merged.json"
CASE_EVENTS = ("stage_start", "stage_end", "case_end")


@dataclass(frozen=True)
class Source:
    """One root: its name in messages, its events, and the state they add up to."""

    root: Path
    name: str
    events: tuple[dict[str, Any], ...]
    state: State

    @classmethod
    def read(cls, root: Path, repo: Path) -> Source:
        content = EventFile(root / LEDGER).read()
        return cls(root, relative_to(root, repo), tuple(content.events), replay(content.events, content.damaged))

    def last(self, case: str, *kinds: str) -> float:
        """Time of a case's last event of these kinds; -1 without one."""
        return max((event["time"] for event in self.events if event.get("case") == case and event["event"] in kinds),
                   default=-1.0)


def choose(case: str, sources: Sequence[Source]) -> tuple[Source, list[str]]:
    """The source whose record of a case counts, and notes about the choice.

    The latest recorded end counts; where no source has one, the latest start.
    """
    having = [source for source in sources if source.last(case, *CASE_EVENTS) >= 0]
    ended = [source for source in having if source.state.case(case).row is not None]
    chosen = max(ended or having, key=lambda source: source.last(case, "case_end" if ended else "stage_start"))
    notes = []
    for source in (other for other in having if other is not chosen):
        mine, other = (entry.state.case(case) for entry in (chosen, source))
        if mine.row is not None and other.row is not None:
            if mine.row.get("key") != other.row.get("key"):
                notes.append(f"conflict: {case}: {chosen.name} and {source.name} ran it with different inputs, sizes "
                             f"or gates; taken is the later end, {chosen.name}")
            if mine.passed != other.passed:
                notes.append(f"conflict: {case}: {words(mine)} in {chosen.name}, {words(other)} in {source.name}; "
                             f"the later end counts: {words(mine)}")
            elif mine.row.get("key") == other.row.get("key"):
                notes.append(f"note: {case}: {words(mine)} in {chosen.name} and earlier in {source.name}")
        elif source.last(case, "stage_start") > chosen.last(case, "stage_start"):
            notes.append(f"note: {case}: a later attempt in {source.name} has no end and is left out")
    return chosen, notes


def words(state: CaseState) -> str:
    return "passed" if state.passed else f"failed ({state.row['note']})"


def merge(out: Path, roots: Sequence[Path], repo: Path, replace: bool = False) -> list[str]:
    """Merge ``roots`` into ``out``, which appears complete or not at all; returns notes about the choices.

    Raises:
        UserError: ``out`` exists (and ``replace`` is not set), a root is given twice, or a session works in one.
    """
    if len(set(map(Path.resolve, roots))) < len(roots):
        raise UserError("a root is given twice")
    if out.exists() and not replace:
        raise UserError(f"{out} exists: give another name, or --replace to put the merged root in its place")
    if out.exists() and any(out.iterdir()) and not (out / LEDGER).is_file():
        raise UserError(f"{out} is no root of the suite (no {LEDGER}): it is not replaced")
    if inside := [root for root in roots if root.resolve() in out.resolve().parents]:
        raise UserError(f"{out} lies inside {inside[0]}: give a place outside the roots")
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        lock = try_lock(out.parent / f".{out.name}.merge.lock")
        if lock is None:
            raise UserError(f"another merge into {out} is under way")
        held.enter_context(lock)
        for root in {root.resolve(): root for root in (*roots, *([out] if out.exists() else []))}.values():
            if (root / SESSION_LOCK).exists():  # without it no session has worked in this copy
                lock = lock_session(root)
                if lock is None:
                    raise UserError(f"a session works in {root}: wait for its end")
                held.enter_context(lock)
        sources = [Source.read(root, repo) for root in roots]
        building = out.parent / f".{out.name}.merging"
        shutil.rmtree(building, ignore_errors=True)  # left by a merge that was killed
        try:
            lines = build_root(building, relative_to(out, repo), sources, repo)
            put_in_place(building, out)
            close_open_stages(Ledger(out, repo))  # of sessions that were killed
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return lines


def put_in_place(building: Path, out: Path) -> None:
    """Rename the finished folder to ``out``, then remove an older one."""
    old = out.parent / f".{out.name}.replaced"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    building.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def build_root(folder: Path, name: str, sources: Sequence[Source], repo: Path) -> list[str]:
    """Write the merged root into ``folder``, with paths as they will be once it is called ``name``."""
    selected = {case for source in sources for case in source.state.session.get("cases", [])}
    recorded = {event["case"] for source in sources for event in source.events if event["event"] in CASE_EVENTS}
    profiles = {source.state.session.get("profile", "") for source in sources}
    lines = [f"conflict: the roots have different profiles: {', '.join(sorted(profiles))}"] if len(profiles) > 1 else []
    lines += [f"note: {source.name}: {damaged_lines(source.state.damaged)}" for source in sources
              if source.state.damaged]
    chosen: dict[str, Source] = {}
    events: list[dict[str, Any]] = []
    for case in sorted(recorded):
        source, notes = choose(case, sources)
        chosen[case] = source
        lines += notes
        events += [rebased(event, name) for event in source.events
                   if event.get("case") == case and event["event"] in CASE_EVENTS]
        runs = Path("runs") / f"{case}_args"
        if (source.root / runs).is_dir():
            shutil.copytree(source.root / runs, folder / runs, symlinks=True)
            lines += [f"damaged: {case}: {model.relative_to(folder)} is not what its training wrote; it can go on from "
                      "a checkpoint" for model in sorted((folder / runs).rglob("model.pt")) if model_problem(model)]
    newest = max(sources, key=lambda source: source.events[-1]["time"] if source.events else 0.0)
    begin = {**newest.state.session, "event": "session_start", "session": uuid.uuid4().hex[:8],
             "cases": sorted(selected | recorded), "passed_before": [],
             "time": min((event["time"] for source in sources for event in source.events), default=0.0),
             "command": [f"merged from {', '.join(source.name for source in sources)}"]}
    end = {"event": "session_end", "status": "finished", "time": newest.events[-1]["time"] if newest.events else 0.0}
    write_ledger(folder, [begin, *sorted(events, key=lambda event: event["time"]), end])
    ledger = Ledger(folder, repo)
    state = ledger.state()
    ledger.write_tables(state, [])
    for case in chosen:
        write_json(folder / "runs" / f"{case}_args" / "attempts.json", attempts_table(case, state.case(case)))
    write_manifest(folder, sources, chosen)
    write_json(folder / "environment.json", read_json(newest.root / "environment.json"))
    for source in sources:
        for file in (source.root / ENVIRONMENTS).glob("*.json"):
            write_json(folder / ENVIRONMENTS / file.name, read_json(file))
    write_json(folder / MERGED, {
        "roots": [source.name for source in sources], "messages": lines,
        "cases": {case: source.name for case, source in chosen.items()}})
    never = sorted(selected - {case for case in recorded if state.case(case).row is not None})
    passed = sum(state.case(case).passed for case in recorded)
    lines += [f"no end: {case}" for case in never]
    return [*lines, f"{passed} of {len(selected | recorded)} cases passed as recorded; merged into {name} from "
                    f"{len(sources)} root{'s' if len(sources) > 1 else ''}"]


def write_ledger(folder: Path, events: Sequence[dict[str, Any]]) -> None:
    with atomic_path(folder / LEDGER) as path:
        path.write_bytes(b"".join(map(to_line, events)))


def write_manifest(folder: Path, sources: Sequence[Source], chosen: dict[str, Source]) -> None:
    """Write the manifest: each row from the root whose record of the case counts."""
    rows: dict[str, dict[str, str]] = {}
    for source in sources:
        for row in read_tsv(source.root / "case_manifest.tsv"):
            name = row["case"].removesuffix("_args.txt")
            if name not in rows or chosen.get(name) is source:
                rows[name] = row
    if rows:
        columns = list(next(iter(rows.values())))
        write_tsv(folder / "case_manifest.tsv", columns, [row for _, row in sorted(rows.items())])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mimickit.longcycle.merge",
        description="Merge the roots of several sessions of the acceptance suite (pytest -m longcycle) into one.",
        epilog="For each case the root with its latest recorded end counts; what else there was is told. "
               "Judge the merged root with: pytest -m longcycle --from-results OUT")
    parser.add_argument("out", metavar="OUT", help="the root to make: a name below output/train, or a path")
    parser.add_argument("roots", metavar="ROOT", nargs="+", help="roots to merge: names below output/train, or paths")
    parser.add_argument("--replace", action="store_true", help="replace OUT if it exists (it may be among the roots)")
    args = parser.parse_args(argv)
    repo = Path.cwd()
    try:
        lines = merge(root_path(args.out, repo), [find_root(root, repo) for root in args.roots], repo, args.replace)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, files that nobody may read
        print(f"error: {args.out} was not made: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
