"""Flat optimisers against hand-computed steps and torch's own."""

import copy

import pytest
import torch
from torch import nn

from mimickit.config import build
from mimickit.learning.config import OptimizerConfig
from mimickit.learning.optim import FlatOptimizer
from mimickit.util.distributed import Distributed

ALONE = Distributed.single()


def config(**keys):
    return build(OptimizerConfig, {"type": "SGD", "learning_rate": 0.1, **keys}, "test")


@pytest.mark.parametrize(("keys", "expected"), [
    ({"type": "SGD"}, [(0.95, -2.1), (0.855, -2.29), (0.7195, -2.561)]),
    ({"type": "SGD", "weight_decay": 0.1}, [(0.94, -2.08), (0.8266, -2.2312), (0.666274, -2.444968)]),
    ({"type": "Adam"}, [(0.9, -2.1), (0.8, -2.2), (0.7, -2.3)]),
    ({"type": "Adam", "weight_decay": 0.1}, [(0.89, -2.08), (0.7811, -2.1592), (0.673289, -2.237608)]),
    ({"type": "SGD", "grad_clip": 10.0}, [(0.95, -2.1), (0.855, -2.29), (0.7195, -2.561)]),  # small ones are left alone
    ({"type": "SGD", "grad_clip": 0.5}, [(0.977639, -2.044721), (0.935154, -2.129692), (0.874557, -2.250887)]),
])
def test_three_steps(keys, expected):
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = FlatOptimizer({"p": p}, config(**keys), ALONE)
    for values in expected:
        optimizer.set_gradient(0.5 * p[0] + p[1])
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.tensor(values), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("keys", "reference"), [
    ({"type": "SGD", "weight_decay": 0.01}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01)),
    ({"type": "Adam", "weight_decay": 0.01}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01)),
])
def test_a_network_moves_as_with_torchs_optimizer(keys, reference):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    theirs = copy.deepcopy(ours)
    flat, known = FlatOptimizer(dict(ours.named_parameters()), config(**keys), ALONE), reference(theirs.parameters())
    for _ in range(20):
        x = torch.randn(8, 3)
        flat.set_gradient(ours(x).square().mean())
        flat.step()
        known.zero_grad()
        theirs(x).square().mean().backward()
        known.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_state_continues_exactly():
    def fresh():
        p = nn.Parameter(torch.tensor([1.0, -2.0]))
        return p, FlatOptimizer({"p": p}, config(type="Adam"), ALONE)

    def step(p, optimizer):
        optimizer.set_gradient((p**3).sum())
        optimizer.step()

    p, optimizer = fresh()
    for _ in range(2):
        step(p, optimizer)
    q, other = fresh()
    with torch.no_grad():
        q.copy_(p)
    for name, tensor in other.state_dict().items():
        tensor.copy_(optimizer.state_dict()[name])
    step(p, optimizer)
    step(q, other)
    assert torch.equal(p, q)


@pytest.mark.parametrize(("kl", "expected"), [
    (0.0, 0.15), (0.014, 0.15), (0.016, 0.1), (0.059, 0.1), (0.061, 0.1 / 1.5), (9.0, 0.1 / 1.5)])
def test_the_rate_follows_the_policys_change(kl, expected):
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = FlatOptimizer({"p": p}, config(), ALONE)
    optimizer.adapt_rate(torch.tensor(kl, dtype=torch.float64), 0.03)
    assert optimizer.rate.item() == pytest.approx(expected)
    optimizer.set_gradient(p[0])
    optimizer.step()
    assert p[0].item() == pytest.approx(1.0 - expected)


def test_a_resumed_run_keeps_the_adaptation_and_takes_the_configured_rate():
    before, after = (FlatOptimizer({"p": nn.Parameter(torch.ones(1))}, config(learning_rate=rate), ALONE)
                     for rate in (0.1, 0.02))
    before.adapt_rate(torch.tensor(0.0), 0.03)
    for name, tensor in after.state_dict().items():
        tensor.copy_(before.state_dict()[name])
    assert after.rate.item() == pytest.approx(0.03)


@pytest.mark.parametrize(("kl", "limit"), [(0.0, 3.0), (1.0, 0.1 / 30)])
def test_the_rate_stays_within_limits(kl, limit):
    optimizer = FlatOptimizer({"p": nn.Parameter(torch.ones(1))}, config(), ALONE)
    for _ in range(20):
        optimizer.adapt_rate(torch.tensor(kl), 0.03)
    assert optimizer.rate.item() == pytest.approx(limit)
