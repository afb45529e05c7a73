"""Kills sessions of the acceptance suite, their guards, trainers and ranks at random moments, in one root.

    python -m tests.faults.kill_loop                        60 kills, two cases in smoke, on the CPU
    python -m tests.faults.kill_loop --kills 10 --seed 3
    python -m tests.faults.kill_loop --minutes 15               as many of the 60 as fit; then the end, undisturbed

Every kill is SIGKILL. After each nothing of what was killed may be left; no verdict and no stage may name anything but
the kill; and in the end a session that nobody disturbs has to pass both cases. Cases that pass before all kills are
used up get more samples to train, in the same root. Exit code 1 when anything is not as it has to be.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mimickit.longcycle import guard
from mimickit.util.processes import is_alive
from tests.faults.single_stage import processes_left
from tests.faults.table import Project, settled

CASES = ("deepmimic_humanoid_ppo", "view_motion_humanoid")
VICTIMS = ("session", "guard", "trainer", "rank")
AIMS = (None, None, None, "long_train", "long_train", "test", "viz")  # the stage to hit; None: what runs then
LONGEST = 20.0  # s from there, or from a session's start or the last kill, to the next kill
PATIENCE = 1800.0  # s for a stage to end, and for a session that nobody disturbs
FIRST_SAMPLES = 4096
SMALL = {"num_envs": 8, "hang_seconds": 60.0, "grace": 10.0, "brief": False}


class Loop:
    """One root, its sessions, and what was not as it has to be."""

    def __init__(self, project: Project, seed: int) -> None:
        self.project, self.random, self.samples = project, random.Random(seed), FIRST_SAMPLES
        self.session: subprocess.Popen | None = None
        self.hit: Counter[str] = Counter()  # kills by victim and by stage
        self.kills = 0
        self.ends: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self, kills: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.kills < kills and time.monotonic() < deadline:
            if self.session is None or self.session.poll() is not None:
                self.begin()
            if (aim := self.random.choice(AIMS)) is not None:
                self.reach(aim)
            self.wait(self.random.uniform(0.0, LONGEST))
            if self.session.poll() is None:
                self.kill(self.random.choice(VICTIMS))
        code = self.session.wait(PATIENCE)
        for _ in range(2):  # a kill that came late may have used up a stage's second chance
            if code != 0:
                self.begin()
                code = self.session.wait(PATIENCE)
        self.look(code)

    def begin(self) -> None:
        """The next session; with more to train when the last one had nothing left to do."""
        if self.session is not None and self.session.returncode == 0:
            self.samples += FIRST_SAMPLES
        no_timeouts = [word for stage in ("probe", "long", "test", "viz") for word in (f"--{stage}-timeout", "0")]
        self.session = self.project.start("--lf", "--long-max-samples", str(self.samples), *no_timeouts)

    def reach(self, stage: str) -> None:
        """Wait until this stage runs, or the session has ended."""
        deadline = time.monotonic() + PATIENCE
        while self.stage() != stage and self.session.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.project.path}: no {stage} within {PATIENCE:.0f} s")
            time.sleep(0.1)

    def stage(self) -> str:
        """The stage that runs now, ``no stage`` between two."""
        last = (self.project.ledger.events() or [{}])[-1]
        return last["stage"] if last.get("event") == "stage_start" else "no stage"

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.session.wait(seconds)

    def kill(self, victim: str) -> None:
        tree = guard.descendants(self.session.pid)
        pid = self.session.pid if victim == "session" else self.find(victim)
        if pid is None:  # the session is between two stages, or this stage has no such process
            return
        ends, stage = len(self.project.events("stage_end")), self.stage()
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.kills += 1
        self.hit.update((victim, stage))
        if victim == "session":
            self.session.wait()
            if left := settled(lambda: len(processes_left(self.project.fault_file)), 15.0):
                self.problems.append(f"{left} processes outlived a killed session")
        else:
            self.after_stage(victim, tree, ends)
        last = (self.project.ledger.events() or [{}])[-1]
        print(f"{self.kills}: {victim} killed in {stage}; last: {last.get('event')} {last.get('case', '')} "
              f"{last.get('stage', '')} {last.get('failure_class', '')} (of {self.samples} samples)", flush=True)

    def find(self, victim: str) -> int | None:
        """The process of the stage that runs now: the guard, what it started, or one of what that started."""
        guards = children(self.session.pid)
        below = guards if victim == "guard" else [pid for one in guards for pid in children(one)]
        if victim == "rank":
            below = [pid for one in below for pid in children(one)]
        return self.random.choice(below) if below else None

    def after_stage(self, victim: str, tree: list[int], ends: int) -> None:
        """Once the stage's end is recorded nothing that ran when the kill came may be there."""
        deadline = time.monotonic() + PATIENCE
        while len(self.project.events("stage_end")) == ends and self.session.poll() is None:
            if time.monotonic() > deadline:
                self.problems.append(f"no end of a stage was recorded after its {victim} was killed")
                return
            time.sleep(0.02)
        if left := [pid for pid in tree if is_alive(pid)]:
            self.problems.append(f"{left} outlived their {victim}")

    def look(self, code: int) -> None:
        """What the whole root says."""
        project = self.project
        self.ends = Counter(f"{event['stage']} {event['failure_class'] or event['outcome']}"
                            for event in project.events("stage_end"))
        if code != 0:
            self.problems.append(f"the last, undisturbed session ended with {code}")
        if left := processes_left(project.fault_file):
            self.problems.append(f"left over at the end: {left}")
        for event in project.events("stage_end"):
            if event["outcome"] == "failed" and event["failure_class"] != "preempted":
                self.problems.append(f"{event['case']} {event['stage']}: {event['failure_class']}: {event['message']}")
        for event in project.events("case_end"):
            if not event["row"]["final_ok"] and event["row"]["failure_class"] != "preempted":
                self.problems.append(f"verdict: {event['case']}: {event['row']['message']}")
        state = project.ledger.state()
        self.problems += [f"{case} has not passed" for case in project.cases if not state.case(case).passed]
        trained = state.case(project.cases[0]).row
        if trained is not None and int(trained["samples"]) < self.samples:
            self.problems.append(f"{trained['samples']} samples of {self.samples}")
        self.problems += [f"half written: {path}" for path in project.out.rglob(".*") if ".tmp" in path.name]


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kill_loop", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=60, metavar="N", help="so many SIGKILLs (60)")
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="no further kill after M minutes")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of victims and moments (1)")
    parser.add_argument("--keep", action="store_true", help="keep the scratch folder")
    options = parser.parse_args(argv, argparse.Namespace(**SMALL))
    scratch, begin = Path(tempfile.mkdtemp(prefix="kill_loop_")), time.monotonic()
    loop = Loop(Project(scratch / "project", ["cpu", "cpu"], options, CASES), options.seed)
    try:
        loop.run(options.kills, 60 * options.minutes)
    finally:
        loop.session.kill()
        if options.keep:
            print(f"files in {scratch}")
        else:
            shutil.rmtree(scratch)
    print(f"{loop.kills} kills: {dict(loop.hit)} in {time.monotonic() - begin:.0f} s, {loop.samples} samples; "
          f"ends: {dict(loop.ends)}")
    print("\n".join(loop.problems) or "as it has to be")
    return 1 if loop.problems else 0


if __name__ == "__main__":
    sys.exit(main())
