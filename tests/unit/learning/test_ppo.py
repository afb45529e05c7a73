"""What the agent makes of the mathematics: its losses, values, walks, and what it shares with other processes."""

import pytest
import torch

from mimickit.envs.base import DoneFlag
from mimickit.learning import rl_math
from mimickit.learning.agent import Agent
from mimickit.learning.config import DummyConfig
from mimickit.learning.evaluation import ConcurrentEvaluation, evaluate, run_test
from mimickit.learning.methods import build_agent
from mimickit.learning.metrics import Metric
from mimickit.learning.rl_math import action_reg_loss, gaussian_entropy, gaussian_log_prob
from mimickit.learning.rollout import MinibatchSampler
from mimickit.util.distributed import Distributed, seed_process
from mimickit.util.failures import UserError
from tests.contract.toy_env import AGENT_CONFIG
from tests.two_processes import in_two_processes
from tests.unit.method_case import StillEnv, config

ALONE = Distributed.single()


def rolled_out(env, agent, reward=lambda t: None):
    """An iteration's rollout with random observations; ``reward(t)`` may set those of a step."""
    agent.start_iteration(0)
    for t in range(agent.config.steps_per_iter):
        agent.act(t)
        env.obs.normal_()
        env.next_obs.normal_()
        reward(t)
        agent.observe(t)
    return agent


def ppo_agent(env, dist=ALONE, **keys):
    return build_agent(env, config("PPO", **keys), dist)


# --- losses -----------------------------------------------------------------------------------------------------------

TRAINED_STD = {**AGENT_CONFIG["model"], "actor_std_type": "CONSTANT"}
ALL_TERMS = {"action_bound_weight": 3.0, "action_entropy_weight": 0.2, "action_reg_weight": 0.5, "kl_target": 0.01,
             "model": {**TRAINED_STD, "actor_init_output_scale": 1.0}, "exp_prob_beg": 0.5, "exp_prob_end": 0.5}


def test_actor_loss_is_the_sum_of_its_terms():
    """Worse: actions beyond the bounds, long means. Better: entropy. Only random actions count."""
    torch.manual_seed(0)
    env = StillEnv(4)
    agent = rolled_out(env, ppo_agent(env, **ALL_TERMS), lambda t: env.reward.normal_())
    agent._compute_targets()
    with torch.no_grad():
        for parameter in agent._model.actor_parameters().values():  # a policy that has learned a little
            parameter.mul_(1.3)
    index = torch.arange(0, 64, 2)
    x, action, old, mask, advantage = (
        agent._rollout[name].flatten(0, 1)[index]
        for name in ("input", "action", "log_prob", "explore_mask", "advantage"))
    mean, log_std = agent._model.policy(x)
    log_ratio = (gaussian_log_prob(action, mean, log_std) - old) * mask
    ratio = log_ratio.exp()
    clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    bound, entropy, length = rl_math.action_bound_loss(mean), gaussian_entropy(log_std), action_reg_loss(mean)
    each = -clipped + 3.0 * bound - 0.2 * entropy + 0.5 * length
    found = agent._actor_loss(index)
    assert 0.0 < mask.sum() < len(index) and (bound > 0.0).any() and (log_ratio != 0.0).any()
    torch.testing.assert_close(found.loss, (each * mask).sum() / mask.sum())
    assert found.weight == mask.sum()
    shown = dict(zip(found.names, found.values.tolist(), strict=True))
    assert shown["Action_Entropy"] == pytest.approx(entropy[0].item()) and shown["Kl_Div"] > 0.0


@pytest.mark.parametrize("weight", [5.0, -5.0])
def test_entropy_is_sought_or_shunned(weight):
    env = StillEnv(4)
    agent = rolled_out(env, ppo_agent(env, action_entropy_weight=weight, model=TRAINED_STD))
    log_std = agent.model_tensors()["_model._action_dist._logstd_net"]
    before = log_std.detach().clone()
    agent.update(0)
    assert ((log_std - before) * weight > 0.0).all()


def test_tests_act_by_the_mean():
    torch.manual_seed(0)
    env = StillEnv(4)
    agent = ppo_agent(env, model={**AGENT_CONFIG["model"], "actor_init_output_scale": 1.0})
    env.obs.normal_()
    agent.act_test()
    mean = agent._model.policy(agent._obs_norm.normalize(env.obs))[0]
    torch.testing.assert_close(agent.action, agent._a_norm.to_env(mean).detach())
    assert agent.action.abs().max() > 0.01


# --- values and walks -------------------------------------------------------------------------------------------------


def test_the_next_value_has_the_latent_of_its_own_step():
    torch.manual_seed(0)
    env = StillEnv(4)
    agent = build_agent(env, config("ASE"), ALONE)
    steps = []  # at age 0: a new latent every step
    rolled_out(env, agent, lambda t: steps.append((agent._latents.values.clone(), env.next_obs.clone())))
    assert (steps[0][0] != steps[1][0]).any(dim=-1).all()
    with torch.no_grad():
        _, found = agent._values()
        for t, (latent, next_obs) in enumerate(steps):
            obs = agent._obs_norm.normalize(next_obs)
            torch.testing.assert_close(found[t], agent._model.value(torch.cat([obs, latent], dim=-1)))


def test_every_iteration_begins_a_new_walk(monkeypatch):
    """The critic's 6 minibatches of 12 are more than the 64 samples: what is left of a pass must not come next."""
    drawn = []

    def draw(self, count, original=MinibatchSampler.draw):
        drawn.append(original(self, count))
        return drawn[-1]

    env = StillEnv(4)
    agent = ppo_agent(env, critic_batch_size=3, critic_epochs=1)
    monkeypatch.setattr(MinibatchSampler, "draw", draw)
    for _ in range(2):
        drawn.clear()
        rolled_out(env, agent).update(0)
        assert len(torch.cat(drawn[:5]).unique()) == 60


# --- two processes ----------------------------------------------------------------------------------------------------


def advantages_are_pooled(dist):
    """Process 1 earns much more: all it did was better than the mean, and all that process 0 did worse.

    The mean is that of the random actions.
    """
    seed_process(0, dist.rank)
    env = StillEnv(4)
    agent = rolled_out(env, ppo_agent(env, dist, exp_prob_beg=0.5, exp_prob_end=0.5),
                       lambda t: env.reward.normal_(50.0 * dist.rank))
    metrics = agent._compute_targets()
    with torch.no_grad():
        own = agent._rollout["returns"] - agent._values()[0]
    random = own[agent._rollout["explore_mask"] > 0.0].tolist()
    every = torch.cat([torch.tensor(part) for part in dist.all_gather_object(random)]).double()
    assert 30 < len(every) < 100
    mean, std = every.mean(), every.std()
    assert metrics["Adv_Mean"].value.item() == pytest.approx(mean.item(), rel=1e-5)
    assert metrics["Adv_Std"].value.item() == pytest.approx(std.item(), rel=1e-5)
    expected = ((own - mean) / std).clamp(-4.0, 4.0).float()
    torch.testing.assert_close(agent._rollout["advantage"], expected, rtol=1e-4, atol=1e-5)
    assert (expected.mean() > 0.5) if dist.rank else (expected.mean() < -0.5)


def a_loaded_model_is_the_roots(dist):
    """Networks of all kinds: whatever process 1 read, it goes on with what the root did."""
    agent = build_agent(StillEnv(4), config("ASE"), dist)
    networks = {name: tensor for name, tensor in agent.model_tensors().items()
                if name.startswith("_model.") and not name.endswith("_logstd_net")}  # that one is fixed
    with torch.no_grad():
        for tensor in networks.values():
            tensor.fill_(1.0 + dist.rank)
    agent.model_loaded()
    assert len(networks) > 20 and all((tensor == 1.0).all() for tensor in networks.values())


def the_rate_follows_the_change_of_both(dist):
    """By the number of random actions: (300 * 0 + 100 * 0.1) / 400 is near the target, either alone is not."""
    env = StillEnv(4)
    for target, (first, second), factor in ((0.02, (300.0, 100.0), 1.0), (0.02, (100.0, 300.0), 1 / 1.5),
                                            (0.2, (1.0, 1.0), 1.5), (0.2, (0.0, 0.0), 1.0)):
        agent = ppo_agent(env, dist, kl_target=target)
        change = Metric(torch.tensor([0.0, 0.1][dist.rank]), "mean", torch.tensor([first, second][dist.rank]))
        rate = agent._adapt_rate(change)["Actor_Rate"].value.item()
        assert rate == pytest.approx(1e-3 * factor, rel=1e-5), (target, first, second)


class Episodes(StillEnv):
    """Episodes of ``lengths[i]`` steps in environment i; each step earns 1, ``miss`` in a step is that length."""

    def __init__(self, *lengths):
        super().__init__(len(lengths))
        self.lengths = torch.tensor(lengths)
        self.miss, self.count = (torch.zeros(len(lengths), dtype=torch.float64) for _ in range(2))

    def reset(self, first=None):
        self.steps.zero_()

    def set_mode(self, mode):
        self.miss.zero_()
        self.count.zero_()

    def step(self, action):
        self.steps += 1
        self.reward.fill_(1.0)
        self.miss += self.lengths
        self.count += 1.0
        self.done.copy_(torch.where(self.steps >= self.lengths, int(DoneFlag.TIME), int(DoneFlag.NULL)))
        self.steps.masked_fill_(self.done != DoneFlag.NULL, 0)

    def metrics(self):
        return {"miss": self.miss.sum() / self.count.sum()}

    def metric_sums(self):
        return {"miss": (self.miss, self.count)}

    def pooled_metrics(self, dist):
        return {}

    def health(self):
        zero = torch.zeros((), dtype=torch.int64)
        return dict.fromkeys(("nonfinite", "contact_overflow", "constraint_overflow"), zero)

    def clear_health(self):
        pass


def unequal_episodes(dist):
    """Episodes of 2, 4 and of 3, 23 steps: every environment counts once, a measure's mean is over all their steps."""
    env = Episodes(*[(2, 4), (3, 23)][dist.rank])
    steps = []
    found = evaluate(env, Agent(env, DummyConfig(), dist), dist, 4, on_step=lambda: steps.append(1))
    assert (found.episodes, found.complete, len(steps)) == (4, True, 24)  # also who is done early goes on
    assert (found.mean_return, found.episode_length) == (8.0, 8.0)
    assert found.metrics["miss"] == pytest.approx((2**2 + 4**2 + 3**2 + 23**2) / 32)
    late = evaluate(env, Agent(env, DummyConfig(), dist), dist, 4, should_stop=lambda: dist.rank == 1)
    assert not late.complete  # one of them has to stop, so both do


def headline_episodes(dist):
    """Of eight episodes the first of each process are the headline; rows begin with each environment's first."""
    env = Episodes(*[(2, 4), (3, 5)][dist.rank])
    found = run_test(env, Agent(env, DummyConfig(), dist), dist, 2, 8)
    assert (found.test_return, found.test_episode_length, found.test_episodes) == (2.5, 2.5, 2)
    assert found.statistics["return"]["mean"] == 3.5 and found.statistics["return"]["episodes"] == 8
    assert found.statistics["return"]["max"] == 5.0 and found.complete
    odd = run_test(env, Agent(env, DummyConfig(), dist), dist, 3, 4)  # two of each: never fewer than asked for
    assert (odd.test_return, odd.test_episodes) == (3.5, 4)
    assert dist.all_gather_object((found, odd)) == [(found, odd)] * 2


def side_evaluation(dist):
    """It ends when the last process' episodes do, and is the mean of all."""
    env = Episodes(*[(2, 9, 9), (4, 6, 9)][dist.rank])
    beside = ConcurrentEvaluation(env, Agent(env, DummyConfig(), dist), 2)
    beside.begin(7, 0)
    for step in range(1, 10):
        env.step(None)
        beside.update()
        found = beside.result(dist)
        assert (found is None) == (step < 9)
    assert (found.mean_return, found.episode_length, found.episodes, found.samples) == (5.25, 5.25, 4, 7)


def agents_of_two(dist):
    advantages_are_pooled(dist)
    a_loaded_model_is_the_roots(dist)
    the_rate_follows_the_change_of_both(dist)
    unequal_episodes(dist)
    headline_episodes(dist)
    side_evaluation(dist)


def test_two_processes():
    in_two_processes(agents_of_two)


# --- noise that falls, values that follow slowly ----------------------------------------------------------------------


def test_the_noise_of_an_iteration_is_that_of_its_samples():
    env = StillEnv(20_000)
    model = config("PPO").model.model_dump() | {"action_std": 0.4}
    agent = ppo_agent(env, model=model, action_std_end=0.1, std_anneal_samples=1000.0)
    for samples, expected in ((0, 0.4), (500, 0.2), (2000, 0.1)):
        agent.start_iteration(samples)
        agent.act(0)
        assert agent.action.std() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("keys", "message"), [
    ({"action_std_end": 0.1}, "belong together"), ({"std_anneal_samples": 5.0}, "belong together"),
    ({"action_std_end": 0.1, "std_anneal_samples": 5.0,
      "model": config("PPO").model.model_dump() | {"actor_std_type": "CONSTANT"}}, "needs model.actor_std_type FIXED"),
])
def test_noise_that_cannot_fall(keys, message):
    with pytest.raises(UserError, match=message):
        config("PPO", **keys)


def test_values_come_from_an_averaged_critic():
    agent = ppo_agent(StillEnv(4), critic_ema_decay=0.75)
    critic, bias = agent._model, agent._model._critic_out.bias

    def values():
        rollout, outcome = agent._rollout, agent._outcome
        rollout["input"][:], outcome["next_obs"][:] = 0.0, 0.0
        return agent._values()[0]

    before = values().clone()
    torch.testing.assert_close(before, critic.value(torch.zeros_like(agent._rollout["input"])).detach())
    with torch.no_grad():
        bias.add_(8.0)
    torch.testing.assert_close(values(), before)  # what learns is not yet what is believed
    for expected in (2.0, 3.5):  # a quarter of the way each
        agent.averaged_critic.update(critic)
        torch.testing.assert_close(values(), before + expected)
    agent.model_loaded()
    torch.testing.assert_close(values(), before + 8.0)
    assert not any(name.startswith("averaged") for name in agent.model_tensors())
    assert any(name.startswith("averaged_critic.") for name in agent.state_dict())
