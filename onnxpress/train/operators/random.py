"""Random numbers.  They follow torch's generator, not onnxruntime's; a stated seed makes a node repeat itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from onnxpress.train.graph.registry import Run, Site, operator
from onnxpress.train.graph.tensors import Tensor, torch_type


def _generator(site: Site) -> Any:
    """A generator of the node's own where it states a seed, else torch's."""
    return torch.Generator().manual_seed(int(site.number("seed"))) if site.has("seed") else None


def _draw(site: Site) -> Callable[[Any, Any], Tensor]:
    """Numbers of a shape and type, uniform or normal by the node's operator."""
    generator = _generator(site)
    if "Uniform" in site.node.op_type:
        low, high = site.number("low", 0.0), site.number("high", 1.0)
        return lambda shape, kind: (torch.rand(shape, generator=generator) * (high - low) + low).to(kind)
    mean, scale = site.number("mean", 0.0), site.number("scale", 1.0)
    return lambda shape, kind: (torch.randn(shape, generator=generator) * scale + mean).to(kind)


@operator("RandomNormal", "RandomUniform", data=(), fixed=False)
def _random(site: Site) -> Run:
    draw, shape, kind = _draw(site), site.integers("shape") or [], torch_type(site.integer("dtype", 1))
    return lambda: draw(shape, kind)


@operator("RandomNormalLike", "RandomUniformLike", data=(), fixed=False)
def _random_like(site: Site) -> Run:
    draw, kind = _draw(site), site.integer("dtype")
    return lambda x: draw(x.shape, torch_type(kind) if kind else x.dtype)


@operator("Bernoulli", data=(), fixed=False)
def _bernoulli(site: Site) -> Run:
    generator, kind = _generator(site), site.integer("dtype")

    def run(x: Tensor) -> Tensor:
        drawn = torch.rand(x.shape, generator=generator) < x
        return drawn.to(torch_type(kind) if kind else x.dtype)

    return run


@operator("Multinomial", data=(), fixed=False)
def _multinomial(site: Site) -> Run:
    generator, count = _generator(site), site.integer("sample_size", 1)
    kind = torch_type(site.integer("dtype", 6))
    return lambda x: torch.multinomial(torch.softmax(x, -1), count, True, generator=generator).to(kind)
