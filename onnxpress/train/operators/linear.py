"""Matrix products: MatMul, Gemm, Einsum, Det."""

from __future__ import annotations

import torch

from onnxpress.train.graph.registry import Run, Site, operator, plain
from onnxpress.train.graph.tensors import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """MatMul; integers are multiplied in int64."""
    if a.dtype.is_floating_point or a.dtype in (torch.int32, torch.int64):
        return torch.matmul(a, b)
    return torch.matmul(a.long(), b.long()).to(a.dtype)


plain("MatMul", product)
plain("Det", torch.det)


@operator("Gemm")
def gemm(site: Site) -> Run:
    """alpha A' B' + beta C.  With alpha and beta 1 it is one addmm (or linear)."""
    alpha, beta = site.number("alpha", 1.0), site.number("beta", 1.0)
    left, right = bool(site.integer("transA")), bool(site.integer("transB"))
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
def _einsum(site: Site) -> Run:
    equation = site.text("equation").replace(" ", "")
    return lambda *inputs: torch.einsum(equation, *inputs)
