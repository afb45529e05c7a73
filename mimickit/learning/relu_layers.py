"""Linear layers with a ReLU after each: forward and backward written out, so that they can compute in bfloat16.

With bfloat16 (8 bits of mantissa, the range of float32) matrix products are two to three times as fast as with
TensorFloat-32 and everything between layers takes half the memory traffic (Kalamkar et al. 2019, "A Study of BFLOAT16
for Deep Learning Training"). Parameters, their gradients, inputs and outputs stay float32; so does what products sum up
inside.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    """[B, n] as [B, m] of another type; for bfloat16 m is the next multiple of 8, filled up with zeros."""
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
    """[n] of [B, n]; a product where that is faster than a reduction and adds up in float32 all the same."""
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
