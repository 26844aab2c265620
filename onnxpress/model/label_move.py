"""Label rules of operators that only move elements: where each channel goes, and which written-down sizes follow.

A Reshape target, the pads of a channel axis and the sizes of a Split are constants of the file; they are recorded as
`Resize` and rewritten on removal.  A cut through channels, or a size computed in the graph, freezes them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.labels import Flow, Resize, compact, opaque, vary_axis


def _reshape(flow: Flow, node: ir.Node) -> None:
    labels, shape = flow.read(node.inputs[0]), flow.trace.shape(node.outputs[0].name)
    source = flow.trace.shape(node.inputs[0].name) if node.inputs[0] is not None else None
    if labels is None or shape is None or source is None:
        return opaque(flow, node, f"{node.op_type} ({node.name}) of unknown shape")
    if vary_axis(labels) is None:
        return flow.write(node.outputs[0], np.broadcast_to(labels.reshape(()), (1,) * len(shape)).copy(), "")
    moved = compact(np.broadcast_to(labels, source).reshape(shape))
    axis = vary_axis(moved)
    if node.op_type == "Reshape" and axis is not None:
        target = read.constant(node.inputs[1])
        if target is None:
            return opaque(flow, node, f"Reshape ({node.name}) to a computed shape")
        if sum(size > 1 for size in moved.shape) == 1:
            flow.resizes.append(Resize(node.name or "", axis, moved.reshape(-1)))
    return flow.write(node.outputs[0], moved, f"{node.op_type} ({node.name}) folds channels into two axes")


def _transpose(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    if labels is None:
        return opaque(flow, node, "")
    order = read.ints_attribute(node, "perm") or list(range(labels.ndim))[::-1]
    return flow.write(node.outputs[0], labels.transpose(order), "")


def _concat(flow: Flow, node: ir.Node) -> None:
    rank = flow.rank(node.outputs[0])
    axis = read.int_attribute(node, "axis", 0) % max(rank, 1)
    parts = []
    for value in node.inputs:
        labels, shape = flow.read(value), flow.trace.shape(value.name if value is not None else None)
        constant = read.constant(value)
        if labels is None and constant is not None and shape is None:
            labels, shape = np.zeros((1,) * rank, np.int64), constant.shape
        if labels is None or shape is None:
            return opaque(flow, node, f"Concat ({node.name}) with a tensor without channels")
        if vary_axis(labels) not in (None, axis):
            return _opaque_if_uneven(flow, node)
        parts.append(np.broadcast_to(labels.reshape(-1) if labels.size > 1 else labels.reshape(()), (shape[axis],)))
    out = [1] * rank
    out[axis] = sum(len(p) for p in parts)
    return flow.write(node.outputs[0], np.concatenate(parts).reshape(out), "")


def _opaque_if_uneven(flow: Flow, node: ir.Node) -> None:
    """Concat along another axis than the channels': the parts' channels meet position by position."""
    stacks = [labels for v in node.inputs if (labels := flow.read(v)) is not None]
    if len(stacks) < len(node.inputs) or len({s.shape for s in stacks}) > 1:
        return opaque(flow, node, f"Concat ({node.name}) joins tensors with different channels")
    for other in stacks[1:]:
        flow.tie(stacks[0], other)
    return flow.write(node.outputs[0], stacks[0], "")


def _split(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    rank = labels.ndim if labels is not None else 0
    axis = read.int_attribute(node, "axis", 0) % max(rank, 1)
    if labels is None or (
        len(node.inputs) > 1 and node.inputs[1] is not None and read.constant(node.inputs[1]) is None
    ):
        return opaque(flow, node, f"Split ({node.name}) into computed sizes")
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
        return opaque(flow, node, f"Pad ({node.name}) by computed amounts")
    if axis is None or pads is None:
        return flow.write(node.outputs[0], labels, "")
    before, after = int(pads[axis]), int(pads[axis + labels.ndim])
    if before == after == 0:
        return flow.write(node.outputs[0], labels, "")
    if not read.fills_constant(node) or min(before, after) < 0:
        return opaque(flow, node, f"Pad ({node.name}) mirrors or crops channels")
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
        return opaque(flow, node, "")
    if axis is not None and (source[axis] != target[axis] or _reversed(node, axis)):
        return opaque(flow, node, f"Slice ({node.name}) cuts through channels")
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
        return opaque(flow, node, f"Gather ({node.name}) from a table of weights")
    axis = read.int_attribute(node, "axis", 0) % labels.ndim
    if vary_axis(labels) == axis:
        return opaque(flow, node, f"Gather ({node.name}) picks channels")
    shape = labels.shape[:axis] + (1,) * len(index_shape) + labels.shape[axis + 1 :]
    return flow.write(node.outputs[0], labels.reshape(shape), "")


def _resize(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    scales = read.constant(node.inputs[-1]) if node.op_type == "Upsample" or len(node.inputs) == 3 else None
    axis = None if labels is None else vary_axis(labels)
    if labels is None or (axis is not None and (scales is None or scales.size <= axis or scales[axis] != 1)):
        return opaque(flow, node, f"{node.op_type} ({node.name}) with written-down sizes")
    return flow.write(node.outputs[0], labels, "")


RULES: dict[str, Callable[[Flow, ir.Node], None]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Pad": _pad,
    "Slice": _slice,
    "Gather": _gather,
}
