"""Statistics of a test on real physics: the same seed says the same, and few episodes are the first of many."""

import pytest

from mimickit.envs.env_builder import build_env
from mimickit.learning.evaluation import run_test
from mimickit.learning.methods import build_agent
from mimickit.longcycle.settings import DEFAULT_ENGINE
from mimickit.request_reader import read_request
from mimickit.util.args import Args
from mimickit.util.assets import SHIPPED
from mimickit.util.distributed import Distributed, seed_process

pytestmark = pytest.mark.sim
ALONE = Distributed.single()


def test_statistics_of_a_test_repeat(monkeypatch):
    monkeypatch.chdir(SHIPPED)
    request = read_request(Args.from_argv([
        "--engine_config", DEFAULT_ENGINE, "--devices", "cpu", "--arg_file", "args/deepmimic_go2_ppo_args.txt"]))

    def test(episodes, statistics_episodes):
        seed_process(5, 0)
        env = build_env(request.env, request.engine, 12, "cpu")
        agent = build_agent(env, request.agent, ALONE)
        result = run_test(env, agent, ALONE, episodes, statistics_episodes)
        diagnostics = {name: value.item() for name, value in env.metrics().items()}
        env.close()
        return result, diagnostics

    first, all_steps = test(12, None)
    again, _ = test(3, 12)
    assert again.statistics == first.statistics and again.measures == first.measures
    assert (first.test_episodes, again.test_episodes) == (12, 3)
    assert first.test_return == first.statistics["return"]["mean"] != again.test_return
    length = first.statistics["length"]
    assert 5.0 < length["min"] < length["mean"] < length["max"] and 0.0 < length["ci95"] < length["mean"]
    assert first.statistics["survival"]["mean"] == first.statistics["success_rate"]["mean"]
    error = first.statistics["body_pos_err"]
    assert error["min"] < error["mean"] < error["max"]
    assert 0.5 < all_steps["body_pos_err"] / error["mean"] < 2.0  # those count the steps of later episodes too
    assert all_steps["body_pos_err"] != error["mean"]
