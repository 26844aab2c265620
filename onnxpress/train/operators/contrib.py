"""Operators of onnxruntime's own domain that its optimizer and common exporters leave in files."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import Run, Site, operator, plain
from onnxpress.train.graph.tensors import Tensor
from onnxpress.train.operators.conv import convolution
from onnxpress.train.operators.linear import gemm, product
from onnxpress.train.operators.normalize import layer_norm, rms_norm

DOMAIN = "com.microsoft"
plain("BiasGelu", lambda x, bias: functional.gelu(x + bias), domain=DOMAIN)
plain(
    "FastGelu",
    lambda x, bias=None: functional.gelu(x if bias is None else x + bias, approximate="tanh"),
    domain=DOMAIN,
)


@operator("QuickGelu", domain=DOMAIN)
def _quick_gelu(site: Site) -> Run:
    alpha = site.number("alpha", 1.702)
    return lambda x: x * torch.sigmoid(alpha * x)


@operator("FusedMatMul", domain=DOMAIN)
def _fused_matmul(site: Site) -> Run:
    alpha, left, right = site.number("alpha", 1.0), bool(site.integer("transA")), bool(site.integer("transB"))
    if site.integer("transBatchA") or site.integer("transBatchB"):
        raise site.problem("batch axes in other places are not known")

    def run(a: Tensor, b: Tensor) -> Tensor:
        result = product(a.transpose(-1, -2) if left else a, b.transpose(-1, -2) if right else b)
        return result if alpha == 1.0 else result * alpha

    return run


def _activated(site: Site) -> Run:
    """The activation that a fused operator names, with its parameters."""
    name, numbers = site.text("activation"), site.numbers("activation_params") or []
    known: dict[str, Any] = {
        "": lambda x: x,
        "Relu": functional.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "LeakyRelu": lambda x: functional.leaky_relu(
            x, numbers[0] if numbers else site.number("activation_alpha", 0.01)
        ),
        "Clip": lambda x: x.clamp(numbers[0], numbers[1]),
        "HardSigmoid": lambda x: torch.clamp(numbers[0] * x + numbers[1], 0.0, 1.0),
    }
    if name not in known:
        raise site.problem(f"the activation {name} is not known")
    return known[name]  # type: ignore[no-any-return]


@operator("FusedConv", domain=DOMAIN)
def _fused_conv(site: Site) -> Run:
    """Conv, then a sum with Z, then an activation."""
    conv, then = convolution(site), _activated(site)

    def run(x: Tensor, w: Tensor, b: Tensor = None, z: Tensor = None) -> Tensor:
        result = conv(x, w, b)
        return then(result if z is None else result + z)

    return run


@operator("FusedGemm", domain=DOMAIN)
def _fused_gemm(site: Site) -> Run:
    multiply, then = gemm(site), _activated(site)
    return lambda *inputs: then(multiply(*inputs))


@operator("SkipLayerNormalization", domain=DOMAIN)
def _skip_layer_norm(site: Site) -> Run:
    """Outputs: the normalized sum, (mean, deviation: only in training), the sum itself."""
    epsilon, many = site.number("epsilon", 1e-5), len(site.node.outputs) > 1

    def run(x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor = None, bias: Tensor = None) -> Any:
        total = x + skip if bias is None else x + skip + bias
        result = layer_norm(total, gamma, beta, -1, epsilon)
        return (result, None, None, total) if many else result

    return run


@operator("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def _skip_rms_norm(site: Site) -> Run:
    epsilon, many = site.number("epsilon", 1e-5), len(site.node.outputs) > 1

    def run(x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor = None) -> Any:
        total = x + skip if bias is None else x + skip + bias
        result = rms_norm(total, gamma, -1, epsilon)
        return (result, None, None, total) if many else result

    return run
