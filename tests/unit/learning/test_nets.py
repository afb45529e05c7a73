"""Networks by name."""

import pytest
import torch
from torch import nn

from mimickit.learning.model import HIDDEN, build_head, build_net


@pytest.mark.parametrize(("name", "widths"), [
    ("fc_2layers_1024units", [1024, 512]), ("fc_2layers_512units", [512, 256]), ("fc_2layers_256units", [256, 128]),
    ("fc_2layers_128units", [128, 64]), ("fc_3layers_1024units", [1024, 1024, 512]),
])
def test_layers(name, widths):
    net, size = build_net(name, 7)
    assert [layer.out_features for layer in net[0::2]] == widths
    assert all(isinstance(layer, nn.ReLU) for layer in net[1::2])
    assert size == widths[-1]
    assert isinstance(net[-1], nn.ReLU)
    assert net(torch.zeros(2, 7)).shape == (2, size)
    assert set(HIDDEN) >= {name}


def test_weights_start_uniform_by_fan_in_and_biases_at_zero():
    torch.manual_seed(0)
    net, _ = build_net("fc_2layers_256units", 100)
    assert net[0].weight.abs().max() <= 0.1
    assert net[0].weight.abs().max() > 0.099
    assert net[0].weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert all(torch.equal(layer.bias, torch.zeros_like(layer.bias)) for layer in net[0::2])


def test_heads():
    torch.manual_seed(0)
    head = build_head(50, 4, scale=0.3, bias=-2.0)
    assert 0.25 < head.weight.abs().max() <= 0.3
    assert torch.equal(head.bias, torch.full((4,), -2.0))
    assert build_head(100, 1).weight.abs().max() <= 0.1
