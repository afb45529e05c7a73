"""Measure an allocation profile: with which variant and number of environments each case begins on this machine.

    python tools/measure_allocation.py OUT.tsv

Per case it goes down the usual ladder to the first attempt that fits, measures the next one too, and keeps the faster
of them (samples/s of whole iterations, benchmarks/throughput.py). The suite begins with what it says:
pytest -m longcycle --allocation-profile-tsv OUT.tsv
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimickit.cases import Case, select
from mimickit.longcycle.allocation import NEEDED, case_name
from mimickit.longcycle.cases import read_inputs
from mimickit.longcycle.commands import Attempt
from mimickit.longcycle.devices import lease
from mimickit.longcycle.ladder import Rung
from mimickit.longcycle.lifecycle import first_envs, usual_rungs
from mimickit.longcycle.options import OPTIONS, make_settings
from mimickit.longcycle.settings import Settings, parse_list
from mimickit.longcycle.stages import StageSpec, run_stage
from mimickit.util.failures import UserError, explains_mistakes
from mimickit.util.files import read_tsv, write_tsv

COLUMNS = (*NEEDED, "samples_per_s", "memory_gib", "devices", "measured", "date")


@dataclass(frozen=True)
class Measured:
    """How one attempt went: ``status`` is ``ok`` or a failure class."""

    variant: str
    num_envs: int
    agent_config: str
    status: str
    samples_per_s: float = 0.0
    memory_gib: float = 0.0  # of the first device; 0 on a CPU

    def __str__(self) -> str:
        words = f"{self.samples_per_s:,.0f}/s {self.memory_gib:.2f} GiB" if self.status == "ok" else self.status
        return f"{self.variant}_e{self.num_envs} {words}"


def measure_case(settings: Settings, case: Case, devices: Sequence[str], iters: int, below: int, folder: Path
                 ) -> list[Measured]:
    """Measure attempts in the order of the usual ladder: the first that fits and ``below`` after it of its variant."""

    done: list[Measured] = []
    for rung in usual_rungs(settings, case):
        fits = [entry for entry in done if entry.status == "ok"]
        if len(fits) > below or (fits and rung.variant != fits[0].variant):
            break
        done.append(measure(settings, case, rung, devices, iters, folder))
        print(f"{case.name}: {done[-1]}", flush=True)
    return done


def measure(settings: Settings, case: Case, rung: Rung, devices: Sequence[str], iters: int, folder: Path) -> Measured:
    """One attempt: a few whole iterations, in processes of their own, with what the suite would train with."""

    inputs = read_inputs(settings.repo, case, settings.engine_config, settings.variants)
    attempt = Attempt(settings, case, inputs, rung, first_envs(settings, case, rung), tuple(devices))
    place = folder / f"{case.name}_{rung.variant}_e{rung.num_envs}"
    lines = place / "measured.jsonl"
    argv = [sys.executable, "benchmarks/throughput.py", "--cases", case.name, "--num-envs", str(rung.num_envs),
            "--devices", " ".join(devices), "--variant", rung.variant, "--iters", str(iters),
            "--engine-config", settings.engine_config, "--out", str(lines),
            *(["--set", *attempt.train_values] if attempt.train_values else [])]
    profile = settings.profile
    ended = run_stage(StageSpec(
        stage="allocation", argv=tuple(argv), cwd=settings.repo, env={**profile.env, **settings.train_env},
        out_dir=place, log=place / "allocation.log", result_file=place / "result.json", mode="train",
        timeout=profile.probe_timeout, hang_seconds=0.0, startup_seconds=0.0, ranks=len(devices),
        grace=profile.stop_grace), lambda result: None)
    about = (rung.variant, rung.num_envs, attempt.agent_config)
    if ended.rc != 0 or not lines.is_file():
        print(ended.tail, file=sys.stderr, flush=True)
        return Measured(*about, ended.failure_class or "failed")
    row = json.loads(lines.read_text().splitlines()[-1])
    return Measured(*about, "ok", row["samples_per_s"], row["memory_gib"])


def table_row(case: Case, done: Sequence[Measured], devices: Sequence[str]) -> dict[str, object]:
    """A case's row: the fastest attempt that fits, or the last failure with no environments."""
    fits = [entry for entry in done if entry.status == "ok"]
    best = max(fits, key=lambda entry: entry.samples_per_s, default=done[-1])
    return {"case": case.file, "status": best.status, "variant": best.variant,
            "num_envs": best.num_envs if fits else 0, "agent_config": best.agent_config,
            "samples_per_s": best.samples_per_s, "memory_gib": best.memory_gib, "devices": " ".join(devices),
            "measured": "; ".join(map(str, done)), "date": time.strftime("%Y-%m-%d")}


@explains_mistakes
def main(argv: Sequence[str] | None = None) -> int:

    shared = ("cases", "longcycle-profile", "devices-train", "variants", "env-ladder", "engine-config", "train-env",
              "no-scale-steps", "probe-timeout", "default-ladder", "pi-plus-ladder", "amp-pi-plus-ladder")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT.tsv", type=Path,
                        help="table to write; cases that it has with status ok are not measured again")
    parser.add_argument("--iters", type=int, default=3, metavar="N", help="timed iterations of an attempt (3)")
    parser.add_argument("--below", type=int, default=1, metavar="N",
                        help="attempts to measure below the first that fits (1)")
    for name in shared:
        option = OPTIONS[name]
        if option.kind is bool:
            parser.add_argument(f"--{name}", action="store_true", default=None, help=option.meaning)
        else:
            parser.add_argument(f"--{name}", type=option.kind, metavar=option.metavar, help=option.meaning)
    args = parser.parse_args(argv)
    given = {name: value for name in shared if (value := getattr(args, OPTIONS[name].dest)) is not None}
    if args.iters < 1 or args.below < 0:
        raise UserError(f"--iters {args.iters} --below {args.below}: at least 1 and 0")
    repo = Path.cwd()
    settings = make_settings({name: option.default for name, option in OPTIONS.items()} | given, repo, 1)
    cases = select(repo, parse_list(given.get("cases")), nontrainable=False)
    rows = {case_name(row): row for row in read_tsv(args.out)}
    with (tempfile.TemporaryDirectory(prefix="allocation-") as folder,
          lease(settings.pool, settings.per_case, settings.lock_dir) as devices):
        for case in cases:
            if rows.get(case.name, {}).get("status") == "ok":
                continue
            done = measure_case(settings, case, devices, args.iters, args.below, Path(folder))
            rows[case.name] = table_row(case, done, devices)
            write_tsv(args.out, COLUMNS, [row for _, row in sorted(rows.items())])
    fits = sum(rows[case.name]["status"] == "ok" for case in cases)
    print(f"{args.out}: {fits} of {len(cases)} cases fit; pytest -m longcycle --allocation-profile-tsv {args.out}")
    return 0 if fits == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
