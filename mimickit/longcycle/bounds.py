"""Bounds of gates, from what trained policies reached and what half-skilled ones do.

    python -m mimickit.longcycle.bounds collect output/train/seed1 --seed 1 --out measures.tsv
    python -m mimickit.longcycle.bounds write measures.tsv

``collect`` appends the tests of a session's folder, of exported results (``docs/results/NAME``) or of single runs
(``CASE=result.json``) to a table. ``write`` takes tables over into ``tests/acceptance/seeds.tsv`` and computes all
bounds in ``tests/acceptance/targets.yaml`` and the page ``docs/gates.md`` anew; without a table it only computes.

The rule, for a measure of which at least three seeds are known (:func:`bound_of`): three deviations of the seeds beyond
the worst of them, yet beyond half-way from the best half-skilled policy (``tests/acceptance/baselines.yaml``) to the
seeds' mean. A half-skilled policy that is too near, or as good, is left to the case's other gates: what no gate
stops is listed in ``targets.yaml`` as ``open``.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mimickit.cases import Case, discover
from mimickit.config import load_layered, load_yaml
from mimickit.longcycle.judge import STATISTICS
from mimickit.longcycle.results.data import Root
from mimickit.longcycle.settings import BASELINES_FILE, FILES, TARGETS_FILE, Gate, Target, deviation, load_targets
from mimickit.util.assets import SHIPPED, locate
from mimickit.util.failures import UserError, explains_mistakes
from mimickit.util.files import read_json, write_text
from mimickit.util.names import nearest

SEEDS_FILE = FILES / "seeds.tsv"
PAGE_FILE = SHIPPED / "docs" / "gates.md"
TRAINED = "trained"
EARLY = {"half_budget": 0.5, "tenth_budget": 0.1}  # policies after a part of the samples
KEYS = ("case", "policy", "seed")
CONDITIONS = ("samples", "plan", "source", "run", "worlds", "changes", "samples_per_s", "variant", "commit", "date")
LIMB_ERRORS = ("body_pos_err", "pos_err")
LEAST_SEEDS, DEVIATIONS = 3, 3.0
WITHOUT_SKILL = ("untrained", "random_")
MORE_IS_BETTER = ("return", "length", "survival", "task_reward", "test_enc_reward", "test_enc_similarity")
NEW_MEASURES = {  # that are gated as soon as seeds have them, besides those that a case has gates for
    "deepmimic": ("success_rate", "pos_err"), "static_objects": ("run_up_success_rate", "pos_err"),
    "add": ("pos_err",), "amp": ("time_warped_err",), "ase": ("coverage_err", "test_enc_reward"),
    "task_steering": ("facing_err", *(f"{name}_{speed}" for name in ("vel_err", "success_rate")
                                      for speed in ("slow", "medium", "fast"))),
}
HEADER = """# What every case has to reach, by name. All gates of a case must hold for final_ok=1 in the full profile.
# Bounds are computed: python -m mimickit.longcycle.bounds write (docs/gates.md). By hand: everything but "gates" and
# "open", and gates of rule "fixed".
#
# gates:      list of
#   measure, op, bound: of a number of the test stage's result, at its top level or under "measures". op: >= <= > <.
#   rule: seeds        three deviations of the seeds beyond the worst of them; that is also beyond half-way from the
#                      baseline to the seeds' mean
#         half_way     half-way from the baseline to the seeds' mean, because the seeds lie too far apart for the former
#         provisional  set by hand when fewer than three seeds were known
#         fixed        of physics, not of learning; "source" says why
#   seeds: what policies of different seeds reached. baseline: the best half-skilled policy that the bound lies beyond.
#   frozen_pose: of a limb error, that of the clip's mean pose carried along with the reference's root.
# open:       half-skilled policies that no gate stops yet.
# transfer:   optional gates, set by hand with a source, of the result of stage transfer: the exported policy in plain
#             MuJoCo. A case without them is run there, and shown, but not judged by it.
# env_ladder: optional, environments per device to try in this order instead of halving the args file's num_envs.
# tuned_envs: optional, environments of all devices together for the tuned variant, instead of what mimickit/cases.py
#             says.
# cost:       optional, how long training takes beside others on a GPU, in trainings of deepmimic_humanoid_ppo (1). Of
#             several cases at once the dearest begin first, each on the GPU whose cases cost least together.

"""

Policies = Mapping[str, Mapping[str, Sequence[float]]]
"""Mean and half its 95 % interval, by policy and measure."""


def upwards(measure: str) -> bool:
    """Whether more of a measure is better; all others are errors."""
    name = STATISTICS.get(measure, measure)
    return name in MORE_IS_BETTER or "success_rate" in name


# --- tests of trained policies ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Test:
    """Measures of one policy's test, by the names of ``statistics``. ``policy``: ``trained``, or one of ``EARLY``."""

    __test__ = False  # not a test class

    case: str
    policy: str
    seed: int
    measures: Mapping[str, float]
    conditions: Mapping[str, str]

    @property
    def key(self) -> tuple[str, str, int]:
        return self.case, self.policy, self.seed


def read_tests(file: Path) -> list[Test]:
    """A table separated by tabs: columns ``case``, ``policy`` (``trained`` if not given, ``half_budget`` or
    ``tenth_budget``) and ``seed``; those of ``CONDITIONS`` are kept as text; all others are measures, empty where
    there is none.

    Raises:
        UserError: the file cannot be read, a key is missing, a policy unknown, or a cell is no finite number.
    """
    found = []
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened, delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {error}") from None
    for number, row in enumerate(rows, 2):
        where = f"{file}, line {number}"
        row["policy"] = row.get("policy") or TRAINED
        if missing := [name for name in KEYS if not row.get(name)]:
            raise UserError(f"{where}: no '{missing[0]}'; each line needs case and seed")
        if row["policy"] not in (TRAINED, *EARLY):
            raise UserError(f"{where}: policy '{row['policy']}'; known are {', '.join((TRAINED, *EARLY))}")
        try:
            measures = {name: float(cell) for name, cell in row.items() if cell and name not in (*KEYS, *CONDITIONS)}
            seed = int(row["seed"])
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {error}") from None
        if wrong := [name for name, value in measures.items() if not math.isfinite(value)]:
            raise UserError(f"{where}: {wrong[0]} is not finite")
        conditions = {name: row[name] for name in CONDITIONS if row.get(name)}
        found.append(Test(row["case"], row["policy"], seed, measures, conditions))
    return found


def merged(*tables: Iterable[Test]) -> list[Test]:
    """Tests in order of case, policy and seed; of equal ones the last."""
    return [test for _, test in sorted({test.key: test for table in tables for test in table}.items())]


def table_of(tests: Sequence[Test]) -> str:
    """Tests as :func:`read_tests` reads them; six digits."""
    names = sorted({name for test in tests for name in test.measures})
    conditions = [name for name in CONDITIONS if any(name in test.conditions for test in tests)]
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow([*KEYS, *conditions, *names])
    for test in tests:
        writer.writerow([*test.key, *(test.conditions.get(name, "") for name in conditions),
                         *(f"{test.measures[name]:.6g}" if name in test.measures else "" for name in names)])
    return out.getvalue()


def collected(source: str, seed: int, policy: str) -> list[Test]:
    """The tests of a session's folder, of exported results, or of one run, ``CASE=result.json``; of trainable cases.

    Raises:
        UserError: there are none.
    """
    cases = {case.name for case in discover(SHIPPED) if case.trainable}
    name, equals, file = source.partition("=")
    folder = Path(source)
    if equals:
        results = {name: (read_json(Path(file)), {})}
    else:
        root = Root(folder)
        results = {case: (entry.test, entry.row) for case in root.cases if (entry := root.entry(case))}
    if unknown := [case for case in results if equals and case not in cases]:
        raise UserError(f"{source}: unknown case '{unknown[0]}'{nearest(unknown[0], cases)}")
    tests = []
    for case, (test, training) in sorted(results.items()):
        means = {**(test.get("measures") or {}), **{key: found["mean"] for key, found in
                                                   (test.get("statistics") or {}).items()}}
        if case in cases and means:
            samples = {"samples": str(training["samples"])} if training.get("samples") else {}
            means = {name: value for name, value in means.items() if not name.startswith("test_disc_")}
            tests.append(Test(case, policy, seed, means, {**samples, "source": folder.name if not equals else ""}))
    if not tests:
        raise UserError(f"{source}: no test of a trainable case there")
    return tests


# --- baselines --------------------------------------------------------------------------------------------------------


def all_policies(baselines: Mapping[str, Any], tests: Sequence[Test]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Policies by case: those of ``baselines.yaml``, and those that were stopped early, of several seeds the best value
    of each measure."""
    found = {case: dict(entry["policies"]) for case, entry in baselines.items()}
    for test in tests:
        if test.policy in EARLY:
            kept = found.setdefault(test.case, {}).setdefault(test.policy, {})
            for name, value in test.measures.items():
                better = max if upwards(name) else min
                kept[name] = [better(value, kept.get(name, [value])[0]), 0.0]
    return found


@dataclass(frozen=True)
class Margin:
    """How far a gate's bound lies beyond what one policy reaches.

    ``beyond`` is the distance from the near end of the policy's interval to the bound, in the gate's direction;
    positive when the policy fails the gate. ``relative`` is the same as a share of the policy's mean.
    """

    policy: str
    mean: float
    ci95: float
    beyond: float

    @property
    def relative(self) -> float:
        return self.beyond / abs(self.mean) if self.mean else math.copysign(math.inf, self.beyond)

    def __str__(self) -> str:
        return f"{self.policy} {self.mean:.4g} ± {self.ci95:.2g}, bound {self.relative:+.0%} beyond"


def margins(gate: Gate, policies: Policies) -> list[Margin]:
    """One margin per policy that has the measure, the smallest first.

    A policy without skill whose episodes all ended too early to be measured has none: it fails the gate for want of a
    measure. A half-skilled one that lacks a measure claims nothing of it, and is not stopped by its gate.

    Raises:
        UserError: the gate's measure was taken of no policy.
    """
    name, found = STATISTICS.get(gate.measure, gate.measure), []
    known = {measure for measures in policies.values() for measure in measures}
    if name not in known:
        raise UserError(f"{BASELINES_FILE.name} has no measure '{name}', only {', '.join(sorted(known))}")
    for policy, measures in policies.items():
        if name not in measures:
            continue
        mean, ci95 = measures[name]
        found.append(Margin(policy, mean, ci95, (gate.bound - mean if gate.upwards else mean - gate.bound) - ci95))
    return sorted(found, key=lambda margin: margin.relative)


def skilled(policy: str) -> bool:
    """Whether a policy of the baselines has any skill."""
    return not policy.startswith(WITHOUT_SKILL)


def stops(gates: Sequence[Gate], policy: str, policies: Policies) -> dict[str, Margin]:
    """The gates that a half-skilled policy fails, by measure."""
    found = {}
    for gate in gates:
        if STATISTICS.get(gate.measure, gate.measure) in policies[policy]:
            margin = margins(gate, {policy: policies[policy]})[0]
            if margin.beyond > 0.0:
                found[gate.measure] = margin
    return found


# --- bounds -----------------------------------------------------------------------------------------------------------


def bound_of(measure: str, seeds: Sequence[float], policies: Policies) -> Gate | None:
    """The gate that the rule gives; None of fewer than ``LEAST_SEEDS``, or where nobody without skill is worse.

    Of the policies that were stopped early only the gates' set as a whole is asked to stop one: half-way to them lies
    within what seeds differ by. How much is covered grows with the number of episodes, so ``coverage_err`` is compared
    with half-skilled policies alone.
    """
    if len(seeds) < LEAST_SEEDS:
        return None
    sign = 1.0 if upwards(measure) else -1.0
    name, mean = STATISTICS.get(measure, measure), statistics.fmean(seeds)
    worst = min(seeds, key=lambda value: sign * value)
    limit = worst - sign * DEVIATIONS * deviation(measure, seeds)
    rivals = {policy: measures[name][0] for policy, measures in policies.items()
              if name in measures and policy not in EARLY and (skilled(policy) or measure != "coverage_err")}
    beaten = {policy: value for policy, value in rivals.items() if sign * (worst - (value + mean) / 2) > 0.0}
    if not beaten:
        return None
    rival = max(beaten, key=lambda policy: sign * beaten[policy])
    half_way = (beaten[rival] + mean) / 2
    by_seeds = sign * (limit - half_way) >= 0.0
    return Gate(
        measure=measure, op=">=" if sign > 0 else "<=", bound=rounded(limit if by_seeds else half_way, -sign),
        rule="seeds" if by_seeds else "half_way", seeds=tuple(float(f"{value:.4g}") for value in seeds),
        baseline={rival: beaten[rival]})


def rounded(value: float, direction: float) -> float:
    """Three significant digits, towards ``direction``."""
    if value == 0.0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    steps = value / unit
    return float(f"{(math.ceil(steps - 1e-9) if direction > 0 else math.floor(steps + 1e-9)) * unit:.3g}")


def gates_of(case: Case, target: Target, tests: Sequence[Test], policies: Policies) -> list[Gate]:
    """The case's gates: computed where the seeds allow it, those of before elsewhere."""
    if not case.trainable:
        return list(target.gates)
    before = {gate.measure: gate for gate in target.gates}
    reached = [test for test in tests if test.case == case.name and test.policy == TRAINED]
    env = load_layered(locate(case.env_config))["env_name"]
    found = []
    for measure in dict.fromkeys([*before, *NEW_MEASURES.get(env, ())]):
        name = STATISTICS.get(measure, measure)
        seeds = [test.measures[name] for test in reached if name in test.measures]
        gate = bound_of(measure, seeds, policies)
        if gate is None and measure in before:
            old = before[measure]
            gate = Gate(measure=measure, op=old.op, bound=old.bound, rule="provisional",
                        seeds=tuple(float(f"{value:.4g}") for value in seeds))
        if gate is not None and name in LIMB_ERRORS and name in policies.get("frozen_pose", {}):
            gate = gate.model_copy(update={"frozen_pose": policies["frozen_pose"][name][0]})
        if gate is not None:
            found.append(gate)
    return found


def open_to(gates: Sequence[Gate], policies: Policies) -> list[str]:
    """Half-skilled policies that no gate stops."""
    return [policy for policy in policies if skilled(policy) and not stops(gates, policy, policies)]


def computed(targets: Mapping[str, Target], tests: Sequence[Test], policies: Mapping[str, Policies]
             ) -> dict[str, Target]:
    """All targets with their gates computed anew."""
    found = {}
    for case in discover(SHIPPED):
        target = targets.get(case.name, Target())
        gates = gates_of(case, target, tests, policies.get(case.name, {}))
        found[case.name] = target.model_copy(update={
            "gates": tuple(gates), "open": tuple(open_to(gates, policies.get(case.name, {})))})
    return found


def text_of(targets: Mapping[str, Target]) -> str:
    """The file ``targets.yaml``."""
    lines = [HEADER]
    for name, target in sorted(targets.items()):
        lines.append(f"{name}:\n")
        others = target.model_dump(exclude={"gates"}, exclude_defaults=True)
        lines += [f"  {key}: {flow(list(value) if isinstance(value, tuple) else value)}\n"
                  for key, value in others.items()]
        lines.append("  gates:\n")
        for gate in target.gates:
            values = gate.model_dump(exclude_defaults=True)
            lines.append(f"    - {flow({key: list(v) if isinstance(v, tuple) else v for key, v in values.items()})}\n")
        lines.append("\n")
    return "".join(lines).rstrip("\n") + "\n"


def flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("...\n").strip()


# --- the page ---------------------------------------------------------------------------------------------------------


def page(targets: Mapping[str, Target], policies: Mapping[str, Policies]) -> str:
    """``docs/gates.md``: gates, and which of them stops which baseline."""
    gates = [gate for target in targets.values() for gate in target.gates if gate.rule != "fixed"]
    strict = sum(gate.rule == "seeds" for gate in gates)
    passed = {case: target.open for case, target in sorted(targets.items()) if target.open}
    lines = [PAGE_HEAD, f"Strict are {strict} of {len(gates)} gates of learning, {len(gates) - strict} are half way or "
             "provisional. Not stopped yet: "
             + ("; ".join(f"{case}: {', '.join(names)}" for case, names in passed.items()) or "none") + ".", ""]
    for case, known in sorted(policies.items()):
        gates = targets[case].gates
        lines += [f"### {case}\n", "| measure | bound | seeds | deviation | rule | baseline |", "|" + " --- |" * 6]
        for gate in gates:
            rival = ", ".join(f"{name} {value:.4g}" for name, value in gate.baseline.items())
            size = deviation(gate.measure, gate.seeds) if len(gate.seeds) >= LEAST_SEEDS else None
            lines.append(f"| {gate.measure} | {gate.op.replace('<', chr(60))} {gate.bound:g} | "
                         f"{', '.join(f'{value:g}' for value in gate.seeds)} | "
                         f"{'' if size is None else f'{size:.2g}'} | {gate.rule.replace('_', ' ')} | {rival} |")
        lines += [f"\n{gate.measure} of the seeds: {statistics.fmean(gate.seeds) / gate.frozen_pose:.2f} of the frozen "
                  "pose's." for gate in gates if gate.frozen_pose and gate.seeds]
        lines += ["", "| half-skilled policy | stopped by |", "| --- | --- |"]
        for policy in filter(skilled, known):
            found = stops(gates, policy, known)
            lines.append(f"| {policy} | {'; '.join(map(stopped, found.values(), found)) or '**nothing**'} |")
        unskilled = {policy: measures for policy, measures in known.items() if not skilled(policy)}
        measured = {name for measures in unskilled.values() for name in measures}
        closest = [(gate.measure, margins(gate, unskilled)[0]) for gate in gates
                   if STATISTICS.get(gate.measure, gate.measure) in measured]
        words = [f"{measure} {margin.mean:.4g} ({margin.policy})" for measure, margin in closest]
        lines += ["", f"Nearest without skill: {', '.join(words)}.", ""]
    return "\n".join(lines)


def stopped(margin: Margin, measure: str) -> str:
    return f"{measure} {margin.mean:.4g} ({margin.relative:.0%})" if margin.mean else f"{measure} 0"


PAGE_HEAD = """# Gates

You want to know what a policy has to reach before the acceptance suite calls it learned, and which half-skilled
policies that stops. This page is written by `python -m mimickit.longcycle.bounds write`.

- **Rule**: a bound lies three deviations of the seeds beyond the worst of at least three, and beyond half-way from the
  best half-skilled policy to the seeds' mean. The deviation counts as at least 2 % of the mean, 1 % for shares and
  lengths. *half way*: the seeds lie too far apart for three deviations. *provisional*: set by hand, of fewer seeds.
- **Half-skilled policies** (`tools/measure_baselines.py` says what they are) are moved by hand, so they do perfectly
  what they do: a frozen pose carried along by the reference's root, a walker who ignores the speed asked for, one clip
  of many. `half_budget` and `tenth_budget` are policies after 50 % and 10 % of the samples. All gates of a case
  together must stop each of them.
- **Stopped by**: what the policy reaches in that measure, and how far the bound lies beyond it.
- Data: `tests/acceptance/seeds.tsv` (trained policies), `baselines.yaml`; the result: `targets.yaml`.

## New seeds

```sh
python -m mimickit.longcycle.bounds collect output/train/seed2 --seed 2 --out measures.tsv
python -m mimickit.longcycle.bounds collect amp_humanoid=output/half/result.json --seed 2 --policy half_budget \\
    --out measures.tsv
python -m mimickit.longcycle.bounds write measures.tsv
```

With `--replace`, all other tests of the same cases and policies are forgotten: those with earlier hyper-parameters.

## Cases
"""


# --- the program ------------------------------------------------------------------------------------------------------


def load() -> tuple[list[Test], dict[str, dict[str, dict[str, list[float]]]]]:
    """The committed tests and policies."""
    tests = read_tests(SEEDS_FILE)
    return tests, all_policies(load_yaml(BASELINES_FILE), tests)


@explains_mistakes
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collect = commands.add_parser("collect", help="append tests to a table")
    collect.add_argument("sources", nargs="+", metavar="SOURCE", help="session, exported results, or CASE=result.json")
    collect.add_argument("--seed", type=int, required=True)
    collect.add_argument("--policy", choices=(TRAINED, *EARLY), default=TRAINED)
    collect.add_argument("--out", type=Path, required=True, metavar="TSV")
    write = commands.add_parser("write", help="take tables over and compute all bounds")
    write.add_argument("tables", nargs="*", type=Path, metavar="TSV")
    write.add_argument("--replace", action="store_true", help="of the cases and policies in these tables forget all "
                       "other tests, such as those with earlier hyper-parameters")
    options = parser.parse_args(argv)
    if options.command == "collect":
        before = read_tests(options.out) if options.out.is_file() else []
        new = [test for source in options.sources for test in collected(source, options.seed, options.policy)]
        write_text(options.out, table_of(merged(before, new)))
        print(f"{len(new)} tests, {options.out}")
        return 0
    new = [test for file in options.tables for test in read_tests(file)]
    cases = {case.name for case in discover(SHIPPED) if case.trainable}
    if unknown := [test.case for test in new if test.case not in cases]:
        raise UserError(f"unknown case '{unknown[0]}'{nearest(unknown[0], cases)}")
    if new:
        stale = {(test.case, test.policy) for test in new if options.replace}
        kept = [test for test in read_tests(SEEDS_FILE) if (test.case, test.policy) not in stale]
        write_text(SEEDS_FILE, table_of(merged(kept, new)))
    tests, policies = load()
    targets = computed(load_targets(), tests, policies)
    write_text(TARGETS_FILE, text_of(targets))
    write_text(PAGE_FILE, page(targets, policies))
    for name, target in targets.items():
        weak = [gate.measure for gate in target.gates if gate.rule not in ("seeds", "fixed")]
        print(f"{name}: {len(target.gates)} gates" + (f", not strict: {', '.join(weak)}" if weak else "")
              + (f", open to {', '.join(target.open)}" if target.open else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
