"""``mimickit.make``: the environment of a case for somebody else's learner."""

import pytest
import torch

import mimickit
from mimickit.util.failures import UserError


def test_an_environment_steps(tmp_path, monkeypatch):
    """Real physics, from a folder that holds nothing, by the documented contract."""
    monkeypatch.chdir(tmp_path)
    env = mimickit.make("deepmimic_humanoid_ppo", num_envs=2, device="cpu", overrides=["env.episode_length=0.1"],
                        seed=3)
    env.reset()
    assert env.obs.shape == env.next_obs.shape == (2, 464) and env.action_low.shape == env.action_high.shape == (28,)
    ended = []
    for _ in range(3):
        env.step(torch.zeros(2, 28))
        ended.append(env.done.tolist())
    assert ended == [[0, 0], [0, 0], [3, 3]] and env.steps.tolist() == [0, 0]
    assert not torch.equal(env.obs, env.next_obs) and 0.0 < float(env.reward.min()) <= 1.0
    env.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("case", "more", "message"), [
    ("deepmimic_humanoid_pp", {}, "did you mean 'deepmimic_humanoid_ppo'?"),
    ("amp_g1", {"device": "cuda:99"}, "--devices cuda:99: this machine has cpu"),
    ("amp_g1", {"overrides": ["agent.discount=0.9"]}, "the learner is your own"),
    ("amp_g1", {"num_envs": 0}, "num_envs must be at least 1"),
])
def test_mistakes(case, more, message):
    with pytest.raises(UserError, match=message.replace("?", "[?]")):
        mimickit.make(case, **more)
