"""Random numbers, from torch's generator, not onnxruntime's; a stated seed makes a node reproducible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from onnxpress.train.graph.registry import NodeContext, Run, operator
from onnxpress.train.graph.tensors import Tensor, torch_type


def _generator(context: NodeContext) -> Any:
    """A generator of the node's own where it states a seed, else None (torch's)."""
    return torch.Generator().manual_seed(int(context.number("seed"))) if context.has_attribute("seed") else None


def _draw(context: NodeContext) -> Callable[[Any, Any], Tensor]:
    """Draws numbers of a shape and type, uniform or normal by the node's operator."""
    generator = _generator(context)
    if "Uniform" in context.node.op_type:
        low, high = context.number("low", 0.0), context.number("high", 1.0)
        return lambda shape, kind: (torch.rand(shape, generator=generator) * (high - low) + low).to(kind)
    mean, scale = context.number("mean", 0.0), context.number("scale", 1.0)
    return lambda shape, kind: (torch.randn(shape, generator=generator) * scale + mean).to(kind)


@operator("RandomNormal", "RandomUniform", grad_inputs=(), deterministic=False)
def _random(context: NodeContext) -> Run:
    draw, shape, kind = _draw(context), context.integers("shape") or [], torch_type(context.integer("dtype", 1))
    return lambda: draw(shape, kind)


@operator("RandomNormalLike", "RandomUniformLike", grad_inputs=(), deterministic=False)
def _random_like(context: NodeContext) -> Run:
    draw, kind = _draw(context), context.integer("dtype")
    return lambda x: draw(x.shape, torch_type(kind) if kind else x.dtype)


@operator("Bernoulli", grad_inputs=(), deterministic=False)
def _bernoulli(context: NodeContext) -> Run:
    generator, kind = _generator(context), context.integer("dtype")

    def run(x: Tensor) -> Tensor:
        drawn = torch.rand(x.shape, generator=generator) < x
        return drawn.to(torch_type(kind) if kind else x.dtype)

    return run


@operator("Multinomial", grad_inputs=(), deterministic=False)
def _multinomial(context: NodeContext) -> Run:
    generator, count = _generator(context), context.integer("sample_size", 1)
    kind = torch_type(context.integer("dtype", 6))
    return lambda x: torch.multinomial(torch.softmax(x, -1), count, True, generator=generator).to(kind)
