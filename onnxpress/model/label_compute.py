"""Label rules of operators that compute: what reads, makes, ties and passes channels.

Rules: Conv, ConvTranspose, Gemm and MatMul read channels through a weight and make fresh ones; a depthwise Conv, a
normalisation of each channel alone, pooling and elementwise operators pass them on; combining two computed tensors
ties their channels position by position.  What mixes channels in any other way freezes them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.labels import Flow, Labels, Slot, along, opaque, vary_axis


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
        return opaque(flow, node, f"{node.op_type} ({node.name}): {read.why_not_constant(node.inputs[1])}")
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
    return opaque(flow, node, f"grouped {node.op_type} ({node.name})")


def _gemm(flow: Flow, node: ir.Node) -> None:
    if read.constant(node.inputs[1]) is None or read.int_attribute(node, "transA", 0):
        return opaque(flow, node, f"Gemm ({node.name}) has no constant weight on the right")
    turned = read.int_attribute(node, "transB", 0)
    if not _read_channels(flow, node, 1, 1, 1 if turned else 0):
        flow.freeze(flow.read(node.inputs[0]), f"Gemm ({node.name}) mixes channels with other axes")
    return _write_channels(flow, node, 1, 1, 0 if turned else 1, 2)


def _matmul(flow: Flow, node: ir.Node) -> None:
    weight = read.constant(node.inputs[1])
    if weight is None or weight.ndim != 2 or read.constant(node.inputs[0]) is not None:
        return opaque(flow, node, f"MatMul ({node.name}) of two computed tensors, or not a matrix of weights")
    rank = flow.rank(node.inputs[0]) if node.inputs[0] is not None else 0
    if not _read_channels(flow, node, rank - 1, 1, 0):
        flow.freeze(flow.read(node.inputs[0]), f"MatMul ({node.name}) mixes channels with other axes")
    return _write_channels(flow, node, flow.rank(node.outputs[0]) - 1, 1, 1, 99)


def _norm(operands: tuple[int, ...]) -> Callable[[Flow, ir.Node], None]:
    """BatchNormalization, InstanceNormalization: statistics of each channel alone."""

    def rule(flow: Flow, node: ir.Node) -> None:
        labels = flow.read(node.inputs[0])
        sizes = [a.size for i in operands if (a := read.constant(node.inputs[i])) is not None]
        training = len([v for v in node.outputs if v.name]) > 1
        if labels is None or len(sizes) < len(operands) or training:
            return opaque(flow, node, f"{node.op_type} ({node.name}) with computed parameters")
        vector = along(labels, 1, sizes[0])
        if vector is None:
            return opaque(flow, node, f"{node.op_type} ({node.name}) normalises along a channel axis")
        for operand in operands:
            flow.slots.append(Slot(node.name or "", operand, 0, "along", vector))
        return flow.write(node.outputs[0], labels, "")

    return rule


def _elementwise(flow: Flow, node: ir.Node) -> None:
    rank = flow.rank(node.outputs[0])
    result: Labels | None = None
    merged: list[ir.Value] = []  # values that stand behind `result`
    for value in node.inputs:
        labels = flow.read(value)
        if labels is None or value is None:
            continue
        labels = labels.reshape((1,) * (rank - labels.ndim) + labels.shape)
        merged.append(value)
        if result is None or _stretched(flow, value, labels, result):
            result = labels if result is None else result
        elif all(_stretched(flow, other, result, labels) for other in merged[:-1]):
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
        return opaque(flow, node, f"{node.op_type} ({node.name}) pools over a channel axis")
    return flow.write(node.outputs[0], labels, "")


def _reduce(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    if labels is None:
        return opaque(flow, node, "")
    axes = read.ints_attribute(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = read.constant(node.inputs[1])
        if given is None:
            return opaque(flow, node, f"{node.op_type} ({node.name}) over computed axes")
        axes = [int(a) for a in given.ravel()]
    rank = labels.ndim
    reduced = {a % rank for a in axes} if axes else set(range(rank))
    if vary_axis(labels) in reduced:
        return opaque(flow, node, f"{node.op_type} ({node.name}) reduces over channels")
    if not read.int_attribute(node, "keepdims", 1):
        labels = labels.reshape([s for a, s in enumerate(labels.shape) if a not in reduced])
    return flow.write(node.outputs[0], labels, "")


def _axiswise(default: int) -> Callable[[Flow, ir.Node], None]:
    """Softmax and its like: pass where the channels lie on another axis than the one they work on."""

    def rule(flow: Flow, node: ir.Node) -> None:
        labels = flow.read(node.inputs[0])
        rank = flow.rank(node.outputs[0])
        old = node.op_type != "LayerNormalization" and read.node_opset(node) < 13
        axis = read.int_attribute(node, "axis", 1 if old else default) % max(rank, 1)
        if labels is None or vary_axis(labels) not in {None, *range(axis)} or labels.ndim != rank:
            return opaque(flow, node, f"{node.op_type} ({node.name}) works across channels")
        return flow.write(node.outputs[0], labels, "")

    return rule


RULES: dict[str, Callable[[Flow, ir.Node], None]] = {
    **dict.fromkeys(read.ELEMENTWISE, _elementwise),
    **dict.fromkeys(read.POOLING, _pool),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"), _reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LayerNormalization"), _axiswise(-1)),
    **dict.fromkeys(("Shape", "Size", "ConstantOfShape", "Range"), _shape),
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _norm((1, 2, 3, 4)),
    "InstanceNormalization": _norm((1, 2)),
}
