"""Cross entropy with a penalty on the logit's slope, for ReLU networks, with its gradient written out.

The penalty asks for a derivative of a derivative. In a ReLU network both passes are chains of the same matrices and
masks, so the gradient by the logit is the slope's chain scaled by one number a sample, and each layer needs one matrix
product for both: two thirds of the products of automatic differentiation and few of its element-wise passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mimickit.learning.relu_layers import aligned, product, relu_backward, relu_layer


def penalized_entropy(
    layers: Sequence[nn.Linear], x: Tensor, label: Tensor, share: Tensor, grad_penalty: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over samples of share (softplus(-label logit) + grad_penalty |d logit / d x|^2).

    Args:
        layers: of the network, a ReLU after each but the last, whose output is the logit.
        x: [B, n], ``aligned``; layers compute in its type.
        label: [B], 1 or -1, the sign that the logit should have; share: [B].

    Returns:
        The sum (0-d; differentiable with respect to the layers' parameters, not to x), the logits [B] and the squared
        slopes [B] (neither differentiable).
    """
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    return _PenalizedEntropy.apply(x, label, share, grad_penalty, *parameters)


class _PenalizedEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, label: Tensor, share: Tensor, grad_penalty: float, *parameters: Tensor):
        dtype = x.dtype
        weights, biases = [aligned(weight, dtype) for weight in parameters[::2]], parameters[1::2]
        hidden = [x]  # input of every layer
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden.append(relu_layer(hidden[-1], weight, bias.to(dtype)))
        logit = (product(hidden[-1], weights[-1].t()) + biases[-1]).squeeze(-1)

        slopes = [torch.ones_like(hidden[-1][:, :1])]  # of the logit by what each layer puts out, last layer first
        for weight, h in zip(reversed(weights[1:]), reversed(hidden[1:]), strict=True):
            slopes.append(relu_backward(slopes[-1] @ weight, h, 0.0))
        slope = slopes[-1] @ weights[0]
        square = torch.linalg.vector_norm(slope, dim=-1, dtype=logit.dtype).square()
        wrong = -label * logit
        total = (share * torch.add(functional.softplus(wrong), square, alpha=grad_penalty)).sum()

        by_logit = (-label * share * torch.sigmoid(wrong)).unsqueeze(-1).to(dtype)
        by_square = (2.0 * grad_penalty * share).unsqueeze(-1).to(dtype)
        change = slope.mul_(by_square)  # gradient by the slope, carried forward
        gradients: list[Tensor] = []
        for i, (weight, h, outer) in enumerate(zip(weights, hidden, reversed(slopes), strict=True)):
            if i > 0:
                change = relu_backward(change, h, 0.0)
            by_weight = product(outer.t(), torch.addcmul(change, by_logit, h))
            gradients += [by_weight[:, :parameters[2 * i].shape[1]], product(outer.t(), by_logit).squeeze(-1)]
            if i < len(weights) - 1:
                change = change @ weight.t()
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(logit, square)
        return total, logit, square

    @staticmethod
    def backward(ctx, by_total: Tensor, *unused: Tensor):
        return None, None, None, None, *(by_total * gradient for gradient in ctx.saved_tensors)
