"""What policies without skill do: measured for every trainable case, so that gates can be set beyond it.

``python -m tests.acceptance.baselines [--cases a,b] [--episodes 128]`` writes ``baselines.yaml``, which
``tests/contract/test_gates.py`` compares with ``targets.yaml``. Four policies a case, each the mean of its actions over
whole episodes of the args file's environment:

* ``untrained``: as built, so actions near the middle of their box;
* ``random_<s>``: actor layers drawn anew, its last one uniform in +- s: state-dependent actions that grow with s.

A measure that fewer than a tenth of the episodes have (all others ended too early) is left out: those few are the lucky
ones. ``coverage_err`` falls with the number of episodes: measure as many as the test stage runs before gating it.

torch and physics are loaded only when something is measured.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mimickit.cases import Case, select
from mimickit.config import load_yaml
from mimickit.util.args import Args
from mimickit.util.failures import EXIT_USER_ERROR, UserError
from mimickit.util.files import write_text
from tests.acceptance.cases import read_inputs
from tests.acceptance.judge import STATISTICS
from tests.acceptance.settings import DEFAULT_ENGINE, Gate

ROOT = Path(__file__).resolve().parents[2]
BASELINES_FILE = Path(__file__).with_name("baselines.yaml")
RANDOM_SCALES = (0.1, 0.3, 1.0)
POOLED = ("coverage_err", "motion_dist")  # figures of all steps together
LEAST_SHARE = 0.1  # of the episodes that must have a measure
HEADER = """# What policies without skill do, by case and policy: the mean of each measure and half its 95 % interval.
# Written by `python -m tests.acceptance.baselines`; its module says what the policies are. Not edited by hand.

"""


@dataclass(frozen=True)
class Margin:
    """How far a gate's bound lies beyond what one policy without skill reaches.

    ``beyond`` is the distance from the near end of the policy's interval to the bound, in the direction that the gate
    asks for; positive when the policy fails the gate. ``relative`` is the same as a share of the policy's mean.
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


def margins(gate: Gate, policies: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Margin]:
    """One margin for each policy without skill, the smallest first.

    A policy whose every episode ended before there was anything to measure has none: a gate without its measure fails.

    Raises:
        UserError: no policy was measured in what the gate asks for.
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


def measure_case(case: Case, episodes: int, seed: int, device: str) -> dict[str, dict[str, list[float]]]:
    """``{policy: {measure: [mean, ci95]}}`` of one case; an interval that nobody can tell (POOLED) is 0.

    What networks say (``test_disc_reward`` and the like) is left out: they have learned nothing either.
    """
    import torch

    from mimickit.envs.env_builder import build_env
    from mimickit.learning.evaluation import run_test
    from mimickit.learning.methods import build_agent
    from mimickit.run import read_request
    from mimickit.util.distributed import Distributed, seed_process

    request = read_request(Args.from_argv([
        "--engine_config", DEFAULT_ENGINE, "--devices", device, "--num_envs", str(episodes), "--rand_seed", str(seed),
        "--arg_file", case.args_file]))
    torch.set_num_threads(1)
    dist = Distributed.single(device)
    seed_process(seed, 0)
    env = build_env(request.env, request.engine, episodes, dist.device)
    agent = build_agent(env, request.agent, dist)
    found = {}
    for scale in (None, *RANDOM_SCALES):
        if scale is not None:
            draw_actor(agent.model_tensors(), scale)
        result = run_test(env, agent, dist, episodes)
        if result.nonfinite:
            raise UserError(f"{case.name}: {result.nonfinite} steps were not finite")
        found["untrained" if scale is None else f"random_{scale}"] = {
            **{name: [digits(s["mean"]), digits(s["ci95"])] for name, s in result.statistics.items()
               if s["episodes"] >= max(2, LEAST_SHARE * episodes) and not name.startswith("test_")},
            **{name: [digits(value), 0.0] for name, value in result.measures.items() if name in POOLED},
        }
    env.close()
    return found


def draw_actor(tensors: Mapping[str, Any], scale: float) -> None:
    """New random weights for the actor of a model: hidden layers as when built, the last one uniform in +- scale."""
    for name, tensor in tensors.items():
        if name == "_model._action_dist._mean_net.weight":
            tensor.detach().uniform_(-scale, scale)
        elif name.startswith("_model._actor_layers.") and tensor.dim() == 2:
            bound = tensor.shape[1] ** -0.5
            tensor.detach().uniform_(-bound, bound)


def digits(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def case_entry(case: Case, episodes: int, seed: int, device: str) -> dict[str, Any]:
    """One case's part of the file: the numbers and what they depend on."""
    from mimickit.run import versions

    begin = time.monotonic()
    policies = measure_case(case, episodes, seed, device)
    inputs = read_inputs(ROOT, case, DEFAULT_ENGINE)
    return {
        "date": time.strftime("%Y-%m-%d"), "episodes": episodes, "seed": seed, "device": device,
        "seconds": round(time.monotonic() - begin),
        "versions": {name: value for name, value in versions().items() if name in ("torch", "newton", "mujoco-warp")},
        "character": inputs.char_file, "motion": inputs.motion_file, "policies": policies,
    }


def write(entries: Mapping[str, Any], path: Path = BASELINES_FILE) -> None:
    """Replace the file."""
    text = yaml.safe_dump(dict(sorted(entries.items())), sort_keys=False, width=120, default_flow_style=None)
    write_text(path, HEADER + text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.baselines", description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", help="names separated by commas; all trainable ones if not given")
    parser.add_argument("--episodes", type=int, default=128, help="episodes of each policy, side by side (128)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=BASELINES_FILE, help="cases that are not measured now stay in it")
    options = parser.parse_args(argv)
    try:
        if options.episodes < 2:
            raise UserError(f"--episodes {options.episodes}: an interval needs at least 2")
        cases = select(ROOT, options.cases.split(",") if options.cases else None, nontrainable=bool(options.cases))
        if fixed := [case.name for case in cases if not case.trainable]:
            raise UserError(f"--cases {','.join(fixed)}: not trainable, nothing is learned there")
        entries = dict(load_yaml(options.out)) if options.out.is_file() else {}
        for case in cases:
            print(f"{case.name} ...", end=" ", flush=True)
            entries[case.name] = case_entry(case, options.episodes, options.seed, options.device)
            write(entries, options.out)
            shown = {name: values["length"][0] for name, values in entries[case.name]["policies"].items()}
            print(f"{entries[case.name]['seconds']} s, episode lengths {shown}", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
