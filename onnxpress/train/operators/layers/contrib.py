"""Operators of onnxruntime's domain that its optimizer and common exporters write."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import NodeContext, Run, operator, simple_operator
from onnxpress.train.graph.tensors import Tensor
from onnxpress.train.operators.layers.conv import convolution
from onnxpress.train.operators.layers.linear import gemm, product
from onnxpress.train.operators.layers.normalize import layer_norm, rms_norm

DOMAIN = "com.microsoft"
simple_operator("BiasGelu", lambda x, bias: functional.gelu(x + bias), domain=DOMAIN)
simple_operator(
    "FastGelu",
    lambda x, bias=None: functional.gelu(x if bias is None else x + bias, approximate="tanh"),
    domain=DOMAIN,
)


@operator("QuickGelu", domain=DOMAIN)
def _quick_gelu(context: NodeContext) -> Run:
    alpha = context.number("alpha", 1.702)
    return lambda x: x * torch.sigmoid(alpha * x)


@operator("FusedMatMul", domain=DOMAIN)
def _fused_matmul(context: NodeContext) -> Run:
    alpha, left, right = context.number("alpha", 1.0), bool(context.integer("transA")), bool(context.integer("transB"))
    if context.integer("transBatchA") or context.integer("transBatchB"):
        raise context.problem("transposed batch axes are not supported")

    def run(a: Tensor, b: Tensor) -> Tensor:
        result = product(a.transpose(-1, -2) if left else a, b.transpose(-1, -2) if right else b)
        return result if alpha == 1.0 else result * alpha

    return run


def _fused_activation(context: NodeContext) -> Run:
    """The activation that a fused operator names, with its parameters."""
    name, numbers = context.text("activation"), context.numbers("activation_params") or []
    known: dict[str, Any] = {
        "": lambda x: x,
        "Relu": functional.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "LeakyRelu": lambda x: functional.leaky_relu(
            x, numbers[0] if numbers else context.number("activation_alpha", 0.01)
        ),
        "Clip": lambda x: x.clamp(numbers[0], numbers[1]),
        "HardSigmoid": lambda x: torch.clamp(numbers[0] * x + numbers[1], 0.0, 1.0),
    }
    if name not in known:
        raise context.problem(f"the activation {name} is not supported")
    return known[name]  # type: ignore[no-any-return]


@operator("FusedConv", domain=DOMAIN)
def _fused_conv(context: NodeContext) -> Run:
    """Conv, addition of Z, and an activation."""
    conv, then = convolution(context), _fused_activation(context)

    def run(x: Tensor, w: Tensor, b: Tensor = None, z: Tensor = None) -> Tensor:
        result = conv(x, w, b)
        return then(result if z is None else result + z)

    return run


@operator("FusedGemm", domain=DOMAIN)
def _fused_gemm(context: NodeContext) -> Run:
    multiply, then = gemm(context), _fused_activation(context)
    return lambda *inputs: then(multiply(*inputs))


@operator("SkipLayerNormalization", domain=DOMAIN)
def _skip_layer_norm(context: NodeContext) -> Run:
    """Outputs: the normalized sum, (mean, deviation: None), the sum."""
    epsilon, many = context.number("epsilon", 1e-5), len(context.node.outputs) > 1

    def run(x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor = None, bias: Tensor = None) -> Any:
        total = x + skip if bias is None else x + skip + bias
        result = layer_norm(total, gamma, beta, -1, epsilon)
        return (result, None, None, total) if many else result

    return run


@operator("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def _skip_rms_norm(context: NodeContext) -> Run:
    epsilon, many = context.number("epsilon", 1e-5), len(context.node.outputs) > 1

    def run(x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor = None) -> Any:
        total = x + skip if bias is None else x + skip + bias
        result = rms_norm(total, gamma, -1, epsilon)
        return (result, None, None, total) if many else result

    return run
