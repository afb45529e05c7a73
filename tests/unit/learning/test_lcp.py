"""Lipschitz-constrained policies: the gradient by the observation, its derivative, and what the penalty does."""

import pytest
import torch

from mimickit.learning.config import ModelConfig
from mimickit.learning.model import ActorCritic

KINDS = ["FIXED", "CONSTANT", "VARIABLE"]


def network(kind, obs_size=7, action_size=3):
    torch.manual_seed(3)
    net = ActorCritic(obs_size, action_size, ModelConfig(
        actor_net="fc_3layers_1024units", critic_net="fc_2layers_128units", actor_init_output_scale=0.5,
        actor_std_type=kind, action_std=0.2)).double()
    for layer in net._actor_layers:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.bias, std=0.1)
    return net, torch.randn(5, obs_size, dtype=torch.float64), torch.randn(5, action_size, dtype=torch.float64)


def log_prob(net, x, action):
    features = x
    for layer in net._actor_layers:
        features = layer(features)
    mean, log_std = net._action_dist(features)
    return torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(dim=-1)


def penalty(net, x, action):
    """As the learner computes it."""
    return net.log_prob_gradient(x, action, *net.policy(x)).square().sum(dim=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_automatic_differentiation(kind):
    net, x, action = network(kind)
    x.requires_grad_()
    expected, = torch.autograd.grad(log_prob(net, x, action).sum(), x)
    found = net.log_prob_gradient(x.detach(), action, *net.policy(x.detach()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_has_the_derivative_of_automatic_differentiation(kind):
    net, x, action = network(kind)
    parameters = list(net.actor_parameters().values())
    found = torch.autograd.grad(penalty(net, x, action).mean(), parameters, allow_unused=True)
    x.requires_grad_()
    gradient, = torch.autograd.grad(log_prob(net, x, action).sum(), x, create_graph=True)
    expected = torch.autograd.grad(gradient.square().sum(dim=-1).mean(), parameters, allow_unused=True)
    for one, other, parameter in zip(found, expected, parameters, strict=True):
        zero = torch.zeros_like(parameter)
        torch.testing.assert_close(zero if one is None else one, zero if other is None else other)
    assert all(gradient.abs().max() > 0.0 for gradient in expected if gradient is not None)


def test_a_linear_policy_by_hand():
    """Mean (0.5 o_1, 1.5 o_2), deviation 0.2: residuals (0.1, -0.1) over 0.04 give the gradient (1.25, -3.75)."""
    net, _, _ = network("FIXED", obs_size=2, action_size=2)
    layers = [layer for layer in net._actor_layers if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
        for layer in layers:  # relu(o + 10) - 10 = o
            layer.weight[:2, :2] = torch.eye(2)
        layers[0].bias[:2] = 10.0
        head = net._action_dist._mean_net
        head.weight.zero_()
        head.weight[0, 0], head.weight[1, 1] = 0.5, 1.5
        head.bias.copy_(torch.tensor([-5.0, -15.0]))
    x = torch.tensor([[1.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    action = torch.tensor([[0.6, 1.4], [0.1, -1.4]], dtype=torch.float64)
    assert penalty(net, x, action).tolist() == pytest.approx([15.625, 15.625], rel=1e-6)


def test_bfloat16_layers_agree_within_their_precision():
    net, x, action = network("FIXED")
    net, x, action = net.float(), x.float(), action.float()
    exact = net.log_prob_gradient(x, action, *net.policy(x))
    net._actor_layers.dtype = torch.bfloat16
    rough = net.log_prob_gradient(x, action, *net.policy(x))
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(rough, exact).min() > 0.95  # three layers of 8 bits each
    rough.square().sum().backward()
    assert all(p.grad is not None for name, p in net.actor_parameters().items() if name.endswith("weight"))
