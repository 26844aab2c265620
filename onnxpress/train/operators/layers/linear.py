"""Matrix products: MatMul, Gemm, Einsum, Det."""

from __future__ import annotations

import torch

from onnxpress.train.graph.registry import NodeContext, Run, operator, simple_operator
from onnxpress.train.graph.tensors import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """MatMul; integers other than int32 and int64 are multiplied in int64."""
    if a.dtype.is_floating_point or a.dtype in (torch.int32, torch.int64):
        return torch.matmul(a, b)
    return torch.matmul(a.long(), b.long()).to(a.dtype)


simple_operator("MatMul", product)
simple_operator("Det", torch.det)


@operator("Gemm")
def gemm(context: NodeContext) -> Run:
    """alpha A' B' + beta C, as one addmm or linear where alpha and beta are 1."""
    alpha, beta = context.number("alpha", 1.0), context.number("beta", 1.0)
    left, right = bool(context.integer("transA")), bool(context.integer("transB"))
    if alpha == beta == 1.0 and right and not left:
        return _linear

    def run(a: Tensor, b: Tensor, c: Tensor = None) -> Tensor:
        a, b = a.t() if left else a, b.t() if right else b
        if c is None:
            result = product(a, b)
            return result if alpha == 1.0 else (result * alpha).to(a.dtype)
        if a.dtype.is_floating_point:
            return torch.addmm(c, a, b, beta=beta, alpha=alpha)
        return (product(a, b) * alpha + c * beta).to(a.dtype)

    return run


def _linear(a: Tensor, b: Tensor, c: Tensor = None) -> Tensor:
    if c is None:
        return torch.matmul(a, b.t())
    return (
        torch.nn.functional.linear(a, b, c) if c.ndim == 1 and c.shape[0] == b.shape[0] else torch.matmul(a, b.t()) + c
    )


@operator("Einsum")
def _einsum(context: NodeContext) -> Run:
    equation = context.text("equation").replace(" ", "")
    return lambda *inputs: torch.einsum(equation, *inputs)
