"""Normalizations.  BatchNormalization uses the stored statistics, in training as in inference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import NodeContext, Run, operator
from onnxpress.train.graph.tensors import Tensor


@operator("BatchNormalization", grad_inputs=(0, 1, 2))
def _batch_norm(context: NodeContext) -> Run:
    epsilon, training, momentum = (
        context.number("epsilon", 1e-5),
        context.integer("training_mode"),
        context.number("momentum", 0.9),
    )

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Any:
        if not training:
            result = functional.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)
            return result if len(context.node.outputs) == 1 else (result, mean, var, mean, var)
        axes = [0, *range(2, x.ndim)]
        seen, spread = x.mean(axes), x.var(axes, correction=0)
        result = functional.batch_norm(x, seen, spread, scale, bias, False, 0.0, epsilon)
        return result, mean * momentum + seen * (1 - momentum), var * momentum + spread * (1 - momentum)

    return run


@operator("InstanceNormalization")
def _instance_norm(context: NodeContext) -> Run:
    epsilon = context.number("epsilon", 1e-5)
    return lambda x, scale, bias: functional.instance_norm(x, None, None, scale, bias, True, 0.0, epsilon)


def _statistics(x: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / deviation over the axes, the mean, 1 / deviation."""
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
    return centred * inverse, mean, inverse


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor, axis: int, epsilon: float) -> Tensor:
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    result = functional.layer_norm(x, shape, None, None, epsilon) * scale
    return result if bias is None else result + bias


@operator("LayerNormalization")
@operator("LayerNormalization", domain="com.microsoft")
def _layer_norm(context: NodeContext) -> Run:
    axis, epsilon = context.integer("axis", -1), context.number("epsilon", 1e-5)
    if len(context.node.outputs) == 1:
        return lambda x, scale, bias=None: layer_norm(x, scale, bias, axis, epsilon)

    def run(x: Tensor, scale: Tensor, bias: Tensor = None) -> Any:
        first = axis % x.ndim
        normed, mean, inverse = _statistics(x, list(range(first, x.ndim)), epsilon)
        result = normed * scale
        return result if bias is None else result + bias, mean, inverse

    return run


def rms_norm(x: Tensor, scale: Tensor, axis: int, epsilon: float) -> Tensor:
    axes = list(range(axis % x.ndim, x.ndim))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    normed = wide * torch.rsqrt((wide * wide).mean(axes, keepdim=True) + epsilon)
    return normed.to(x.dtype) * scale


@operator("RMSNormalization")
@operator("SimplifiedLayerNormalization")
def _rms_norm(context: NodeContext) -> Run:
    axis, epsilon = context.integer("axis", -1), context.number("epsilon", 1e-5)
    return lambda x, scale: rms_norm(x, scale, axis, epsilon)


@operator("GroupNormalization", since=18)
def _group_norm_by_group(context: NodeContext) -> Run:
    """Version 18: one scale and bias per group."""
    groups, epsilon = context.integer("num_groups", 1), context.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        each = x.shape[1] // groups
        return functional.group_norm(x, groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)

    return run


@operator("GroupNormalization", since=21)
def _group_norm(context: NodeContext) -> Run:
    groups, epsilon = context.integer("num_groups", 1), context.number("epsilon", 1e-5)
    return lambda x, scale, bias: functional.group_norm(x, groups, scale, bias, epsilon)


@operator("LRN")
def _lrn(context: NodeContext) -> Run:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ^ beta."""
    size, alpha = context.integer("size", 1), context.number("alpha", 1e-4)
    beta, bias = context.number("beta", 0.75), context.number("bias", 1.0)

    def run(x: Tensor) -> Tensor:
        flat = (x * x).flatten(2).unsqueeze(1)  # N, 1, C, positions
        wide = functional.pad(flat, [0, 0, (size - 1) // 2, math.ceil((size - 1) / 2)])
        around = functional.avg_pool2d(wide, (size, 1), 1).squeeze(1).reshape(x.shape)
        return x / (bias + alpha * around) ** beta

    return run


@operator("MeanVarianceNormalization")
def _mean_variance(context: NodeContext) -> Run:
    """Normalization over the axes, with the standard's epsilon added to the deviation."""
    axes = context.integers("axes", [0, 2, 3]) or []

    def run(x: Tensor) -> Tensor:
        mean = x.mean(axes, keepdim=True)
        deviation = torch.sqrt((x * x).mean(axes, keepdim=True) - mean * mean)
        return (x - mean) / (deviation + 1e-9)

    return run


@operator("LpNormalization")
def _lp_norm(context: NodeContext) -> Run:
    """x over its p-norm; 0 where the norm is 0."""
    axis, order = context.integer("axis", -1), context.integer("p", 2)

    def run(x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, order, axis, keepdim=True)
        return torch.where(size == 0, torch.zeros_like(x), x / torch.where(size == 0, torch.ones_like(size), size))

    return run
