"""Activation functions, and softmax in its two definitions (before and from version 13)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import NodeContext, Run, operator, simple_operator
from onnxpress.train.graph.tensors import Tensor

simple_operator("Relu", functional.relu)
simple_operator("Softplus", lambda x: functional.softplus(x, threshold=30.0))
simple_operator("Softsign", functional.softsign)
simple_operator("Mish", functional.mish)
simple_operator("HardSwish", functional.hardswish)


@operator("LeakyRelu")
def _leaky_relu(context: NodeContext) -> Run:
    slope = context.number("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, slope)


@operator("Elu")
def _elu(context: NodeContext) -> Run:
    alpha = context.number("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


@operator("Celu")
def _celu(context: NodeContext) -> Run:
    alpha = context.number("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


@operator("Selu")
def _selu(context: NodeContext) -> Run:
    alpha = context.number("alpha", 1.67326319217681884765625)
    gamma = context.number("gamma", 1.05070102214813232421875)
    return lambda x: gamma * functional.elu(x, alpha)


@operator("HardSigmoid")
def _hard_sigmoid(context: NodeContext) -> Run:
    alpha, beta = context.number("alpha", 0.2), context.number("beta", 0.5)
    return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)


@operator("ThresholdedRelu")
def _thresholded_relu(context: NodeContext) -> Run:
    alpha = context.number("alpha", 1.0)
    return lambda x: functional.threshold(x, alpha, 0.0)


@operator("Shrink")
def _shrink(context: NodeContext) -> Run:
    """x + bias below -lambd, x - bias above lambd, else 0; also for integers."""
    edge, bias = context.number("lambd", 0.5), context.number("bias", 0.0)

    def run(x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, zero)).to(x.dtype)

    return run


@operator("Gelu")
@operator("Gelu", domain="com.microsoft")
def _gelu(context: NodeContext) -> Run:
    kind = "tanh" if context.text("approximate", "none") == "tanh" else "none"
    return lambda x: functional.gelu(x, approximate=kind)


@operator("Swish")
def _swish(context: NodeContext) -> Run:
    alpha = context.number("alpha", 1.0)
    return functional.silu if alpha == 1.0 else lambda x: x * torch.sigmoid(alpha * x)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    """1 at the first largest element of the axis, else 0."""
    return torch.zeros_like(x).scatter_(axis, x.argmax(axis, keepdim=True), 1)


def _along(function: Callable[[Tensor, int], Tensor]) -> Callable[[NodeContext], Run]:
    def build(context: NodeContext) -> Run:
        axis = context.integer("axis", -1)
        return lambda x: function(x, axis)

    return build


def _flattened(function: Callable[[Tensor, int], Tensor]) -> Callable[[NodeContext], Run]:
    """Before version 13: over all axes from `axis` on, flattened."""

    def build(context: NodeContext) -> Run:
        axis = context.integer("axis", 1)

        def run(x: Tensor) -> Tensor:
            place = axis % x.ndim
            if place == x.ndim - 1:
                return function(x, -1)
            return function(x.reshape(*x.shape[:place], -1), -1).reshape(x.shape)

        return run

    return build


_SOFT: dict[str, tuple[Any, tuple[int, ...] | None]] = {
    "Softmax": (torch.softmax, None),
    "LogSoftmax": (torch.log_softmax, None),
    "Hardmax": (_hardmax, ()),
}
for _name, (_function, _data) in _SOFT.items():
    operator(_name, grad_inputs=_data)(_flattened(_function))
    operator(_name, since=13, grad_inputs=_data)(_along(_function))
