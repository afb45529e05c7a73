"""Advantage-weighted regression against hand-computed numbers."""

import pytest
import torch

from mimickit.learning import rl_math
from mimickit.learning.ppo import WeightedRegression
from mimickit.learning.rl_math import gaussian_log_prob, regression_loss, regression_weights
from tests.unit.method_case import config

ADVANTAGE = torch.tensor([-1.0, 0.0, 0.5, 2.0, 8.0])


@pytest.mark.parametrize(("temperature", "expected"), [
    (1.0, [0.444602, 0.587978, 0.676169, 1.028345, 5.501396]),
    (0.5, [0.197671, 0.345718, 0.457205, 1.057494, 20.0]),
])
def test_weights(temperature, expected):
    mean, std = rl_math.mean_and_std(rl_math.masked_moments(ADVANTAGE, torch.ones(5)))
    assert (mean.item(), std.item()) == (pytest.approx(1.9), pytest.approx(3.577709, rel=1e-6))
    found = regression_weights(ADVANTAGE, mean, std, temperature, 20.0)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=0.0)
    objective = WeightedRegression(config("AWR", awr_temp=temperature))
    weights, columns = objective.prepare(ADVANTAGE, mean, std)
    assert torch.equal(weights, found)
    assert columns["A_Weight_Mean"].value == weights.mean()
    assert (columns["A_Weight_Min"].value, columns["A_Weight_Min"].how) == (weights.min(), "min")
    assert (columns["A_Weight_Max"].value, columns["A_Weight_Max"].how) == (weights.max(), "max")


def test_loss():
    obs = torch.tensor([[1.0, 1], [0, -1], [1, 0], [0.5, 0.5]])
    action = torch.tensor([[0.6, 1.4], [0.1, -1.4], [0.4, 0.1], [9, 9]])
    mean = obs * torch.tensor([0.5, 1.5])
    log_prob = gaussian_log_prob(action, mean, torch.full((2,), 0.2).log())
    mask = torch.tensor([1.0, 1, 1, 0])
    loss = regression_loss(log_prob, torch.tensor([1.0, 0.5, 20.0, 3.0]))
    assert rl_math.masked_mean(loss, mask).item() == pytest.approx(-8.105492, rel=1e-5)
    assert rl_math.masked_mean(loss, torch.zeros(4)).item() == 0.0
