"""Linear layers with a ReLU after each: forward and backward written out, so that they can compute in bfloat16.

With bfloat16 (8 bits of mantissa, the range of float32) matrix products are two to three times as fast as with
TensorFloat-32 and everything between layers takes half the memory traffic (Kalamkar et al. 2019, "A Study of BFLOAT16
for Deep Learning Training"). Parameters, their gradients, inputs and outputs stay float32; so does what products sum up
inside.

The same layers with a penalty on the gradient of the logit, for discriminators: :func:`penalized_entropy`; and the
gradient by their input as something to differentiate once more, for smooth policies: :func:`input_gradient`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_ALIGN = 8  # bfloat16 numbers in 16 bytes: where rows begin elsewhere, products are three times slower

relu_backward = torch.ops.aten.threshold_backward  # (gradient, output, 0): the gradient where the output is positive


def hidden_layers(x: Tensor, parameters: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Output [..., h] of layers with a ReLU after each, differentiable once; of the parameters' type.

    Args:
        x: [..., n], or already :func:`aligned`.
        parameters: weight and bias of every layer.
        dtype: what is computed in.
    """
    return _HiddenLayers.apply(x.flatten(0, -2), dtype, *parameters).unflatten(0, x.shape[:-1])


def aligned(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, n] as [B, m] of another type; for bfloat16 m is the next multiple of 8, padded with zeros."""
    gap = aligned_size(x.shape[-1], dtype) - x.shape[-1]
    if gap == 0:
        return x.to(dtype)
    result = x.new_empty(x.shape[0], x.shape[1] + gap, dtype=dtype)
    result[:, :-gap].copy_(x)
    result[:, -gap:].zero_()
    return result


def aligned_size(size: int, dtype: torch.dtype) -> int:
    """Columns that :func:`aligned` makes of ``size``."""
    return -(-size // _ALIGN) * _ALIGN if dtype == torch.bfloat16 else size


def relu_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(x W^T + b), [B, out], of x [B, n], W [out, n], b [out], in one kernel where the library has it."""
    return torch._addmm_activation(bias, x, weight.t())


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b; that of bfloat16 matrices in float32."""
    if a.dtype != torch.bfloat16:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else (a @ b).float()


def column_sums(x: Tensor) -> Tensor:
    """[n] of [B, n]. In bfloat16 as a product, which is faster than a reduction and still adds up in float32."""
    if x.dtype != torch.bfloat16:
        return x.sum(0)
    return product(x.new_ones(1, len(x)), x).squeeze(0)


class _HiddenLayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        weights = [aligned(weight, dtype) for weight in parameters[::2]]
        outputs = [aligned(x, dtype)]
        for weight, bias in zip(weights, parameters[1::2], strict=True):
            outputs.append(relu_layer(outputs[-1], weight, bias.to(dtype)))
        ctx.save_for_backward(*outputs, *weights)
        ctx.columns, ctx.size = x.shape[1], parameters[0].shape[1]
        return outputs[-1].to(parameters[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, change: Tensor):
        count = len(ctx.saved_tensors) // 2
        outputs, weights = ctx.saved_tensors[:count + 1], ctx.saved_tensors[count + 1:]
        gradients: list[Tensor] = []
        for i in reversed(range(count)):
            change = relu_backward(change.to(outputs[i].dtype), outputs[i + 1], 0.0)
            by_weight = product(change.t(), outputs[i])
            if i == 0:
                by_weight = by_weight[:, :ctx.size]
            gradients = [by_weight, column_sums(change), *gradients]
            if i > 0:
                change = change @ weights[i]
        by_x = product(change, weights[0])[:, :ctx.columns] if ctx.needs_input_grad[0] else None
        return by_x, None, *gradients


# --- gradient by the input --------------------------------------------------------------------------------------------


def input_gradient(x: Tensor, change: Tensor, parameters: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Gradient [B, n] by x of the sum of ``change`` times :func:`hidden_layers`, differentiable once with respect to
    ``change`` and the parameters.

    It does not change with x but where a ReLU switches, so the gradient by x is none.

    Args:
        x: [B, n]. change: [B, h]. parameters, dtype: as of :func:`hidden_layers`.
    """
    return _InputGradient.apply(x, change, dtype, *parameters)


class _InputGradient(torch.autograd.Function):
    """A chain of masks and matrices; its derivative runs through the same chain the other way."""

    @staticmethod
    def forward(ctx, x: Tensor, change: Tensor, dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        weights = [aligned(weight, dtype) for weight in parameters[::2]]
        outputs = [aligned(x, dtype)]
        for weight, bias in zip(weights, parameters[1::2], strict=True):
            outputs.append(relu_layer(outputs[-1], weight, bias.to(dtype)))
        gradient, chain = change.to(dtype), []
        for weight, output in zip(reversed(weights), reversed(outputs), strict=False):
            chain.append(relu_backward(gradient, output, 0.0))
            gradient = chain[-1] @ weight
        ctx.save_for_backward(*reversed(chain), *outputs[1:], *weights)
        ctx.columns = x.shape[1]
        return gradient[:, :x.shape[1]].to(change.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, change: Tensor):
        count = len(ctx.saved_tensors) // 3
        chain, outputs, weights = (ctx.saved_tensors[i * count:(i + 1) * count] for i in range(3))
        dtype, flow, gradients = change.dtype, aligned(change, weights[0].dtype), []
        for link, output, weight in zip(chain, outputs, weights, strict=True):
            gradients += [product(link.t(), flow), None]
            flow = relu_backward(flow @ weight.t(), output, 0.0)
        gradients[0] = gradients[0][:, :ctx.columns]
        return None, flow.to(dtype), None, *gradients


# --- gradient penalty -------------------------------------------------------------------------------------------------


def penalized_entropy(
    layers: Sequence[nn.Linear], x: Tensor, label: Tensor, share: Tensor, grad_penalty: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over samples of share (softplus(-label logit) + grad_penalty |d logit / d x|^2).

    The penalty asks for a derivative of a derivative. In a ReLU network both passes are chains of the same matrices and
    masks, so the gradient by the logit is the chain of d logit / d x scaled by one number a sample, and each layer
    needs one matrix product for both: two thirds of the products of automatic differentiation and few of its
    element-wise passes.

    Args:
        layers: of the network, a ReLU after each but the last, whose output is the logit.
        x: [B, n], ``aligned``; layers compute in its type.
        label: [B], 1 or -1, the sign that the logit should have; share: [B].

    Returns:
        The sum (0-d; differentiable with respect to the layers' parameters, not to x), the logits [B] and the squared
        gradients |d logit / d x|^2 [B] (neither differentiable).
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

        slopes = [torch.ones_like(hidden[-1][:, :1])]  # d logit by the output of each layer, last layer first
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
