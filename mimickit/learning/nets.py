"""Networks by the names that agent files use. Every hidden layer, the last one too, is followed by a ReLU."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from mimickit.learning.relu_layers import hidden_layers

NetName = Literal[
    "fc_2layers_1024units", "fc_2layers_512units", "fc_2layers_256units", "fc_2layers_128units", "fc_3layers_1024units"
]

HIDDEN: dict[str, tuple[int, ...]] = {
    "fc_2layers_1024units": (1024, 512),
    "fc_2layers_512units": (512, 256),
    "fc_2layers_256units": (256, 128),
    "fc_2layers_128units": (128, 64),
    "fc_3layers_1024units": (1024, 1024, 512),
}


class HiddenLayers(nn.Sequential):
    """Linear layers at even indices, a ReLU after each; ``dtype`` is what they compute in (None: as the input)."""

    dtype: torch.dtype | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., n] -> [..., h]."""
        return hidden_layers(x, list(self.parameters()), self.dtype or x.dtype)


def build_net(name: NetName, input_size: int, dtype: torch.dtype | None = None) -> tuple[HiddenLayers, int]:
    """A fully connected net for input [..., input_size] and the size of its output.

    Weights start uniform in +-1/sqrt(fan_in), biases at zero.
    """
    layers: list[nn.Module] = []
    size = input_size
    for width in HIDDEN[name]:
        linear = nn.Linear(size, width)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
        size = width
    net = HiddenLayers(*layers)
    net.dtype = dtype
    return net, size


def build_head(input_size: int, output_size: int, scale: float | None = None, bias: float = 0.0) -> nn.Linear:
    """A linear output layer: weights uniform in +-``scale`` (None: framework default), bias constant."""
    head = nn.Linear(input_size, output_size)
    with torch.no_grad():
        if scale is not None:
            head.weight.uniform_(-scale, scale)
        head.bias.fill_(bias)
    return head
