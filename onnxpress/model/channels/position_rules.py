"""Label rules of operators that take or write elements at positions.

Channels on other axes pass; those on the axis that is indexed are selected by constant indices, or frozen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.channels.labels import Flow, freeze_inputs, stored_array, varying_axes
from onnxpress.model.channels.layout_rules import axis_of, size_follows

_INTEGER_TYPES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


def _gather(flow: Flow, node: ir.Node) -> None:
    """Channels on other axes pass; those on the gathered axis are selected by constant indices."""
    labels, index = flow.read(node.inputs[0]), read.constant(node.inputs[1])
    index_shape = index.shape if index is not None else flow.shape(node.inputs[1])
    table = stored_array(node.inputs[0])
    if (
        table is not None
        and table.ndim == 2
        and node.outputs[0].dtype not in _INTEGER_TYPES
        and index_shape is not None
        and not axis_of(node, 2)
    ):
        columns = flow.new_labels(table.shape[1])  # an embedding table: its columns are channels
        flow.slice(node, 0, 1, "out", columns)
        return flow.write(node.outputs[0], columns.reshape(*(1,) * len(index_shape), -1))
    if labels is None or index_shape is None:
        return freeze_inputs(flow, node, f"Gather ({node.name}) from a tensor without channels")
    axis = axis_of(node, labels.ndim)
    if axis not in varying_axes(labels):
        shape = labels.shape[:axis] + (1,) * len(index_shape) + labels.shape[axis + 1 :]
        return flow.write(node.outputs[0], labels.reshape(shape))
    if index is None:
        return freeze_inputs(flow, node, f"Gather ({node.name}) selects channels by computed indices")
    return flow.write(node.outputs[0], np.take(labels, index, axis=axis))


def _gather_nd(flow: Flow, node: ir.Node) -> None:
    """Slices at positions: channels on the axes behind the indexed ones pass."""
    labels, places = flow.read(node.inputs[0]), read.constant(node.inputs[1])
    indices = places.shape if places is not None else flow.shape(node.inputs[1])
    flow.freeze(flow.read(node.inputs[1]), f"GatherND ({node.name}) reads them as positions")
    first = read.int_attribute(node, "batch_dims", 0) + (indices[-1] if indices else 0)
    if labels is None or not indices or any(a < first for a in varying_axes(labels)):
        return freeze_inputs(flow, node, f"GatherND ({node.name}) selects among channels")
    return flow.write(node.outputs[0], labels.reshape((1,) * (len(indices) - 1) + labels.shape[first:]))


def _resize(flow: Flow, node: ir.Node) -> None:
    """Sizes or scales must not change the axes of channels."""
    labels, source, target = flow.read(node.inputs[0]), flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if labels is None or source is None or target is None:
        return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) of unknown shape")
    given = node.inputs[3] if node.op_type == "Resize" and len(node.inputs) > 3 else None
    axes = read.ints_attribute(node, "axes") or list(range(labels.ndim))
    computed = given is not None and read.constant(given) is None
    sizes = flow.sizes.get(given.name or "", []) if given is not None and computed else []
    sizes = sizes if len(sizes) == len(axes) else [frozenset()] * len(axes)
    if any(
        source[a] != target[a] or (computed and a in axes and not size_follows(flow, sizes[axes.index(a)], labels, a))
        for a in varying_axes(labels)
    ):
        return freeze_inputs(
            flow, node, f"{node.op_type} ({node.name}) changes the number of channels, or has computed sizes"
        )
    return flow.write(node.outputs[0], labels)


def _grid_sample(flow: Flow, node: ir.Node) -> None:
    """Channels pass; positions have none."""
    labels = flow.read(node.inputs[0])
    flow.freeze(flow.read(node.inputs[1]), f"{node.op_type} ({node.name}) reads them as positions")
    if labels is None or any(a != 1 for a in varying_axes(labels)):
        return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) mixes channels with positions")
    return flow.write(node.outputs[0], labels)


def _cumulative(flow: Flow, node: ir.Node) -> None:
    labels, axis = flow.read(node.inputs[0]), read.constant(node.inputs[1])
    if labels is None or axis is None or int(axis.item()) % labels.ndim in varying_axes(labels):
        return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) sums up channels")
    return flow.write(node.outputs[0], labels)


def _scatter_nd(flow: Flow, node: ir.Node) -> None:
    """Slices of a tensor are written over: those of the axes behind the indexed ones have the same channels."""
    labels, updates = flow.read(node.inputs[0]), flow.read(node.inputs[2])
    places = read.constant(node.inputs[1])
    indices = places.shape if places is not None else flow.shape(node.inputs[1])
    depth = indices[-1] if indices else 0
    if labels is None or updates is None or indices is None or any(a < depth for a in varying_axes(labels)):
        return freeze_inputs(flow, node, f"ScatterND ({node.name}) writes over channels, or writes a constant")
    behind = len(indices) - 1  # from where on the axes of the updates are those of the data
    if any(a < behind for a in varying_axes(updates)):
        return freeze_inputs(flow, node, f"ScatterND ({node.name}) takes channels apart")
    flow.tie(labels.reshape(labels.shape[depth:]), updates.reshape(updates.shape[behind:]))
    wide = max(labels, updates.reshape((1,) * depth + updates.shape[behind:]), key=lambda part: part.size)
    return flow.write(node.outputs[0], wide)


RULES: dict[str, Callable[[Flow, ir.Node], None]] = {
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GridSample": _grid_sample,
    "CumSum": _cumulative,
    "ScatterND": _scatter_nd,
}
