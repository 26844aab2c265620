"""A model before and after, layer by layer: how wide layers are, and where the time goes.

Layers are nodes with weights that keep their names.  Times are pictures of where they went, from one profile each (the profiler's
own work taken off), not a comparison: that is what `compare_latency` is for.
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

_UNKNOWN = PeakRate(0.0, 0)  # rates are not asked for: no time for the machine's peak


@dataclass(frozen=True)
class BeforeAfter:
    """What something was before and is after: seconds of a run, or channels; 0: it is not there."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class ProfileComparison:
    """operators: seconds of a run in all kernels that onnxruntime calls so; layers: seconds of a run in the kernel that computes
    a layer, with what is fused into it; widths: channels that layers give; layers and widths in the order of the graph."""

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
    """Both models on one input, profiled for about so long together.  Raises InputProblem where one does not run."""
    old, new = (_named(m) for m in (before, after))
    first, second = (profile(m, feeds, settings, seconds / 2, peak=_UNKNOWN) for m in (old, new))
    return ProfileComparison(_operators(first, second), _layers(old, first, second), channel_widths(old, new))


def channel_widths(before: ir.Model, after: ir.Model) -> tuple[BeforeAfter, ...]:
    """Channels that each weighted node gives, where it is in both models or in the first alone."""
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
    """Seconds of a run by layer: a kernel that stands for several nodes counts for the first layer among them."""
    spent: dict[str, float] = {}
    for kernel in found.kernels:
        layer = next((n for n in kernel.nodes if n in layers), None)
        if layer is not None:
            spent[layer] = spent.get(layer, 0.0) + kernel.seconds
    return spent


def _width(node: ir.Node) -> int:
    """0 where the weight is computed."""
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
