"""Activation functions, and softmax in its two definitions (before and from version 13)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import Run, Site, operator, plain
from onnxpress.train.graph.tensors import Tensor

plain("Relu", functional.relu)
plain("Softplus", lambda x: functional.softplus(x, threshold=30.0))
plain("Softsign", functional.softsign)
plain("Mish", functional.mish)
plain("HardSwish", functional.hardswish)


@operator("LeakyRelu")
def _leaky_relu(site: Site) -> Run:
    slope = site.number("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, slope)


@operator("Elu")
def _elu(site: Site) -> Run:
    alpha = site.number("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


@operator("Celu")
def _celu(site: Site) -> Run:
    alpha = site.number("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


@operator("Selu")
def _selu(site: Site) -> Run:
    alpha = site.number("alpha", 1.67326319217681884765625)
    gamma = site.number("gamma", 1.05070102214813232421875)
    return lambda x: gamma * functional.elu(x, alpha)


@operator("HardSigmoid")
def _hard_sigmoid(site: Site) -> Run:
    alpha, beta = site.number("alpha", 0.2), site.number("beta", 0.5)
    return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)


@operator("ThresholdedRelu")
def _thresholded_relu(site: Site) -> Run:
    alpha = site.number("alpha", 1.0)
    return lambda x: functional.threshold(x, alpha, 0.0)


@operator("Shrink")
def _shrink(site: Site) -> Run:
    """Works on integers too: x + bias below -lambd, x - bias above lambd, else 0."""
    edge, bias = site.number("lambd", 0.5), site.number("bias", 0.0)

    def run(x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, zero)).to(x.dtype)

    return run


@operator("Gelu")
@operator("Gelu", domain="com.microsoft")
def _gelu(site: Site) -> Run:
    kind = "tanh" if site.text("approximate", "none") == "tanh" else "none"
    return lambda x: functional.gelu(x, approximate=kind)


@operator("Swish")
def _swish(site: Site) -> Run:
    alpha = site.number("alpha", 1.0)
    return functional.silu if alpha == 1.0 else lambda x: x * torch.sigmoid(alpha * x)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    """1 at the first largest element of the axis, else 0."""
    return torch.zeros_like(x).scatter_(axis, x.argmax(axis, keepdim=True), 1)


def _along(function: Callable[[Tensor, int], Tensor]) -> Callable[[Site], Run]:
    def build(site: Site) -> Run:
        axis = site.integer("axis", -1)
        return lambda x: function(x, axis)

    return build


def _flattened(function: Callable[[Tensor, int], Tensor]) -> Callable[[Site], Run]:
    """Before version 13: over all axes from `axis` on, as one."""

    def build(site: Site) -> Run:
        axis = site.integer("axis", 1)

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
    operator(_name, data=_data)(_flattened(_function))
    operator(_name, since=13, data=_data)(_along(_function))
