"""Propagation of channel labels through a graph: one rule per operator; labels are frozen where there is none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.channels import compute_rules, layout_rules, position_rules, product_rules, recurrent_rules
from onnxpress.model.channels.labels import Flow, dequantizes_constants, freeze_inputs, varying_axes
from onnxpress.model.normal_forms.tied_weights import tied_pairs
from onnxpress.model.trace import Trace

_ROOMS = (compute_rules, layout_rules, position_rules, product_rules, recurrent_rules)
_RULES = {op: rule for room in _ROOMS for op, rule in room.RULES.items()}
# Of onnxruntime's own domain, in files that its optimizer saved: elementwise, as in ELEMENTWISE.
_FUSED = frozenset({"QuickGelu", "FastGelu", "BiasGelu", "Gelu"})
_PASS_SIZES = {"Unsqueeze", "Squeeze", "Reshape", "Identity", "Cast", "Slice", "Gather", "Concat"}
_ASK_SIZES = {
    "Cast",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Mod",
}  # operators that make a number of a size


def propagate(model: ir.Model, trace: Trace) -> Flow:
    """Propagate labels through the main graph, in topological order.  The model must be canonical, with named nodes."""
    flow = Flow(trace)
    for value in model.graph.inputs:
        flow.of[value.name or ""] = flow.blank(value)
    for node in model.graph:
        if dequantizes_constants(node):  # a weight stored as integers
            continue
        known = read.standard(node) or node.op_type in _FUSED
        rule = _RULES.get(node.op_type) if known and not read.has_subgraph(node) else None
        if any(trace.shape(v.name) is None for v in node.outputs if v.name):
            rule = None
        if rule is None:
            reason = f"{node.op_type} ({node.name}) has no rule for channels"
            freeze_inputs(flow, node, reason)
        else:
            rule(flow, node)
        _follow_sizes(flow, node)
        for name in sorted(read.captured(node)) if read.has_subgraph(node) else ():
            flow.freeze(flow.of.get(name), f"read inside the sub-graph of {node.op_type} ({node.name})")
    for value in model.graph.outputs:
        flow.freeze(flow.read(value), f"graph output {value.name}")
    _share_weights(model, flow)
    return flow


def _follow_sizes(flow: Flow, node: ir.Node) -> None:
    """Trace sizes to where they become numbers in a computation.

    A scale of 1/sqrt(d) must not change, so the channels that d counts are removed together or stay.  Sizes that only
    shape other values are computed again after a removal.
    """
    if not node.outputs:
        return
    output = node.outputs[0].name or ""
    if node.op_type == "Shape" and node.inputs[0] is not None and read.standard(node):
        source = node.inputs[0].name or ""
        rank = flow.rank(node.inputs[0])
        start, end = read.int_attribute(node, "start", 0), read.int_attribute(node, "end", rank)
        flow.sizes[output] = [frozenset({(source, a)}) for a in range(rank)][start:end]
        return
    if node.op_type == "Size" and node.inputs[0] is not None and read.standard(node):
        name = node.inputs[0].name or ""
        flow.sizes[output] = [frozenset((name, a) for a in range(flow.rank(node.inputs[0])))]
        return
    known = [flow.sizes.get(v.name or "", []) if v is not None else [] for v in node.inputs]
    if not any(known):
        return
    every = frozenset().union(*(one for some in known for one in some))
    if node.op_type in _ASK_SIZES and not _stays_whole(node):
        for name, axis in sorted(every):
            labels = flow.of.get(name)
            if labels is not None and axis in varying_axes(labels):
                flow.mix(labels, (axis,), f"{node.op_type} ({node.name}) makes a number of the size of {name}")
        return
    shape = flow.shape(node.outputs[0])
    count = int(np.prod(shape)) if shape is not None else 0
    if node.op_type in _PASS_SIZES and count <= 64:
        flow.sizes[output] = _moved_sizes(node, known, count, every)
    elif node.outputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32, None) and count <= 64:
        flow.sizes[output] = [every] * count


def _stays_whole(node: ir.Node) -> bool:
    """Whether a Cast gives integers."""
    target = read.int_attribute(node, "to", 0) if node.op_type == "Cast" else 0
    return target in (ir.DataType.INT64, ir.DataType.INT32)


def _moved_sizes(
    node: ir.Node, known: list[list[frozenset[tuple[str, int]]]], count: int, every: frozenset[tuple[str, int]]
) -> list[frozenset[tuple[str, int]]]:
    """The sizes that each element of the output depends on; all of them where this is unknown."""
    first = known[0]
    if node.op_type == "Gather" and (index := read.constant(node.inputs[1])) is not None:
        return [first[int(i)] for i in index.ravel()]
    if node.op_type == "Slice":
        bounds = layout_rules.slice_bounds((len(first),), node)
        return first[bounds[0]] if bounds and 0 in bounds else [every] * count
    if node.op_type == "Concat":
        parts = [k or [frozenset()] * _length(v) for k, v in zip(known, node.inputs, strict=True)]
        flat = [one for part in parts for one in part]
        return flat if len(flat) == count else [every] * count
    return first if len(first) == count else [every] * count


def _length(value: ir.Value | None) -> int:
    constant = read.constant(value)
    return 1 if constant is None else constant.size


def _share_weights(model: ir.Model, flow: Flow) -> None:
    """Tie the labels of weights with several readers (siamese branches, tied embeddings), which are sliced once, and
    of matrices of which one is the other turned.

    Where one reader's channels are unknown, or two readers disagree in the axes, each gets a copy of its own.
    """
    nodes = {n.name: n for n in model.graph}
    slots: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    for slot in flow.slots:
        axes = slots.setdefault((slot.node, slot.operand), {})
        other = axes.setdefault(slot.axis, slot.labels)
        if other.shape == slot.labels.shape:  # two layers read one DequantizeLinear
            flow.tie(other, slot.labels)
        else:
            flow.freeze(other, f"two layers read the weight of {slot.node} in different ways")
            flow.freeze(slot.labels, f"two layers read the weight of {slot.node} in different ways")
    for value in model.graph.initializers.values():
        uses = [(u.node.name or "", u.idx) for u in value.uses()]
        if (
            len(uses) < 2
            or value.const_value is None
            or value.const_value.size < 2
            or len(value.const_value.shape.numpy()) < 2
        ):
            continue
        found = [slots.get(u) for u in uses]
        first = found[0]
        if (
            first is None
            or any(f is None or set(f) != set(first) for f in found)
            or any(n not in nodes for n, _ in uses)
        ):
            continue
        if all(f is not None and f[a].shape == first[a].shape for f in found for a in first):
            for more in found[1:]:
                for axis in first:
                    assert more is not None
                    flow.tie(first[axis], more[axis])
    for value, turned in tied_pairs(model):
        _tie_turned(
            flow, value, [[slots.get((u.node.name or "", u.idx), {}) for u in v.uses()] for v in (value, turned)]
        )


def _tie_turned(flow: Flow, value: ir.Value, readers: list[list[dict[int, np.ndarray]]]) -> None:
    """Tie each axis of a matrix to the other axis of the matrix that is it turned.

    readers: for both, the labels by axis of each reader.
    """
    for axis in (0, 1):
        own = [labels[axis] for labels in readers[0] if axis in labels]
        other = [labels[1 - axis] for labels in readers[1] if 1 - axis in labels]
        together = own and other and len({labels.shape for labels in (*own, *other)}) == 1
        for labels in (*own, *other):
            if together:
                flow.tie(own[0], labels)
            else:
                flow.freeze(labels, f"{value.name} is also read turned, where its channels stay")
