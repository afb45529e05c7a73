"""Measures policies without skill, and half-skilled ones, in every trainable case, so that gates can be set beyond
them.

``python tools/measure_baselines.py [--cases a,b] [--episodes 128] [--only half_skilled]`` writes
``tests/acceptance/baselines.yaml``.

Without skill, of each the mean of its actions over whole episodes of the args file's environment:

* ``untrained``: as built, so actions near the middle of their box;
* ``random_<s>``: actor layers drawn anew, its last one uniform in +- s: state-dependent actions that grow with s.

A measure that fewer than a tenth of the episodes have (the others ended too early) is left out: those few were
lucky. ``coverage_err`` falls with the number of episodes: measure as many as the test stage runs before gating it.

Half-skilled, where they apply, moved by hand and not by physics (:mod:`mimickit.envs.puppets`):

* ``frozen_pose``: the clip's mean pose, carried along by the reference's root;
* ``statue``: stands in the pose of the clips that is most like their motion, facing the right way;
* ``no_turn``: the clip, if it turns, with the heading it began with;
* ``one_clip``: of several clips one, perfectly; of all clips the best value of each measure;
* ``ignores_latent``: skills of which an encoder can tell nothing;
* ``constant_speed``: goes the right way at a speed of its own, of several speeds that with the least error; where the
  speeds asked for differ by more than counts as on course;
* ``wrong_facing``: goes the right way at the right speed, but 90 degrees turned from where it should face;
* ``starts_behind_the_box``: vaults only where the episode starts above or behind the box.

A measure that a half-skilled policy lacks is one that it is not stopped by.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from mimickit.cases import Case, select
from mimickit.config import load_yaml
from mimickit.envs.env import Env
from mimickit.envs.env_builder import build_env
from mimickit.envs.puppets import PuppetEnv, ignored_latent, one_clip, puppets
from mimickit.envs.still_engine import StillEngine
from mimickit.learning.agent import Agent
from mimickit.learning.config import AgentConfig, ASEConfig, DummyConfig
from mimickit.learning.evaluation import TestResult, run_test
from mimickit.learning.methods import build_agent
from mimickit.longcycle.bounds import BASELINES_FILE
from mimickit.longcycle.cases import read_inputs
from mimickit.longcycle.settings import DEFAULT_ENGINE
from mimickit.request import Request
from mimickit.request_reader import read_request
from mimickit.run import versions
from mimickit.util.args import Args
from mimickit.util.assets import SHIPPED
from mimickit.util.distributed import Distributed, seed_process
from mimickit.util.failures import UserError, explains_mistakes
from mimickit.util.files import write_text

RANDOM_SCALES = (0.1, 0.3, 1.0)
PUPPETS = 64  # episodes of each half-skilled policy, side by side
POOLED = ("coverage_err", "motion_dist", "time_warped_err")  # figures of all steps together
LEAST_SHARE = 0.1  # of the episodes that must have a measure
HEADER = """# What policies without skill and half-skilled ones do, by case and policy: the mean of each measure and
# half its 95 % interval (0: none). Written by tools/measure_baselines.py, which says what the policies are.
# Not edited by hand.

"""


def measure_case(case: Case, episodes: int, seed: int, device: str, only_half_skilled: bool
                 ) -> dict[str, dict[str, list[float]]]:
    """``{policy: {measure: [mean, ci95]}}`` of one case.

    What networks say (``test_disc_reward`` and the like) is left out: they have learned nothing either.
    """
    request = read_request(Args.from_argv([
        "--engine_config", DEFAULT_ENGINE, "--devices", device, "--num_envs", str(episodes), "--rand_seed", str(seed),
        "--arg_file", case.args_file]))
    torch.set_num_threads(1)
    dist = Distributed.single(device)
    found = {} if only_half_skilled else without_skill(case, request, episodes, dist)
    seed_process(seed, 0)
    env = build_env(request.env, request.engine, PUPPETS, dist.device, StillEngine)
    return found | half_skilled(case, env, request.agent, dist)


def without_skill(case: Case, request: Request, episodes: int, dist: Distributed) -> dict[str, dict[str, list[float]]]:
    """``{policy: {measure: [mean, ci95]}}`` of the policies without skill."""
    seed_process(request.seed, 0)
    env = build_env(request.env, request.engine, episodes, dist.device)
    agent = build_agent(env, request.agent, dist)
    found = {}
    for scale in (None, *RANDOM_SCALES):
        if scale is not None:
            draw_actor(agent.model_tensors(), scale)
        found["untrained" if scale is None else f"random_{scale}"] = numbers(
            case, run_test(env, agent, dist, episodes), episodes)
    env.close()
    return found


def half_skilled(case: Case, env: Env, config: AgentConfig, dist: Distributed) -> dict[str, dict[str, list[float]]]:
    """``{policy: {measure: [mean, ci95]}}`` of the half-skilled policies."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, puppet in puppets(env):
        walks = name in ("constant_speed", "wrong_facing")
        terms = replace(env.terms, metrics={key: metric for key, metric in env.terms.metrics.items()
                                            if key != "similarity"}) if walks else env.terms
        moved = PuppetEnv(env.scene, terms, puppet)
        result = run_test(moved, Agent(moved, DummyConfig(), dist), dist, PUPPETS, None, PUPPETS)
        measures = numbers(case, result, PUPPETS)
        if name not in found or measures["vel_err"] < found[name]["vel_err"]:
            found[name] = measures
    if env.scene.motions.num_motions > 1 and "goal" not in env.terms.memory:
        found["one_clip"] = exact(one_clip(env))
    if isinstance(config, ASEConfig):
        found["ignores_latent"] = exact(ignored_latent(config.model.latent_dim))
    return found


def numbers(case: Case, result: TestResult, episodes: int) -> dict[str, list[float]]:
    """``{measure: [mean, ci95]}`` of a test; an interval that nobody can tell (POOLED) is 0."""
    if result.nonfinite:
        raise UserError(f"{case.name}: {result.nonfinite} steps were not finite")
    return {
        **{name: [digits(s["mean"]), digits(s["ci95"])] for name, s in result.statistics.items()
           if s["episodes"] >= max(2, LEAST_SHARE * episodes) and not name.startswith("test_")},
        **{name: [digits(value), 0.0] for name, value in result.measures.items() if name in POOLED},
    }


def exact(values: Mapping[str, float]) -> dict[str, list[float]]:
    """Calculated measures, which have no interval."""
    return {name: [digits(value), 0.0] for name, value in values.items()}


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


def case_entry(case: Case, options: argparse.Namespace, known: Mapping[str, Any]) -> dict[str, Any]:
    """One case's part of the file: the numbers and what they depend on. ``known``: what the file has of it."""
    episodes, seed, device = options.episodes, options.seed, options.device
    begin, only = time.monotonic(), options.only == "half_skilled"
    policies = {
        **(known.get("policies", {}) if only else {}),
        **measure_case(case, episodes, seed, device, only)}
    inputs = read_inputs(SHIPPED, case, DEFAULT_ENGINE)
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


@explains_mistakes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", help="names separated by commas; all trainable ones if not given")
    parser.add_argument("--episodes", type=int, default=128, help="episodes of each policy, side by side (128)")
    parser.add_argument("--only", choices=["half_skilled"], help="keep what the file has of policies without skill")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=BASELINES_FILE, help="cases that are not measured now stay in it")
    options = parser.parse_args(argv)
    if options.episodes < 2:
        raise UserError(f"--episodes {options.episodes}: an interval needs at least 2")
    cases = select(SHIPPED, options.cases.split(",") if options.cases else None, nontrainable=bool(options.cases))
    if fixed := [case.name for case in cases if not case.trainable]:
        raise UserError(f"--cases {','.join(fixed)}: not trainable, nothing is learned there")
    entries = dict(load_yaml(options.out)) if options.out.is_file() else {}
    for case in cases:
        print(f"{case.name} ...", end=" ", flush=True)
        entries[case.name] = case_entry(case, options, entries.get(case.name, {}))
        write(entries, options.out)
        shown = {name: values["length"][0] for name, values in entries[case.name]["policies"].items()
                 if "length" in values}
        print(f"{entries[case.name]['seconds']} s, episode lengths {shown}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
