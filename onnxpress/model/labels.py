"""Which channels of which tensors are one and the same: labels sent through the graph.

Every producer of channels (Conv, Gemm, MatMul, zero padding of a channel axis) gives each of its output
channels a fresh label.  Operators carry labels along, tie them (a residual Add: position by position) or
freeze them (an operator this room does not know, a graph output).  Ties are collected as edges; connected
components are the channels that can only be removed together (the coupling of DepGraph, Fang et al. 2023,
found on labels instead of per-operator index maps: see `channels.py` for what is made of them).

A label array has the rank of its tensor and size 1 on every axis along which labels do not vary.  Label 0 means
frozen.  A tensor whose labels vary along two axes at once (heads x dims) is frozen: removing from it need not
leave a box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.trace import Trace

Labels = np.ndarray


@dataclass(frozen=True)
class Slot:
    """One axis of one constant operand that is sliced along with the channels.

    role: "out" (rows that make channels), "in" (columns that read them), "along" (per-channel constants)
    labels: one label a position of that axis
    """

    node: str
    operand: int
    axis: int
    role: str
    labels: np.ndarray


@dataclass(frozen=True)
class Resize:
    """A movement node whose written-down sizes follow the channels. axis: of its output; labels: along it."""

    node: str
    axis: int
    labels: np.ndarray
    part: int = 0


@dataclass
class Flow:
    """The state of one walk, and its result."""

    trace: Trace
    of: dict[str, Labels] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    resizes: list[Resize] = field(default_factory=list)
    edges: list[np.ndarray] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    count: int = 1

    def fresh(self, number: int) -> np.ndarray:
        labels = np.arange(self.count, self.count + number, dtype=np.int64)
        self.count += number
        return labels

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        a, b = np.broadcast_arrays(a, b)
        pairs = np.stack([a.ravel(), b.ravel()], axis=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if len(pairs):
            self.edges.append(np.unique(pairs, axis=0))

    def freeze(self, labels: Labels | None, reason: str) -> None:
        if labels is None:
            return
        found = np.unique(labels)
        found = found[found != 0]
        if len(found):
            self.tie(found, np.zeros_like(found))
            self.frozen.append((found, reason))

    def rank(self, value: ir.Value) -> int:
        shape = self.trace.shape(value.name)
        return len(shape) if shape is not None else 0

    def blank(self, value: ir.Value) -> Labels:
        return np.zeros((1,) * self.rank(value), np.int64)

    def read(self, value: ir.Value | None) -> Labels | None:
        return None if value is None or value.name is None else self.of.get(value.name)

    def write(self, value: ir.Value, labels: Labels, reason: str) -> None:
        """Store labels of a value, in compact form; freeze them where they vary along two axes."""
        labels = compact(labels)
        if sum(size > 1 for size in labels.shape) > 1:
            self.freeze(labels, reason)
            labels = self.blank(value)
        if value.name:
            self.of[value.name] = labels


def compact(labels: Labels) -> Labels:
    """Shrink every axis along which the labels do not vary to size 1."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis=axis) if labels.shape[axis] else labels
        if labels.shape[axis] > 1 and (labels == first).all():
            labels = first
    return labels


def vary_axis(labels: Labels) -> int | None:
    """The one axis along which the labels vary; None where they are uniform."""
    axes = [a for a, size in enumerate(labels.shape) if size > 1]
    return axes[0] if axes else None


def along(labels: Labels, axis: int, size: int) -> np.ndarray | None:
    """The labels along one axis as a vector; None where they vary along another one."""
    if vary_axis(labels) not in (None, axis):
        return None
    vector = labels.reshape(-1)
    return np.broadcast_to(vector, (size,)) if vector.size == 1 else vector


def propagate(model: ir.Model, trace: Trace) -> Flow:
    """Walk the main graph once, in topological order.  The model must be canonical and its nodes named."""
    flow = Flow(trace)
    for value in model.graph.inputs:
        flow.of[value.name or ""] = flow.blank(value)
    for node in model.graph:
        rule = _RULES.get(node.op_type) if read.standard(node) and not read.has_subgraph(node) else None
        if any(trace.shape(v.name) is None for v in node.outputs if v.name):
            rule = None
        if rule is None:
            reason = f"{node.op_type} ({node.name}) is not known to keep channels apart"
            _opaque(flow, node, reason)
        else:
            rule(flow, node)
        for name in read.captured(node) if read.has_subgraph(node) else ():
            flow.freeze(flow.of.get(name), f"read inside the sub-graph of {node.op_type} ({node.name})")
    for value in model.graph.outputs:
        flow.freeze(flow.read(value), f"graph output {value.name}")
    return flow


def _opaque(flow: Flow, node: ir.Node, reason: str) -> None:
    for value in node.inputs:
        flow.freeze(flow.read(value), reason)
    for value in node.outputs:
        if value.name:
            flow.of[value.name] = flow.blank(value)


def _read_channels(flow: Flow, node: ir.Node, axis: int, operand: int, weight_axis: int) -> bool:
    """Record that a weight reads the channels along `axis` of the node's first input."""
    weight = read.constant(node.inputs[operand])
    labels = flow.read(node.inputs[0])
    if weight is None or labels is None:
        return False
    vector = along(labels, axis, weight.shape[weight_axis])
    if vector is None or len(vector) != weight.shape[weight_axis]:
        return False
    flow.slots.append(Slot(node.name or "", operand, weight_axis, "in", vector))
    return True


def _write_channels(flow: Flow, node: ir.Node, axis: int, operand: int, weight_axis: int, bias: int) -> None:
    """Give the node's output fresh channels along `axis`, rows of its weight (and bias)."""
    weight = read.constant(node.inputs[operand])
    assert weight is not None
    fresh = flow.fresh(weight.shape[weight_axis])
    flow.slots.append(Slot(node.name or "", operand, weight_axis, "out", fresh))
    _bias_slot(flow, node, bias, fresh)
    shape = [1] * flow.rank(node.outputs[0])
    shape[axis] = len(fresh)
    flow.write(node.outputs[0], fresh.reshape(shape), "")


def _bias_slot(flow: Flow, node: ir.Node, operand: int, labels: np.ndarray) -> bool:
    """Slice the bias along with the channels; a bias that does not follow them freezes the channels."""
    if operand >= len(node.inputs) or node.inputs[operand] is None:
        return True
    bias = read.constant(node.inputs[operand])
    if bias is not None and bias.size == 1:
        return True
    if bias is None or bias.shape[-1] != len(labels) or bias.size != len(labels):
        flow.freeze(labels, f"{node.op_type} ({node.name}) has a bias that is not one constant a channel")
        return False
    flow.slots.append(Slot(node.name or "", operand, bias.ndim - 1, "along", labels))
    return True


def _conv(flow: Flow, node: ir.Node) -> None:
    weight = read.constant(node.inputs[1])
    if weight is None:
        return _opaque(flow, node, f"{node.op_type} ({node.name}) has a weight that is not a constant")
    group = read.int_attribute(node, "group", 1)
    transposed = node.op_type == "ConvTranspose"
    if group == 1:
        if not _read_channels(flow, node, 1, 1, 0 if transposed else 1):
            flow.freeze(flow.read(node.inputs[0]), f"{node.op_type} ({node.name}) mixes channels with other axes")
        return _write_channels(flow, node, 1, 1, 1 if transposed else 0, 2)
    labels = flow.read(node.inputs[0])
    if read.is_depthwise(node) and labels is not None:
        vector = along(labels, 1, group)
        if vector is not None and len(vector) == group:
            out = np.repeat(vector, weight.shape[0] // group)
            flow.slots.append(Slot(node.name or "", 1, 0, "along", out))
            _bias_slot(flow, node, 2, out)
            return flow.write(node.outputs[0], out.reshape([1, -1] + [1] * (weight.ndim - 2)), "")
    return _opaque(flow, node, f"grouped {node.op_type} ({node.name})")


def _gemm(flow: Flow, node: ir.Node) -> None:
    if read.constant(node.inputs[1]) is None or read.int_attribute(node, "transA", 0):
        return _opaque(flow, node, f"Gemm ({node.name}) has no constant weight on the right")
    turned = read.int_attribute(node, "transB", 0)
    if not _read_channels(flow, node, 1, 1, 1 if turned else 0):
        flow.freeze(flow.read(node.inputs[0]), f"Gemm ({node.name}) mixes channels with other axes")
    return _write_channels(flow, node, 1, 1, 0 if turned else 1, 2)


def _matmul(flow: Flow, node: ir.Node) -> None:
    weight = read.constant(node.inputs[1])
    if weight is None or weight.ndim != 2 or read.constant(node.inputs[0]) is not None:
        return _opaque(flow, node, f"MatMul ({node.name}) of two computed tensors, or not a matrix of weights")
    rank = flow.rank(node.inputs[0]) if node.inputs[0] is not None else 0
    if not _read_channels(flow, node, rank - 1, 1, 0):
        flow.freeze(flow.read(node.inputs[0]), f"MatMul ({node.name}) mixes channels with other axes")
    return _write_channels(flow, node, flow.rank(node.outputs[0]) - 1, 1, 1, 99)


def _norm(operands: tuple[int, ...]) -> Callable[[Flow, ir.Node], None]:
    """BatchNormalization, InstanceNormalization: statistics of each channel alone."""

    def rule(flow: Flow, node: ir.Node) -> None:
        labels = flow.read(node.inputs[0])
        sizes = [read.constant(node.inputs[i]) for i in operands]
        training = len([v for v in node.outputs if v.name]) > 1
        if labels is None or any(s is None for s in sizes) or training:
            return _opaque(flow, node, f"{node.op_type} ({node.name}) with computed parameters")
        vector = along(labels, 1, sizes[0].size)  # type: ignore[union-attr]
        if vector is None:
            return _opaque(flow, node, f"{node.op_type} ({node.name}) normalises along a channel axis")
        for operand in operands:
            flow.slots.append(Slot(node.name or "", operand, 0, "along", vector))
        return flow.write(node.outputs[0], labels, "")

    return rule


def _elementwise(flow: Flow, node: ir.Node) -> None:
    rank = flow.rank(node.outputs[0])
    result: Labels | None = None
    for value in node.inputs:
        labels = flow.read(value)
        if labels is None or value is None:
            continue
        labels = labels.reshape((1,) * (rank - labels.ndim) + labels.shape)
        if result is None or _stretched(flow, value, labels, result):
            result = labels if result is None else result
        elif _stretched(flow, node.inputs[0], result, labels):
            result = labels
        else:
            flow.tie(result, labels)
            result = np.broadcast_arrays(result, labels)[0] if labels.size > result.size else result
    if result is None:
        result = flow.blank(node.outputs[0])
    axis = vary_axis(result)
    for index, value in enumerate(node.inputs):
        if value is None or axis is None or flow.read(value) is not None:
            continue
        constant = read.constant(value)
        if constant is None:
            if flow.rank(value) > 0:
                flow.freeze(result, f"{node.op_type} ({node.name}) reads a computed tensor without channels")
            continue
        own = axis - (rank - constant.ndim)
        if own >= 0 and constant.shape[own] > 1:
            flow.slots.append(Slot(node.name or "", index, own, "along", result.reshape(-1)))
    for value in node.outputs:
        flow.write(value, result, f"{node.op_type} ({node.name}) combines channels of two axes")


def _stretched(flow: Flow, value: ir.Value | None, labels: Labels, against: Labels) -> bool:
    """Whether the value is really of size 1 on the axis where the other operand has channels: it is broadcast."""
    axis = vary_axis(against)
    shape = flow.trace.shape(value.name if value is not None else None)
    if axis is None or shape is None or vary_axis(labels) is not None:
        return False
    own = axis - (against.ndim - len(shape))
    return own < 0 or shape[own] == 1


def _shape(flow: Flow, node: ir.Node) -> None:
    """Shape and Size compute themselves anew after a removal; what reads them is asked where it is used."""
    for value in node.outputs:
        flow.write(value, flow.blank(value), "")


def _pool(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    if labels is None or vary_axis(labels) not in (None, 1) or len([v for v in node.outputs if v.name]) > 1:
        return _opaque(flow, node, f"{node.op_type} ({node.name}) pools over a channel axis")
    return flow.write(node.outputs[0], labels, "")


def _reduce(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    if labels is None:
        return _opaque(flow, node, "")
    axes = read.ints_attribute(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = read.constant(node.inputs[1])
        if given is None:
            return _opaque(flow, node, f"{node.op_type} ({node.name}) over computed axes")
        axes = [int(a) for a in given.ravel()]
    rank = labels.ndim
    reduced = {a % rank for a in axes} if axes else set(range(rank))
    if vary_axis(labels) in reduced:
        return _opaque(flow, node, f"{node.op_type} ({node.name}) reduces over channels")
    if not read.int_attribute(node, "keepdims", 1):
        labels = labels.reshape([s for a, s in enumerate(labels.shape) if a not in reduced])
    return flow.write(node.outputs[0], labels, "")


def _axiswise(default: int) -> Callable[[Flow, ir.Node], None]:
    """Softmax and its like: pass where the channels lie on another axis than the one they work on."""

    def rule(flow: Flow, node: ir.Node) -> None:
        labels = flow.read(node.inputs[0])
        rank = flow.rank(node.outputs[0])
        axis = read.int_attribute(node, "axis", default) % max(rank, 1)
        if labels is None or vary_axis(labels) not in {None, *range(axis)} or labels.ndim != rank:
            return _opaque(flow, node, f"{node.op_type} ({node.name}) works across channels")
        return flow.write(node.outputs[0], labels, "")

    return rule


def _resize(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    scales = read.constant(node.inputs[-1]) if node.op_type == "Upsample" or len(node.inputs) == 3 else None
    axis = None if labels is None else vary_axis(labels)
    if labels is None or (axis is not None and (scales is None or scales.size <= axis or scales[axis] != 1)):
        return _opaque(flow, node, f"{node.op_type} ({node.name}) with written-down sizes")
    return flow.write(node.outputs[0], labels, "")


def _reshape(flow: Flow, node: ir.Node) -> None:
    labels, shape = flow.read(node.inputs[0]), flow.trace.shape(node.outputs[0].name)
    source = flow.trace.shape(node.inputs[0].name) if node.inputs[0] is not None else None
    if labels is None or shape is None or source is None:
        return _opaque(flow, node, f"{node.op_type} ({node.name}) of unknown shape")
    if vary_axis(labels) is None:
        return flow.write(node.outputs[0], np.broadcast_to(labels.reshape(()), (1,) * len(shape)).copy(), "")
    moved = compact(np.broadcast_to(labels, source).reshape(shape))
    axis = vary_axis(moved)
    if node.op_type == "Reshape" and axis is not None:
        target = read.constant(node.inputs[1])
        if target is None:
            return _opaque(flow, node, f"Reshape ({node.name}) to a computed shape")
        if sum(size > 1 for size in moved.shape) == 1:
            flow.resizes.append(Resize(node.name or "", axis, moved.reshape(-1)))
    return flow.write(node.outputs[0], moved, f"{node.op_type} ({node.name}) folds channels into two axes")


def _transpose(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    if labels is None:
        return _opaque(flow, node, "")
    order = read.ints_attribute(node, "perm") or list(range(labels.ndim))[::-1]
    return flow.write(node.outputs[0], labels.transpose(order), "")


def _concat(flow: Flow, node: ir.Node) -> None:
    rank = flow.rank(node.outputs[0])
    axis = read.int_attribute(node, "axis", 0) % max(rank, 1)
    parts = []
    for value in node.inputs:
        labels, shape = flow.read(value), flow.trace.shape(value.name if value is not None else None)
        if labels is None and value is not None and read.constant(value) is not None and shape is None:
            constant = read.constant(value)
            labels, shape = np.zeros((1,) * rank, np.int64), constant.shape  # type: ignore[union-attr]
        if labels is None or shape is None:
            return _opaque(flow, node, f"Concat ({node.name}) with a tensor without channels")
        if vary_axis(labels) not in (None, axis):
            return _opaque_if_uneven(flow, node)
        parts.append(np.broadcast_to(labels.reshape(-1) if labels.size > 1 else labels.reshape(()), (shape[axis],)))
    out = [1] * rank
    out[axis] = sum(len(p) for p in parts)
    return flow.write(node.outputs[0], np.concatenate(parts).reshape(out), "")


def _opaque_if_uneven(flow: Flow, node: ir.Node) -> None:
    """Concat along another axis than the channels': the parts' channels meet position by position."""
    stacks = [flow.read(v) for v in node.inputs]
    first = stacks[0]
    if first is None or any(s is None or s.shape != first.shape for s in stacks):
        return _opaque(flow, node, f"Concat ({node.name}) joins tensors with different channels")
    for other in stacks[1:]:
        flow.tie(first, other)  # type: ignore[arg-type]
    return flow.write(node.outputs[0], first, "")


def _split(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    rank = labels.ndim if labels is not None else 0
    axis = read.int_attribute(node, "axis", 0) % max(rank, 1)
    if labels is None or (len(node.inputs) > 1 and node.inputs[1] is not None and read.constant(node.inputs[1]) is None):
        return _opaque(flow, node, f"Split ({node.name}) into computed sizes")
    start = 0
    for part, value in enumerate(node.outputs):
        size = (flow.trace.shape(value.name) or (0,) * rank)[axis]
        if vary_axis(labels) == axis:
            vector = labels.reshape(-1)[start : start + size]
            shape = [1] * rank
            shape[axis] = size
            flow.resizes.append(Resize(node.name or "", axis, vector, part))
            flow.write(value, vector.reshape(shape), "")
        else:
            flow.write(value, labels, "")
        start += size
    return None


def _pad(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    pads_value = node.inputs[1] if len(node.inputs) > 1 else None
    pads = read.constant(pads_value) if pads_value is not None else np.array(read.ints_attribute(node, "pads"))
    axis = None if labels is None else vary_axis(labels)
    if labels is None or (axis is not None and (pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None))):
        return _opaque(flow, node, f"Pad ({node.name}) by computed amounts")
    if axis is None or pads is None:
        return flow.write(node.outputs[0], labels, "")
    before, after = int(pads[axis]), int(pads[axis + labels.ndim])
    if before == after == 0:
        return flow.write(node.outputs[0], labels, "")
    if read.attribute(node, "mode", "constant") not in ("constant", b"constant") or min(before, after) < 0:
        return _opaque(flow, node, f"Pad ({node.name}) mirrors or crops channels")
    vector = np.concatenate([flow.fresh(before), labels.reshape(-1), flow.fresh(after)])
    flow.resizes.append(Resize(node.name or "", axis, vector))
    shape = [1] * labels.ndim
    shape[axis] = len(vector)
    return flow.write(node.outputs[0], vector.reshape(shape), "")


def _slice(flow: Flow, node: ir.Node) -> None:
    """Slice passes where it leaves the channel axis whole; a cut through channels freezes them."""
    labels = flow.read(node.inputs[0])
    source = flow.trace.shape(node.inputs[0].name) if node.inputs[0] is not None else None
    target = flow.trace.shape(node.outputs[0].name)
    axis = None if labels is None else vary_axis(labels)
    if labels is None or source is None or target is None:
        return _opaque(flow, node, "")
    if axis is not None and (source[axis] != target[axis] or _reversed(node, axis)):
        return _opaque(flow, node, f"Slice ({node.name}) cuts through channels")
    return flow.write(node.outputs[0], labels, "")


def _reversed(node: ir.Node, axis: int) -> bool:
    """Whether a Slice of full length may turn an axis round (a negative or unknown step)."""
    if len(node.inputs) < 5 or node.inputs[4] is None:
        return False
    steps = read.constant(node.inputs[4])
    return steps is None or bool((steps < 0).any())


def _gather(flow: Flow, node: ir.Node) -> None:
    """Gather passes channels that lie on another axis than the one it picks from."""
    labels, index_shape = flow.read(node.inputs[0]), None
    if node.inputs[1] is not None:
        constant = read.constant(node.inputs[1])
        index_shape = constant.shape if constant is not None else flow.trace.shape(node.inputs[1].name)
    if labels is None or index_shape is None:
        return _opaque(flow, node, f"Gather ({node.name}) from a table of weights")
    axis = read.int_attribute(node, "axis", 0) % labels.ndim
    if vary_axis(labels) == axis:
        return _opaque(flow, node, f"Gather ({node.name}) picks channels")
    shape = labels.shape[:axis] + (1,) * len(index_shape) + labels.shape[axis + 1 :]
    return flow.write(node.outputs[0], labels.reshape(shape), "")


_RULES: dict[str, Callable[[Flow, ir.Node], None]] = {
    **dict.fromkeys(read.ELEMENTWISE, _elementwise),
    **dict.fromkeys(read.POOLING, _pool),
    **dict.fromkeys("ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2 ReduceL1 ReduceSumSquare".split(), _reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LayerNormalization"), _axiswise(-1)),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("Shape", "Size", "ConstantOfShape", "Range"), _shape),
    "Conv": _conv, "ConvTranspose": _conv, "Gemm": _gemm, "MatMul": _matmul,
    "BatchNormalization": _norm((1, 2, 3, 4)), "InstanceNormalization": _norm((1, 2)),
    "Transpose": _transpose, "Concat": _concat, "Split": _split, "Pad": _pad, "Slice": _slice, "Gather": _gather,
}
