"""Label rules of operators that compute: which channels they read, produce, tie, mix and pass on.

Conv and ConvTranspose read channels through a weight and produce new ones, group by group.  A depthwise Conv, a
normalization of each channel on its own, pooling and elementwise operators pass channels on; combining two computed
tensors ties their channels position by position.  An operator over several channels together (a Softmax, the statistics
of a LayerNormalization) mixes them: all or none are removed.  Matrix products are in `product_rules.py`, recurrent
layers in `recurrent_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.channels.labels import (
    Flow,
    Labels,
    freeze_inputs,
    labels_along,
    labels_of_sizes,
    stored_array,
    varying_axes,
)


def bias_slot(flow: Flow, node: ir.Node, operand: int, labels: np.ndarray) -> None:
    """Slice the bias along with the channels; a bias that cannot be sliced freezes them."""
    if operand >= len(node.inputs) or node.inputs[operand] is None:
        return
    bias = stored_array(node.inputs[operand])
    if bias is not None and bias.size == 1:
        return
    if bias is None or bias.shape[-1] != len(labels) or bias.size != len(labels):
        later = bias is None and read.why_not_constant(node.inputs[operand]) != read.COMPUTED
        what = "is computed from constants: run simplify first" if later else "is not one constant per channel"
        flow.freeze(labels, f"{node.op_type} ({node.name}) has a bias that {what}")
        return
    flow.slice(node, operand, bias.ndim - 1, "along", labels)


def _conv(flow: Flow, node: ir.Node) -> None:
    weight, labels = stored_array(node.inputs[1]), flow.read(node.inputs[0])
    if weight is None or labels is None:
        return freeze_inputs(flow, node, f"{node.op_type} ({node.name}): {read.why_not_constant(node.inputs[1])}")
    others = tuple(a for a in varying_axes(labels) if a != 1)  # a view of a dense layer: maps that go as a whole
    labels = flow.mix(labels, others, f"{node.op_type} ({node.name}) sums over positions")
    groups, name = read.int_attribute(node, "group", 1), node.name or ""
    inner, outer = (1, 0) if node.op_type == "Conv" else (0, 1)
    width = weight.shape[outer] * (groups if outer == 1 else 1)
    channels = labels_along(labels, 1, weight.shape[inner] * (groups if inner == 1 else 1))
    shape = (1, -1, *(1,) * (weight.ndim - 2))
    if groups > 1 and inner == 1 and weight.shape[1] == 1:  # depthwise
        produced = np.repeat(channels, width // groups)
        flow.slice(node, 1, 0, "along", produced)
        flow.counts.append((name, "group", channels))
    else:
        produced = flow.new_labels(width)
        if groups == 1:
            flow.slice(node, 1, inner, "in", channels)
            flow.slice(node, 1, outer, "out", produced)
        else:
            _groups(flow, node, channels.reshape(groups, -1), produced.reshape(groups, -1))
    bias_slot(flow, node, 2, produced)
    return flow.write(node.outputs[0], produced.reshape(shape))


def _groups(flow: Flow, node: ir.Node, read_labels: np.ndarray, produced: np.ndarray) -> None:
    """A grouped Conv with labels [groups, channels of each group].

    Whole groups are removed on both sides, or the same position of every group.
    """
    name = node.name or ""
    sides = [("in", read_labels), ("out", produced)]
    if node.op_type == "ConvTranspose":  # its weight has the input channels on its first axis
        sides.reverse()
    (across, columns), (down, rows) = sides
    flow.slice(node, 1, 0, down, rows.reshape(-1))
    flow.slice(node, 1, 1, across, np.ascontiguousarray(columns.T))
    flow.boxes += [read_labels, produced]
    whole = flow.new_labels(len(produced))
    flow.link(whole, read_labels)
    flow.link(whole, produced)
    flow.counts.append((name, "group", produced))


def _norm(operands: tuple[int, ...]) -> Callable[[Flow, ir.Node], None]:
    """Rule of BatchNormalization and InstanceNormalization: statistics of each channel on its own."""

    def rule(flow: Flow, node: ir.Node) -> None:
        labels = flow.read(node.inputs[0])
        sizes = [a.size for i in operands if (a := read.constant(node.inputs[i])) is not None]
        training = len([v for v in node.outputs if v.name]) > 1
        if labels is None or len(sizes) < len(operands) or training:
            return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) with computed parameters")
        others = tuple(a for a in varying_axes(labels) if a != 1)
        labels = flow.mix(labels, others, f"{node.op_type} ({node.name}) takes statistics across channels")
        vector = labels_along(labels, 1, sizes[0])
        for operand in operands:
            flow.slice(node, operand, 0, "along", vector)
        return flow.write(node.outputs[0], labels)

    return rule


def _group_norm(flow: Flow, node: ir.Node) -> None:
    """GroupNormalization [N, C, ...]: whole groups are removed.

    Scale and bias are per group (opset 18) or per channel (21).
    """
    labels, shape = flow.read(node.inputs[0]), flow.shape(node.inputs[0])
    params = [read.constant(v) for v in node.inputs[1:3]]
    if labels is None or shape is None or any(p is None for p in params) or varying_axes(labels) not in ((), (1,)):
        return freeze_inputs(flow, node, f"GroupNormalization ({node.name}) with computed parameters")
    groups = read.int_attribute(node, "num_groups", 1)
    rows = labels_along(labels, 1, shape[1]).reshape(groups, -1)
    flow.mix(rows, (1,), f"GroupNormalization ({node.name}) takes statistics of whole groups")
    for operand, array in enumerate(params, 1):
        assert array is not None
        vector = rows[:, 0] if array.size == groups else rows.reshape(-1)
        flow.slice(node, operand, 0, "along", vector)
    flow.counts.append((node.name or "", "num_groups", rows[:, 0]))
    return flow.write(node.outputs[0], labels)


def _elementwise(flow: Flow, node: ir.Node) -> None:
    rank = flow.rank(node.outputs[0])
    parts = [
        (labels.reshape((1,) * (rank - labels.ndim) + labels.shape), _sizes(flow, value, rank))
        for value in node.inputs
        if value is not None and (labels := flow.read(value)) is not None
    ]
    reason = f"{node.op_type} ({node.name}) combines channels of two axes"
    result = join_labels(flow, parts, reason) if parts else flow.blank(node.outputs[0])
    for index, value in enumerate(node.inputs):
        if value is None or not varying_axes(result) or flow.read(value) is not None:
            continue
        constant = stored_array(value)
        if constant is None:
            if flow.rank(value) > 0:
                flow.freeze(result, f"{node.op_type} ({node.name}) reads a computed tensor without channels")
            continue
        for axis in varying_axes(result):
            own = axis - (rank - constant.ndim)
            if own >= 0 and constant.shape[own] > 1:
                flow.slice(node, index, own, "along", labels_along(result, axis, constant.shape[own]))
    for value in node.outputs:
        flow.write(value, result)


def _sizes(flow: Flow, value: ir.Value, rank: int) -> tuple[int, ...]:
    shape = flow.shape(value) or ()
    return (1,) * (rank - len(shape)) + shape


def join_labels(flow: Flow, parts: list[tuple[Labels, tuple[int, ...]]], reason: str) -> Labels:
    """Labels of tensors that are combined element by element, each with its actual sizes; all of one rank.

    A tensor of actual size 1 along an axis is broadcast: it has no elements to lose there, but along its other axes it
    loses the slices that the others lose.
    """
    parts = sorted(parts, key=lambda p: -p[0].size)
    result, real = parts[0]
    for labels, sizes in parts[1:]:
        if any(real[a] == 1 for a in varying_axes(labels)):  # each is broadcast along the other's channels
            flow.freeze(result, reason)
            flow.freeze(labels, reason)
            result, real = np.zeros((1,) * result.ndim, np.int64), tuple(map(max, real, sizes))
            continue
        real = tuple(map(max, real, sizes))
        broadcast = tuple(a for a, size in enumerate(sizes) if size == 1 and result.shape[a] > 1)
        if not broadcast:
            flow.tie(result, labels)
            result = np.broadcast_arrays(result, labels)[0] if labels.size > result.size else result
        elif varying_axes(labels):
            shape = np.broadcast_shapes(result.shape, labels.shape)
            wide = np.moveaxis(np.broadcast_to(result, shape), broadcast, range(-len(broadcast), 0))
            rows = wide.reshape(-1, int(np.prod([result.shape[a] for a in broadcast])))
            own = np.broadcast_to(labels, tuple(1 if a in broadcast else s for a, s in enumerate(shape))).reshape(-1)
            flow.link(own, rows)
            result = np.broadcast_to(result, shape)
        # a tensor of size 1 wherever the others have channels is one number for all of them
    return result


def _quantize(flow: Flow, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear of computed values: scales along an axis follow its channels."""
    labels, shape = flow.read(node.inputs[0]), flow.shape(node.inputs[0])
    scales = read.constant(node.inputs[1])
    if labels is None or shape is None or scales is None or read.int_attribute(node, "block_size", 0):
        return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) with computed scales, or by blocks")
    axis = read.int_attribute(node, "axis", 1) % max(len(shape), 1)
    for operand, value in enumerate(node.inputs[1:], 1):
        array = read.constant(value)
        if array is not None and array.size > 1 and axis in varying_axes(labels):
            flow.slice(node, operand, 0, "along", labels_along(labels, axis, shape[axis]))
    return flow.write(node.outputs[0], labels)


def _size_of(flow: Flow, node: ir.Node) -> None:
    """Shape and Size give the new sizes after a removal; `propagation.py` follows their uses."""
    for value in node.outputs:
        flow.write(value, flow.blank(value))


def _constant_of_shape(flow: Flow, node: ir.Node) -> None:
    """A constant with the shape of another value (zeros_like) has that value's channels: it shrinks with it."""
    shape = flow.shape(node.outputs[0])
    if shape is None or node.inputs[0] is None:
        return _size_of(flow, node)
    reason = f"ConstantOfShape ({node.name}) makes a tensor of their number"
    return flow.write(node.outputs[0], labels_of_sizes(flow, node.inputs[0], shape, reason))


def _pool(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    if labels is None or len([v for v in node.outputs if v.name]) > 1:
        return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) also returns indices")
    others = tuple(a for a in varying_axes(labels) if a > 1)
    return flow.write(
        node.outputs[0], flow.mix(labels, others, f"{node.op_type} ({node.name}) pools over a channel axis")
    )


def _reduce(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    if labels is None:
        return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) of a tensor without channels")
    axes = read.ints_attribute(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = read.constant(node.inputs[1])
        if given is None:
            return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) over computed axes")
        axes = [int(a) for a in given.ravel()]
    rank = labels.ndim
    none = not axes and bool(read.int_attribute(node, "noop_with_empty_axes", 0))
    reduced = {a % rank for a in axes} if axes or none else set(range(rank))
    labels = flow.mix(labels, tuple(reduced), f"{node.op_type} ({node.name}) reduces over channels")
    if not read.int_attribute(node, "keepdims", 1):
        labels = labels.reshape([s for a, s in enumerate(labels.shape) if a not in reduced])
    return flow.write(node.outputs[0], labels)


def _axiswise(default: int, onwards: bool = False) -> Callable[[Flow, ir.Node], None]:
    """Rule of Softmax and similar operators: channels along the axis are removed together.

    onwards: along all axes from it on
    """

    def rule(flow: Flow, node: ir.Node) -> None:
        labels = flow.read(node.inputs[0])
        rank = flow.rank(node.outputs[0])
        old = not onwards and read.node_opset(node) < 13
        axis = read.int_attribute(node, "axis", 1 if old else default) % max(rank, 1)
        if labels is None or labels.ndim != rank or len([v for v in node.outputs if v.name]) > 1:
            return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) works across channels")
        over = tuple(range(axis, rank)) if onwards or old else (axis,)
        return flow.write(
            node.outputs[0], flow.mix(labels, over, f"{node.op_type} ({node.name}) works across channels")
        )

    return rule


RULES: dict[str, Callable[[Flow, ir.Node], None]] = {
    **dict.fromkeys(read.ELEMENTWISE, _elementwise),
    **dict.fromkeys(read.POOLING, _pool),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare"), _reduce
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), _axiswise(-1)),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _axiswise(-1, onwards=True)
    ),
    **dict.fromkeys(("Shape", "Size", "Range"), _size_of),
    "ConstantOfShape": _constant_of_shape,
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    "Conv": _conv,
    "ConvTranspose": _conv,
    "BatchNormalization": _norm((1, 2, 3, 4)),
    "InstanceNormalization": _norm((1, 2)),
    "GroupNormalization": _group_norm,
}
