"""``mimickit bisect``: which commit made a case worse. Trains it at commits between a good and a bad one.

    mimickit bisect --case amp_humanoid --good v1.2 --bad main
    mimickit bisect --case amp_humanoid --good v1.2 --bad main --measure motion_err -- --long-max-samples 10000000

Every commit gets a worktree below ``output/bisect``, in which the acceptance suite runs this case with the options
after ``--``. First the two ends are trained. Where the bad one fails the case, commits are told apart by its verdict,
else by a measure of its test: good is what lies on the good end's side of the middle between the two. The same command
continues after an interruption: ended trainings count, and an open one goes on from its checkpoint. Packages are those
that are installed now, of all commits.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimickit.longcycle.judge import sample
from mimickit.longcycle.report import number
from mimickit.longcycle.results.data import Root, Yardsticks
from mimickit.longcycle.roots import BASE
from mimickit.util.failures import UserError, explains_mistakes
from mimickit.util.files import read_json, write_json
from mimickit.util.processes import heed_interrupt

FOLDER = Path("output/bisect")
ROOT_NAME = "bisect"
VERDICT = "final_ok"
STATE = "state.json"
ENDED, INTERRUPTED = (0, 1), 2  # exit codes of a session: it ran its case; it was interrupted
TOLD_LINES = 12  # of the log of a session that could not run


@dataclass(frozen=True)
class Rule:
    """How commits are told apart: by ``final_ok``, or by the side of ``middle`` on which a measure lies."""

    measure: str
    middle: float = 0.0
    upwards: bool = True  # the good end has more

    def good(self, result: dict[str, Any]) -> bool | None:
        """Whether a result is good; None where it says nothing, such as of a training that broke."""
        if self.measure == VERDICT:
            return result["final_ok"] if result["final_ok"] or result["gate"] else None
        value = result["measures"].get(self.measure)
        return None if value is None else (value > self.middle) == self.upwards

    def __str__(self) -> str:
        if self.measure == VERDICT:
            return "good: the case passes"
        return f"good: {self.measure} {'above' if self.upwards else 'below'} {self.middle:.4g}"


class Bisection:
    """One search, whose results stand in a folder of its own.

    Args:
        repo: the checkout; options: of pytest, added to every training.
    """

    def __init__(self, repo: Path, case: str, good: str, bad: str, measure: str | None, options: Sequence[str]) -> None:
        self.repo, self.case, self.measure, self.options = repo, case, measure, list(options)
        self.good, self.bad = self.commit(good), self.commit(bad)
        if self.git("merge-base", self.good, self.bad) != self.good:
            raise UserError(f"--good {good} is no ancestor of --bad {bad}")
        if self.good == self.bad:
            raise UserError(f"--good {good} and --bad {bad} are the same commit")
        self.folder = repo / FOLDER / f"{case}_{self.good[:10]}_{self.bad[:10]}"
        state = read_json(self.folder / STATE)
        if state and state["options"] != self.options:
            raise UserError(f"{self.folder} was begun with other options ({' '.join(state['options']) or 'none'}): "
                            "give the same, or remove it")
        self.results: dict[str, dict[str, Any]] = state.get("results", {})

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", "-C", str(self.repo), *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"git {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def commit(self, revision: str) -> str:
        try:
            return self.git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        except UserError:
            raise UserError(f"{revision}: no such commit in {self.repo}") from None

    def title(self, commit: str) -> str:
        return self.git("log", "-1", "--format=%h %s", commit)

    def run(self) -> list[str]:
        """Search, and return the lines that name the commit."""
        good_end = self.train(self.good)
        if self.measure and self.measure not in good_end["measures"]:
            raise UserError(f"--measure {self.measure}: not measured at the good commit. Measured: "
                            f"{', '.join(sorted(good_end['measures'])) or 'nothing'}")
        rule = self.rule(good_end, self.train(self.bad))
        print(rule, flush=True)
        good, bad, unclear = [self.good], self.bad, []
        while True:
            listed = self.git("rev-list", "--bisect-all", bad, "--not", *good).split("\n")
            open_ones = [commit for line in listed if (commit := line.split(" ")[0]) not in (bad, *unclear)]
            if not open_ones:
                break
            commit = open_ones[0]
            print(f"commits left: {len(open_ones)}, trainings: about {len(open_ones).bit_length()}", flush=True)
            verdict = rule.good(self.train(commit))
            word = "unclear" if verdict is None else "good" if verdict else "BAD"
            print(f"  {word}: {self.title(commit)}", flush=True)
            if verdict is None:
                unclear.append(commit)
            elif verdict:
                good.append(commit)
            else:
                bad = commit
        between = [commit for commit in unclear
                   if commit in self.git("rev-list", bad, "--not", *good).split("\n")]
        if between:
            return ["one of these, the others could not be trained or tested:",
                    *(f"  {self.title(commit)}" for commit in (bad, *between))]
        return [f"{self.case} became worse with {self.title(bad)}",
                self.git("show", "--stat", "--format=%an, %ad", bad)]

    def rule(self, good: dict[str, Any], bad: dict[str, Any]) -> Rule:
        """How to tell commits apart. Raises UserError where the ends do not differ."""
        if not good["final_ok"]:
            raise UserError(f"{self.case} does not pass at the good commit {self.good[:10]}: {good['note']}")
        if self.measure is None and not bad["final_ok"]:
            return Rule(VERDICT)
        differing = []
        for name in self.names():
            a, b = good["measures"].get(name), bad["measures"].get(name)
            if a is None or b is None:
                continue
            half = (good["ci95"].get(name) or 0.0) + (bad["ci95"].get(name) or 0.0)
            if abs(a - b) > half:
                differing.append((abs(a - b) / (half or abs(a) or 1.0), Rule(name, (a + b) / 2, a > b)))
        if not differing:
            known = {name for end in (good, bad) for name in end["measures"]}
            raise UserError(f"{self.case} does not differ between the good and the bad commit in "
                            f"{', '.join(self.names())}: nothing to look for. Measured: "
                            f"{', '.join(sorted(known)) or 'nothing'}")
        return max(differing, key=lambda found: found[0])[1]

    def names(self) -> list[str]:
        """Measures by which commits may be told apart."""
        return [self.measure] if self.measure else list(dict.fromkeys(
            [*(gate.measure for gate in Yardsticks().gates(self.case)), "test_return"]))

    def train(self, commit: str) -> dict[str, Any]:
        """The result of a commit, from a training in its worktree unless it is known."""
        if commit in self.results:
            return self.results[commit]
        tree = self.folder / "trees" / commit[:12]
        if not (tree / ".git").exists():
            self.git("worktree", "prune")
            self.git("worktree", "add", "--force", "--detach", str(tree), commit)
        command = [sys.executable, "-m", "pytest", "-m", "longcycle", "--cases", self.case, "--root-out", ROOT_NAME,
                   *self.options]
        path = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
        log = self.folder / f"{commit[:12]}.log"
        print(f"training {self.title(commit)} (log: {log.relative_to(self.repo)})", flush=True)
        with log.open("ab") as output:
            begun = output.tell()
            code = wait(subprocess.Popen(command, cwd=tree, env={**os.environ, "PYTHONPATH": path}, stdout=output,
                                         stderr=subprocess.STDOUT))
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code not in ENDED and commit in (self.good, self.bad):  # such as wrong options; no result to keep
            self.git("worktree", "remove", "--force", str(tree))
            told = log.read_bytes()[begun:].decode(errors="replace").strip().splitlines()[-TOLD_LINES:]
            raise UserError("\n".join([f"the suite did not run (exit code {code}); the end of its log:", *told]))
        result = self.read(tree / BASE / ROOT_NAME, code)
        self.results[commit] = result
        write_json(self.folder / STATE, {"case": self.case, "options": self.options, "results": self.results})
        kept = self.folder / "roots" / commit[:12]
        if (tree / BASE / ROOT_NAME).is_dir():
            kept.parent.mkdir(exist_ok=True)
            shutil.rmtree(kept, ignore_errors=True)
            shutil.move(tree / BASE / ROOT_NAME, kept)
        self.git("worktree", "remove", "--force", str(tree))
        shown = ", ".join(f"{name} {number(result['measures'][name])}" for name in self.names()
                          if name in result["measures"])
        print(f"  {result['note']}: {shown}", flush=True)
        return result

    def read(self, path: Path, code: int) -> dict[str, Any]:
        """What a training left behind."""
        empty = {"final_ok": False, "gate": False, "note": f"no result, exit code {code}", "measures": {}, "ci95": {}}
        if not (path / "ledger.jsonl").is_file():
            return empty
        entry = Root(path).entry(self.case)
        if not entry.row:
            return empty
        names = [*self.names(), *(line["name"] for line in entry.statistics())]
        found = {name: value for name in names if (value := sample(entry.test, name)) is not None}
        return {"final_ok": entry.state.passed, "gate": entry.row.get("failure_class") == "gate",
                "note": str(entry.row.get("note")), "measures": {name: value.mean for name, value in found.items()},
                "ci95": {name: value.ci95 for name, value in found.items()}}


def wait(process: subprocess.Popen[bytes]) -> int:
    """Exit code of a process that gets the terminal's Ctrl-C too, and needs time to end with a checkpoint."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            print("interrupted: waiting for the training's checkpoint", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    known = argparse.ArgumentParser(prog="mimickit bisect", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--case", required=True, help="the case to train")
    known.add_argument("--good", required=True, metavar="REV", help="a commit at which it was as it should be")
    known.add_argument("--bad", required=True, metavar="REV", help="a later commit at which it is worse")
    known.add_argument("--measure", help="tell commits apart by this measure of the test")
    return known


@explains_mistakes
def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    options = words[words.index("--") + 1:] if "--" in words else []
    args = parser().parse_args(words[:words.index("--")] if "--" in words else words)
    top = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=False)
    if top.returncode:
        raise UserError("mimickit bisect works in a checkout (git rev-parse finds none here)")
    search = Bisection(Path(top.stdout.strip()), args.case, args.good, args.bad, args.measure, options)
    heed_interrupt()
    try:
        print("\n".join(search.run()))
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0
