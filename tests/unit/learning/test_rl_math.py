"""PPO's mathematics against hand-computed numbers."""

import math

import pytest
import torch

from mimickit.envs.base import DoneFlag
from mimickit.learning import rl_math
from mimickit.learning.rl_math import action_reg_loss, gaussian_entropy, gaussian_log_prob

REWARD, NEXT = [1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 20.0, 30.0, 40.0, 50.0]


def column(values):
    return torch.tensor(values).unsqueeze(1)


@pytest.mark.parametrize(("done", "next_value", "td_lambda", "expected"), [
    ([0, 0, 0, 0, 0], NEXT, 0.8, [28.803864, 36.116478, 42.384, 47.2, 50.0]),
    ([0, 0, 1, 0, 0], [10.0, 20.0, 0.0, 40.0, 50.0], 0.8, [8.3872, 7.76, 3.0, 47.2, 50.0]),
    ([0, 0, 2, 0, 0], [10.0, 20.0, 0.0, 40.0, 50.0], 0.8, [8.3872, 7.76, 3.0, 47.2, 50.0]),
    ([0, 0, 3, 0, 0], NEXT, 0.8, [22.384, 27.2, 30.0, 47.2, 50.0]),
    ([0, 0, 0, 0, 1], [10.0, 20.0, 30.0, 40.0, 0.0], 0.8, [16.710629, 19.320318, 19.056, 14.8, 5.0]),
    ([0, 0, 0, 0, 0], NEXT, 0.0, [10.0, 20.0, 30.0, 40.0, 50.0]),
    ([0, 0, 0, 0, 0], NEXT, 1.0, [40.951, 44.39, 47.1, 49.0, 50.0]),
])
def test_lambda_return(done, next_value, td_lambda, expected):
    found = rl_math.lambda_return(column(REWARD), column(next_value), column(done).int(), 0.9, td_lambda)
    torch.testing.assert_close(found[:, 0], torch.tensor(expected), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("fail", "succ", "expected_b"), [
    (0.0, 0.0, [4.4155, 1.0, 5.405501, 1.0]),
    (-1.0, 1.0, [-88.694, -98.0, 98.515, 100.0]),
])
def test_two_environments_do_not_mix(fail, succ, expected_b):
    reward = torch.tensor([[0.5, 1.0], [0.25, 1.0], [0.75, 1.0], [1.0, 1.0]])
    value = torch.tensor([[2.0, 50.0], [3.0, 60.0], [4.0, 70.0], [5.0, 80.0]])
    done = torch.tensor([[0, 0], [3, 1], [0, 0], [0, 2]], dtype=torch.int32)
    value = rl_math.overwrite_terminal_values(value, done, 0.99, fail, succ)
    found = rl_math.lambda_return(reward, value, done, 0.99, 0.95)
    torch.testing.assert_close(found[:, 0], torch.tensor([3.62741, 3.22, 6.543975, 5.95]), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(found[:, 1], torch.tensor(expected_b), rtol=1e-5, atol=0.0)


def test_time_out_keeps_the_critics_value():
    value = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    done = torch.tensor([[DoneFlag.NULL, DoneFlag.FAIL, DoneFlag.SUCC, DoneFlag.TIME]], dtype=torch.int32)
    found = rl_math.overwrite_terminal_values(value, done, 0.9, -1.0, 2.0)
    torch.testing.assert_close(found, torch.tensor([[1.0, -10.0, 20.0, 4.0]]))


def test_advantages_are_pooled_over_processes():
    sums = [rl_math.masked_moments(torch.tensor(x), torch.ones(len(x))) for x in ([1.0, 2.0, 3.0, 4.0], [10.0, 20.0])]
    mean, std = rl_math.mean_and_std(sums[0] + sums[1])
    assert mean.item() == pytest.approx(6.666667, rel=1e-6)
    assert std.item() == pytest.approx(7.257180, rel=1e-6)


def test_advantages_of_unflagged_samples_are_scaled_but_not_counted():
    advantage, mask = torch.tensor([1.0, 3.0, 100.0]), torch.tensor([1.0, 1.0, 0.0])
    mean, std = rl_math.mean_and_std(rl_math.masked_moments(advantage, mask))
    found = rl_math.normalize_advantage(advantage, mean, std, 4.0)
    torch.testing.assert_close(found, torch.tensor([-(0.5**0.5), 0.5**0.5, 4.0]))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("mask", [[0.0, 0.0], [0.0, 1.0]])
def test_deviation_of_fewer_than_two_samples_is_zero(mask):
    _, std = rl_math.mean_and_std(rl_math.masked_moments(torch.tensor([5.0, 7.0]), torch.tensor(mask)))
    assert std.item() == 0.0


BATCH = {
    "obs": [[1.0, 1.0], [0.0, -1.0], [1.0, 0.0], [0.5, 0.5]],
    "action": [[0.6, 1.4], [0.1, -1.4], [0.4, 0.1], [9.0, 9.0]],
    "old": [0.0, 1.0, 0.5, 0.0], "advantage": [1.0, -0.5, 2.0, 3.0], "mask": [1.0, 1.0, 1.0, 0.0],
}


def batch_of_the_linear_policy():
    data = {name: torch.tensor(values) for name, values in BATCH.items()}
    mean = data["obs"] * torch.tensor([0.5, 1.5])
    log_std = torch.full_like(mean, 0.2).log()
    return data, mean, log_std, gaussian_log_prob(data["action"], mean, log_std)


def test_actor_terms():
    data, mean, log_std, log_prob = batch_of_the_linear_policy()
    torch.testing.assert_close(log_prob[:3], torch.full((3,), 1.130999), rtol=1e-5, atol=0.0)
    log_ratio = rl_math.log_ratio(log_prob, data["old"], data["mask"])
    found = rl_math.surrogate_loss(log_ratio, data["advantage"], 0.2)
    loss, clip_frac, imp_ratio = rl_math.masked_mean(
        torch.stack([found.loss, found.clipped, found.ratio]), data["mask"])
    assert loss.item() == pytest.approx(-1.010006, rel=1e-5)
    assert clip_frac.item() == pytest.approx(0.666667, rel=1e-5)
    assert imp_ratio.item() == pytest.approx(2.039401, rel=1e-5)

    bound = rl_math.masked_mean(rl_math.action_bound_loss(mean), data["mask"])
    entropy = rl_math.masked_mean(gaussian_entropy(log_std), data["mask"])
    regularizer = rl_math.masked_mean(action_reg_loss(mean), data["mask"])
    assert bound.item() == pytest.approx(0.166667, rel=1e-5)
    assert entropy.item() == pytest.approx(-0.380999, rel=1e-5)
    assert regularizer.item() == pytest.approx(1.666667, rel=1e-5)
    total = loss + 10.0 * bound - 0.01 * entropy + 0.1 * regularizer
    assert total.item() == pytest.approx(0.827138, rel=1e-5)


def test_a_batch_without_random_actions_contributes_nothing():
    log_prob = torch.tensor([1.0, 1000.0], requires_grad=True)
    mask = torch.zeros(2)
    found = rl_math.surrogate_loss(rl_math.log_ratio(log_prob, torch.zeros(2), mask), torch.ones(2), 0.2)
    loss = rl_math.masked_mean(found.loss, mask)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(log_prob.grad, torch.zeros(2))


def test_surrogate_gradient_stops_beyond_the_clip():
    log_ratio = torch.tensor([0.1, 0.5], requires_grad=True)  # ratios 1.105 and 1.649
    rl_math.surrogate_loss(log_ratio, torch.ones(2), 0.2).loss.mean().backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-0.5 * 1.1051709, 0.0]))


def test_surrogate_is_the_smaller_of_both_gains():
    """Value and gradient against PPO's formula as it stands in the paper, for advantages of both signs and none."""
    advantage, ratio = torch.cartesian_prod(
        torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0]), torch.tensor([0.1, 0.7, 0.9, 1.0, 1.1, 1.3, 9.0])).unbind(-1)
    ours, paper = ratio.log().requires_grad_(), ratio.log().requires_grad_()
    found = rl_math.surrogate_loss(ours, advantage, 0.2)
    expected = -torch.minimum(advantage * paper.exp(), advantage * paper.exp().clamp(0.8, 1.2))
    torch.testing.assert_close(found.loss, expected)
    found.loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, paper.grad)
    assert torch.equal(found.clipped, ((ratio < 0.8) | (ratio > 1.2)).float())


def test_action_bound_loss():
    modes = torch.tensor([[0.5, 1.2, -1.5], [0.0, -1.0, 1.0], [2.0, 2.0, 2.0]])
    torch.testing.assert_close(rl_math.action_bound_loss(modes), torch.tensor([0.29, 0.0, 3.0]))


def test_critic_loss_has_no_factor():
    assert rl_math.critic_loss(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 5.0])).item() == 5.0


def test_kl_divergence_of_gaussians():
    """The estimate's mean over many actions is the divergence: for equal deviations s, |m1 - m2|^2 / (2 s^2)."""
    torch.manual_seed(0)
    old, new, log_std = torch.zeros(200_000, 2), torch.full((200_000, 2), 0.01), torch.full((2,), -3.0)
    action = old + torch.exp(log_std) * torch.randn_like(old)
    logs = [gaussian_log_prob(action, mean, log_std) for mean in (new, old)]
    expected = 2 * 0.01**2 / (2 * math.exp(-6.0))
    assert rl_math.kl_divergence(logs[0] - logs[1]).mean().item() == pytest.approx(expected, rel=0.02)
    assert rl_math.kl_divergence(rl_math.log_ratio(*logs, torch.zeros(200_000))).mean().item() == 0.0
