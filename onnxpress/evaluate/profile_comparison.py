"""Profiles of a model before and after optimization, layer by layer: channels and time.

Layers are nodes with weights that keep their names.  The times come from one profile each (with the profiler's overhead
subtracted) and show where time is spent; use `compare_latency` for a comparison of the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.runtime.builtin_models import PeakRate
from onnxpress.runtime.profile import Profile, profile
from onnxpress.runtime.session import SessionSettings

_UNKNOWN = PeakRate(0.0, 0)  # rates are not reported, so the peak is not measured


@dataclass(frozen=True)
class BeforeAfter:
    """A quantity before and after: seconds per run, or channels; 0 where the layer or operator is absent."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class ProfileComparison:
    """Profiles of two models.

    operators: seconds per run in all kernels of an operator, as onnxruntime names it
    layers:    seconds per run in the kernel of a layer, fused operators included, in the order of the graph
    widths:    output channels of layers, in the order of the graph
    """

    operators: tuple[BeforeAfter, ...] = ()
    layers: tuple[BeforeAfter, ...] = ()
    widths: tuple[BeforeAfter, ...] = ()


def profile_compare(
    before: ir.Model,
    after: ir.Model,
    feeds: Mapping[str, np.ndarray],
    seconds: float,
    settings: SessionSettings | None = None,
) -> ProfileComparison:
    """Profile both models on one input.

    feeds:   by input name
    seconds: profiling time of both models together

    Raises InputProblem where a model does not run.
    """
    old, new = (_named(m) for m in (before, after))
    first, second = (profile(m, feeds, settings, seconds / 2, peak=_UNKNOWN) for m in (old, new))
    return ProfileComparison(_operators(first, second), _layers(old, first, second), channel_widths(old, new))


def channel_widths(before: ir.Model, after: ir.Model) -> tuple[BeforeAfter, ...]:
    """Output channels of each weighted node of the first model; 0 after where the second model does not have it."""
    old, new = (
        {read.node_label(n): _width(n) for n in _named(m).graph if n.op_type in read.WEIGHTED} for m in (before, after)
    )
    return tuple(BeforeAfter(name, width, new.get(name, 0)) for name, width in old.items() if width)


def _named(model: ir.Model) -> ir.Model:
    named = model.clone()
    edit.name_nodes(named)
    return named


def _operators(first: Profile, second: Profile) -> tuple[BeforeAfter, ...]:
    old, new = ({o.op: o.seconds for o in p.operators} for p in (first, second))
    pairs = [BeforeAfter(op, old.get(op, 0.0), new.get(op, 0.0)) for op in {**old, **new}]
    return tuple(sorted(pairs, key=lambda p: -max(p.before, p.after)))


def _layers(model: ir.Model, first: Profile, second: Profile) -> tuple[BeforeAfter, ...]:
    names = [read.node_label(n) for n in model.graph if n.op_type in read.WEIGHTED]
    old, new = (_seconds(p, set(names)) for p in (first, second))
    return tuple(
        BeforeAfter(name, old.get(name, 0.0), new.get(name, 0.0)) for name in names if name in old or name in new
    )


def _seconds(found: Profile, layers: set[str]) -> dict[str, float]:
    """Seconds per run by layer.  A kernel that implements several nodes counts for the first layer among them."""
    spent: dict[str, float] = {}
    for kernel in found.kernels:
        layer = next((n for n in kernel.nodes if n in layers), None)
        if layer is not None:
            spent[layer] = spent.get(layer, 0.0) + kernel.seconds
    return spent


def _width(node: ir.Node) -> int:
    """Number of output channels; 0 where the weight is computed."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    maker = weight.producer() if weight is not None else None
    if maker is not None and maker.op_type == "DequantizeLinear":
        weight = maker.inputs[0]
    held = read.constant_tensor(weight)
    if held is None or not len(held.shape):
        return 0
    shape = held.shape.numpy()
    if node.op_type == "ConvTranspose":
        return int(shape[1]) * read.int_attribute(node, "group", 1)
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not read.int_attribute(node, "transB", 0)):
        return int(shape[-1])
    return int(shape[0])
