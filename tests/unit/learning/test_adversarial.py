"""Discriminator, its reward, and its replay, against hand-computed numbers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mimickit.learning import adversarial
from mimickit.learning.adversarial import (
    Demonstrations,
    Differences,
    Discriminator,
    DiscriminatorNet,
    discriminator_loss,
    style_reward,
)
from mimickit.learning.methods import build_agent
from mimickit.learning.optim import interleave
from mimickit.learning.ppo import ClippedSurrogate, PolicyAgent
from mimickit.learning.rollout import MinibatchSampler
from mimickit.util.distributed import Distributed, seed_process
from mimickit.util.failures import UserError
from tests.unit.method_case import Linear, StillEnv, config

ALONE = Distributed.single()
ONE_STEP = config("AMP", steps_per_iter=1, actor_batch_size=1, critic_batch_size=1, disc_batch_size=1)


def close(found, expected, rtol=1e-5):
    torch.testing.assert_close(
        torch.as_tensor(found).double(), torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=2e-6)


@pytest.mark.parametrize(("scale", "expected"), [
    (1.0, [0, 0.006715, 0.313262, 0.693147, 1.313262, 2.126928, 5.006715, 9.000123, 9.210340, 9.210340]),
    (2.0, [0, 0.013431, 0.626523, 1.386294, 2.626523, 4.253856, 10.013431, 18.000247, 18.420681, 18.420681]),
])
def test_reward_of_logits(scale, expected):
    close(style_reward(torch.tensor([-100.0, -5, -1, 0, 1, 2, 5, 9, 9.3, 100]), scale), expected)


def test_amp_loss():
    env = StillEnv(4)
    data = Demonstrations(env, ONE_STEP)
    data.buffer.norm.mean.copy_(torch.tensor([1.0, 0.0]))
    data.buffer.norm.std.copy_(torch.tensor([2.0, 1.0]))
    normalize = data.buffer.norm.normalize
    agent = normalize(torch.tensor([[1.0, 1], [5, 1], [3, 0], [1, 2]]))  # two of the rollout, two of the replay
    demos = normalize(torch.tensor([[3.0, -1], [1, -2]]))
    found = discriminator_loss(Linear(), torch.cat([agent, demos]), 4, grad_penalty=5.0, logit_reg=0.01)
    expected = {"loss": 6.620158, "grad_penalty": 1.25, "logit_loss": 1.25, "neg_acc": 0.5, "pos_acc": 1.0,
                "neg_logit": -0.525, "pos_logit": 1.85}
    for name, value in expected.items():
        close(found[name], value)


def test_add_loss():
    data = Differences(StillEnv(4), ONE_STEP)
    data.buffer.norm.mean_abs.copy_(torch.tensor([2.0, 0.5]))
    x, y = torch.tensor([[0.0, 0], [1, 1], [1, 0], [0, 0]]), torch.tensor([[2.0, 1], [1, 0], [0, 0], [0, 0]])
    real = data.real(torch.tensor([0, 1]))
    assert real.tolist() == [[0.0, 0.0]]
    judged = data.buffer.norm.normalize(torch.cat([y - x, real]))
    found = discriminator_loss(Linear(), judged, 4, grad_penalty=2.0, logit_reg=0.01)
    expected = {"loss": 3.309860, "grad_penalty": 1.25, "logit_loss": 1.25, "pos_acc": 1.0, "neg_acc": 0.5,
                "pos_logit": 0.1, "neg_logit": 0.1625}
    for name, value in expected.items():
        close(found[name], value)


def test_add_reward_and_normaliser():
    x, y = torch.tensor([[0.0, 0], [1, 1], [0, 0]]), torch.tensor([[2.0, 1], [1, 0], [0, 0]])
    env = StillEnv(3, disc_obs=x, disc_obs_demo=y)
    settings = config("ADD", steps_per_iter=1, disc_reward_weight=0.5, task_reward_weight=0.5, disc_batch_size=1,
                      actor_batch_size=1, critic_batch_size=1)
    disc = Discriminator(env, settings, ALONE, Differences(env, settings))
    disc.net = Linear()
    disc.buffer.norm.mean_abs.copy_(torch.tensor([2.0, 0.5]))
    agent = PolicyAgent(env, settings, ALONE, ClippedSurrogate(settings), [disc], settings.task_reward_weight)
    env.reward.copy_(torch.tensor([1.0, 0.0, 0.2]))
    agent.act(0)
    agent.observe(0)
    with torch.no_grad():
        metrics = agent._add_rewards()
    close(agent._outcome["reward"], [[0.720417, 2.215519, 0.844397]])
    close(metrics["Disc_Reward_Mean"].value, 2.120222)
    close(metrics["Disc_Reward_Std"].value, 2.068685)
    close(metrics["Task_Reward_Mean"].value, 0.4)
    disc.update_norm()
    close(disc.buffer.norm.mean_abs, [0.6666667, 0.6666667])


def test_amp_normaliser_takes_agent_and_demonstrations_one_to_one():
    env = StillEnv(2, disc_obs=torch.tensor([[1.0, 0], [1, 0]]), disc_demo=torch.tensor([[3.0, 2], [3, 4]]))
    settings = config("AMP", steps_per_iter=4)
    disc = Discriminator(env, settings, ALONE, Demonstrations(env, settings))
    for t in range(4):
        disc.record(t)
    disc.record_norm()
    disc.update_norm()
    close(disc.buffer.norm.mean, [2.0, 1.5])
    assert disc.buffer.norm.count.tolist() == [16]


@pytest.mark.parametrize(("method", "kind"), [("AMP", Demonstrations), ("ADD", Differences)])
def test_the_replay_keeps_samples_not_what_was_made_of_them(method, kind):
    """Normalising happens in place; an entry of the ring is normalised anew, by what is known when it is used."""
    env = StillEnv(2, disc_obs=torch.tensor([[1.0, -2], [3, 5]]))
    settings = config(method, steps_per_iter=4)
    disc = Discriminator(env, settings, ALONE, kind(env, settings))
    norm = disc.buffer.norm
    for t in range(4):
        disc.record(t)
    expected = disc.buffer.samples().flatten(0, 1).clone()
    disc.record_norm()
    disc.update_norm()  # mean and deviation are no longer 0 and 1
    disc.reward()
    assert not torch.equal(disc.buffer.samples().flatten(0, 1), expected)
    kept = disc._replay.data[:8]
    assert sorted(kept.tolist()) == sorted(expected.tolist())
    torch.testing.assert_close(disc.buffer.as_input(kept), norm.normalize(kept))


@pytest.mark.parametrize("layers", ["fc_2layers_128units", "fc_3layers_1024units"])
def test_gradient_is_that_of_automatic_differentiation(layers):
    """Loss and gradient by every parameter, in double precision, against torch differentiating twice."""
    torch.manual_seed(0)
    net = DiscriminatorNet(3, layers).double()
    plain = nn.Sequential(*net._disc_layers, net._disc_logits)  # the same parameters
    neg, pos = torch.randn(6, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    parameters = list(net.parameters())

    x = torch.cat([neg, pos]).requires_grad_()
    logits = plain(x).squeeze(-1)
    (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    square = slope.square().sum(-1)
    entropy = 0.5 * (functional.softplus(logits[:6]).mean() + functional.softplus(-logits[6:]).mean())
    penalty = 0.5 * (square[:6].mean() + square[6:].mean())
    expected = entropy + 5.0 * penalty + 0.1 * net._disc_logits.weight.square().sum()

    found = discriminator_loss(net, torch.cat([neg, pos]), 6, 5.0, 0.1)
    torch.testing.assert_close(found["loss"], expected)
    torch.testing.assert_close(found["grad_penalty"], penalty)
    for ours, theirs in zip(torch.autograd.grad(found["loss"], parameters),
                            torch.autograd.grad(expected, parameters), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("method", "present", "absent"), [
    ("AMP", ["Disc_Agent_Acc", "Disc_Demo_Acc", "Disc_Agent_Logit", "Disc_Demo_Logit"], ["Disc_Logit_Loss"]),
    ("ADD", ["Disc_Pos_Acc", "Disc_Neg_Acc", "Disc_Pos_Logit", "Disc_Neg_Logit", "Disc_Logit_Loss"], []),
])
def test_columns(method, present, absent):
    seed_process(0, 0)
    env = StillEnv(4)
    agent = build_agent(env, config(method, disc_logit_reg=0.0), ALONE)
    agent.start_iteration(0)
    for t in range(16):
        agent.act(t)
        agent.observe(t)
    metrics = agent.update(0)
    assert {"Disc_Loss", "Disc_Grad_Penalty", "Disc_Reward_Mean", "Disc_Reward_Std", "Task_Reward_Mean", *present
            } <= set(metrics)
    assert not set(absent) & set(metrics)
    assert [name for name in metrics if name.endswith("_Loss")][:2] == ["Critic_Loss", "Actor_Loss"]


def test_discriminator_learns_to_tell():
    torch.manual_seed(0)
    env = StillEnv(16)
    disc = Discriminator(env, config("AMP", disc_reward_weight=3.0), ALONE, Demonstrations(env, config("AMP")))
    for t in range(16):
        env.info["disc_obs"].copy_(torch.randn(16, 2))
        env.info["disc_demo"].copy_(torch.randn(16, 2) + torch.tensor([3.0, 0.0]))
        disc.record(t)
    before, _ = disc.reward()
    sampler = MinibatchSampler(256, "cpu")
    for _ in range(10):
        interleave([disc.steps(sampler)])
    metrics = disc.update.metrics()
    assert metrics["Disc_Agent_Acc"].value > 0.9 and metrics["Disc_Demo_Acc"].value > 0.9
    after, columns = disc.reward()
    assert after.mean() < 0.7 * before.mean()
    close(columns["Disc_Reward_Mean"].value, (after.mean() / 3.0).item(), rtol=1e-4)
    env.info["disc_demo"].copy_(torch.tensor([3.0, 0.0]).expand(16, 2))
    env.info["disc_obs"].copy_(torch.tensor([0.0, 0.0]).expand(16, 2))
    disc.test_metrics.start()
    disc.test_metrics.observe()
    found = {name: total.sum() / count.sum() for name, (total, count) in disc.test_metrics.sums().items()}
    assert found["test_disc_agent_acc"] == 1.0 and found["test_disc_demo_acc"] == 1.0
    assert found["test_disc_agent_logit"] < 0.0 < found["test_disc_demo_logit"]


def test_replay_is_walked_through_in_shuffled_order(monkeypatch):
    """What is judged beside the rollout: every sample of the ring equally often, also over the end of a pass.

    It is normalised as the rollout is.
    """
    torch.manual_seed(0)
    env = StillEnv(4)
    keys = {"disc_batch_size": 3, "disc_epochs": 4, "disc_buffer_size": 88, "disc_replay_samples": 0}
    disc = Discriminator(env, config("AMP", **keys), ALONE, Demonstrations(env, config("AMP")))
    disc.buffer.norm.mean.fill_(1.0)
    judged = []

    def spy(net, x, count, *rest):
        judged.append(((x[12:count, 0] + 1.0) * 128).round().long())
        return discriminator_loss(net, x, count, *rest)

    monkeypatch.setattr(adversarial, "discriminator_loss", spy)

    def learn(first):
        """From a rollout of the numbers from ``first`` on: 24 minibatches of 12."""
        for t in range(16):
            number = first + 4 * t + torch.arange(4)
            env.info["disc_obs"].copy_((number / 128).unsqueeze(-1).expand(4, 2))
            disc.record(t)
        disc.reward()
        judged.clear()
        interleave([disc.steps(MinibatchSampler(64, "cpu"))])
        counts = torch.bincount(torch.cat(judged), minlength=128)
        assert len(judged) == 24 and counts.sum() == 288
        return counts

    part = learn(0)  # 64 of 88: four passes and a half
    assert part[64:].sum() == 0 and set(part[:64].tolist()) == {4, 5}
    full = learn(64)  # 64 new ones and 24 old ones, a new order: three passes and 24 of the next
    assert sorted(full[full > 0].tolist()) == [3] * 64 + [4] * 24
    assert set(full[64:].tolist()) == {3, 4}  # the new ones too
    full += learn(0)  # none enters the full ring, the pass goes on: six passes and 48 of the next
    assert sorted(full[full > 0].tolist()) == [6] * 40 + [7] * 48


def test_rewards_in_slices_change_nothing():
    env = StillEnv(5)
    torch.manual_seed(0)
    whole = Discriminator(env, config("AMP"), ALONE, Demonstrations(env, config("AMP")))
    sliced = Discriminator(env, config("AMP", disc_eval_batch_size=7), ALONE, Demonstrations(env, config("AMP")))
    sliced.net = whole.net
    for t in range(16):
        env.info["disc_obs"].copy_(torch.randn(5, 2))
        whole.record(t)
        sliced.record(t)
    torch.testing.assert_close(whole.reward()[0], sliced.reward()[0])


def test_mistakes_are_told_before_training():
    with pytest.raises(UserError, match=r"disc_batch_size = 2\.0 times num_envs = 4 gives minibatches of 8.*= 7 holds"):
        build_agent(StillEnv(4), config("AMP", disc_buffer_size=7), ALONE)
    with pytest.raises(UserError, match=r"disc_batch_size = 17\.0 exceeds steps_per_iter = 16"):
        build_agent(StillEnv(4), config("AMP", disc_batch_size=17), ALONE)
    with pytest.raises(UserError, match=r"enc_batch_size = 17\.0 exceeds"):
        build_agent(StillEnv(4), config("ASE", enc_batch_size=17), ALONE)
    env = StillEnv(4)
    del env.info["disc_demo"]
    with pytest.raises(UserError, match=r"needs disc_demo.*it has disc_obs, disc_obs_demo.*env_name amp"):
        build_agent(env, config("AMP"), ALONE)
    with pytest.raises(UserError, match=r"latent_time_min = 3\.0 exceeds latent_time_max = 2\.0"):
        config("ASE", latent_time_min=3.0)


def test_model_file_has_the_names_of_the_format():
    names = set(build_agent(StillEnv(4), config("ASE"), ALONE).model_tensors())
    assert {"_disc_obs_norm._count", "_disc_obs_norm._mean", "_disc_obs_norm._std", "_model._disc_layers.0.weight",
            "_model._disc_layers.2.bias", "_model._disc_logits.weight", "_model._enc_layers.2.weight",
            "_model._enc_out.bias", "_model._actor_layers.0.weight", "_model._critic_out.bias"} <= names
    tensors = build_agent(StillEnv(4), config("ADD"), ALONE).model_tensors()
    assert tensors["_disc_obs_norm._mean_abs"].shape == (2,) and "_disc_obs_norm._mean" not in tensors
    assert tensors["_disc_obs_norm._count"].shape == (1,)
