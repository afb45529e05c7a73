"""Learners whose rewards say nothing fail every gate: really trained, on real physics, at small size.

Rewards of a whole rollout, the method's own included, are permuted over environments and steps before values and
advantages are computed from them. Everything else is as in a run, but for smaller networks, and Adam whose large steps
let the policy wander.
"""

import pytest
import torch

from mimickit.envs.env_builder import build_env
from mimickit.learning import rl_math
from mimickit.learning.config import TrainOptions
from mimickit.learning.evaluation import run_test
from mimickit.learning.methods import build_agent
from mimickit.learning.trainer import train
from mimickit.longcycle.judge import judge_gates
from mimickit.longcycle.settings import DEFAULT_ENGINE, load_targets
from mimickit.request_reader import read_request
from mimickit.util.args import Args
from mimickit.util.assets import SHIPPED
from mimickit.util.distributed import Distributed, seed_process

pytestmark = pytest.mark.sim
ALONE = Distributed.single()
NETS = {"deepmimic_go2_ppo": ("actor_net", "critic_net"), "amp_humanoid": ("actor_net", "critic_net", "disc_net")}
ITERATIONS, NUM_ENVS = 8, 32


@pytest.mark.slow
@pytest.mark.parametrize("case", NETS)
def test_shuffled_rewards_pass_no_gate(case, tmp_path, monkeypatch):
    monkeypatch.chdir(SHIPPED)
    seen = []

    def of_shuffled(reward, *rest, lambda_return=rl_math.lambda_return):
        order = torch.randperm(reward.numel())
        seen.append(reward)
        return lambda_return(reward.flatten()[order].view_as(reward), *rest)

    monkeypatch.setattr(rl_math, "lambda_return", of_shuffled)
    request = read_request(Args.from_argv([
        "--engine_config", DEFAULT_ENGINE, "--devices", "cpu", "--num_envs", str(NUM_ENVS), "--rand_seed", "3",
        "--set", "agent.actor_optimizer.type=Adam", "agent.actor_optimizer.learning_rate=1e-3", "agent.test_episodes=0",
        "agent.steps_per_iter=16", *(f"agent.model.{net}=fc_2layers_256units" for net in NETS[case]),
        "--arg_file", f"args/{case}_args.txt"]))
    seed_process(request.seed, 0)
    env = build_env(request.env, request.engine, NUM_ENVS, "cpu")
    agent = build_agent(env, request.agent, ALONE)
    actor = agent.model_tensors()["_model._action_dist._mean_net.weight"]
    before = actor.detach().clone()
    train(env, agent, ALONE, TrainOptions(tmp_path, max_iters=ITERATIONS))
    assert len(seen) == ITERATIONS and all(reward.std() > 0.0 for reward in seen)
    assert (actor - before).norm() > 0.3 * before.norm(), "it did learn something, only nothing of use"

    result = run_test(env, agent, ALONE, NUM_ENVS).to_dict()
    env.close()
    gates = load_targets()[case].gates
    verdicts = {gate.measure: judge_gates([gate], result) for gate in gates}
    assert {verdict.verdict for verdict in verdicts.values()} == {"fail"}, verdicts
