"""PPO improves clearly where there is something to learn, and does not where there is not."""

import torch

from mimickit.learning.config import TrainOptions, parse_agent_config
from mimickit.learning.evaluation import run_test
from mimickit.learning.methods import build_agent
from mimickit.learning.trainer import train
from mimickit.util.distributed import Distributed, seed_process
from mimickit.util.logging import read_log
from tests.contract.toy_env import AGENT_CONFIG, ToyEnv
from tests.two_processes import in_two_processes

LEARNED = 14.0  # return of an episode; 20 at best, near 4 untrained, 18.3 to 18.9 after training with three seeds
BY_CHANCE = 11.0  # what no policy reaches that learned nothing: with eight seeds 4.4 to 8.6


def build(dist, num_envs=64, seed=0, **env_keys):
    seed_process(seed, dist.rank)
    env = ToyEnv(num_envs, **env_keys)
    return env, build_agent(env, parse_agent_config(AGENT_CONFIG), dist)


def test_ppo_learns_and_the_saved_model_does_what_it_learned(tmp_path):
    dist = Distributed.single()
    env, agent = build(dist)
    untrained = run_test(env, agent, dist, 64)
    result = train(env, agent, dist, TrainOptions(tmp_path, max_samples=40 * 1024))
    assert untrained.test_return < 6.0
    assert result.evaluation["return"] > LEARNED
    assert result.evaluation["episodes"] == 64
    assert result.outcome == "completed"
    assert (result.samples, result.iterations) == (40 * 1024, 40)
    assert result.measures["distance_err"] < 0.5

    other_env, other = build(dist, seed=123)
    other.load_model(tmp_path / "model.pt")
    assert run_test(other_env, other, dist, 64).test_return > LEARNED

    columns, rows = read_log(tmp_path / "log.txt")
    assert columns == [
        "Iteration", "Wall_Time", "Samples", "Test_Return", "Test_Episode_Length", "Test_Episodes", "Train_Return",
        "Train_Episode_Length", "Train_Episodes", "Critic_Loss", "Actor_Loss", "Clip_Frac", "Imp_Ratio",
        "Action_Bound_Loss", "Adv_Mean", "Adv_Std", "Distance_Err", "Obs_Norm_Mean", "Obs_Norm_Std", "Exp_Prob",
    ]
    assert [row[0] for row in rows] == ["0", "39"]


def test_with_shuffled_rewards_nothing_is_learned(tmp_path):
    dist = Distributed.single()
    env, agent = build(dist, shuffle=True)
    result = train(env, agent, dist, TrainOptions(tmp_path, max_samples=40 * 1024))
    assert result.evaluation["return"] < BY_CHANCE


def test_lcp_learns_a_smoother_policy(tmp_path):
    changes = {}
    for weight in (0.0, 0.03):
        seed_process(0, 0)
        env, dist = ToyEnv(64), Distributed.single()
        agent = build_agent(env, parse_agent_config({**AGENT_CONFIG, "agent_name": "LCP", "lcp_weight": weight}), dist)
        result = train(env, agent, dist, TrainOptions(tmp_path / str(weight), max_samples=40 * 1024))
        assert result.evaluation["return"] > LEARNED
        x = torch.randn(512, 4, generator=torch.Generator().manual_seed(1))
        jacobian = torch.func.vmap(torch.func.jacrev(lambda x, model=agent._model: _mean_action(model, x)))(x)
        changes[weight] = jacobian.square().sum(dim=(1, 2)).mean().sqrt()
        columns, _ = read_log(tmp_path / str(weight) / "log.txt")
        assert ("Lcp_Loss" in columns) == (weight > 0.0)
    assert changes[0.03] < 0.67 * changes[0.0], changes


def _mean_action(model, x):
    for layer in model._actor_layers:
        x = layer(x)
    return model._action_dist._mean_net(x)


def test_two_processes_stay_equal_and_learn(tmp_path):
    in_two_processes(_train_one_rank, tmp_path)
    _, rows = read_log(tmp_path / "log.txt")
    assert rows[-1][2] == str(30 * 2 * 16 * 32)
    assert float(rows[-1][3]) > LEARNED
    assert sorted(p.name for p in (tmp_path / "heartbeat").iterdir()) == ["rank_0", "rank_1"]


def _train_one_rank(dist, folder):
    env, agent = build(dist, num_envs=32)
    result = train(env, agent, dist, TrainOptions(folder, max_iters=30))
    assert result.world_size == 2
    assert result.evaluation["episodes"] == 64
    for name, tensor in agent.state_dict().items():
        root = tensor.clone()
        dist.broadcast_([root])
        assert torch.equal(root, tensor), name
    positions = dist.all_gather_object(env.obs.tolist())
    assert positions[0] != positions[1]  # different rollouts
