"""Label rules of operators that only move elements: labels move as the elements do.

Sizes and positions stored in the file (the target of a Reshape, pads, bounds of a Slice) are rewritten on removal
(`removal.py`); where they are computed and channels would change them, the channels are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.channels.known_elements import known_elements
from onnxpress.model.channels.labels import (
    Flow,
    Labels,
    compact,
    freeze_inputs,
    labels_along,
    labels_of_sizes,
    stored_array,
    varying_axes,
)


def _reshape(flow: Flow, node: ir.Node) -> None:
    labels, source, shape = flow.read(node.inputs[0]), flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if labels is None or shape is None or source is None:
        return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) of unknown shape")
    if not varying_axes(labels):
        return flow.write(node.outputs[0], np.broadcast_to(labels.reshape(()), (1,) * len(shape)).copy())
    moved = compact(np.broadcast_to(labels, source).reshape(shape))
    if (
        node.op_type == "Reshape"
        and read.constant(node.inputs[1]) is None
        and not _target_follows_channels(flow, node, moved)
    ):
        return freeze_inputs(flow, node, f"Reshape ({node.name}) to a computed shape")
    return flow.write(node.outputs[0], moved)


def _target_follows_channels(flow: Flow, node: ir.Node, moved: Labels) -> bool:
    """Whether a computed target changes with the channels.

    It does where the axis is inferred (-1), copied (0), or computed from the size of a value with the same channels.
    """
    target = node.inputs[1]
    name = target.name or "" if target is not None else ""
    numbers, sizes = flow.trace.values.get(name), flow.sizes.get(name)
    if _same_as_shape_of(flow, target, moved):
        return True
    if numbers is None or len(numbers) != moved.ndim:
        return False
    for axis in varying_axes(moved):
        if numbers[axis] == -1:
            continue
        copied = numbers[axis] == 0 and node.inputs[0] is not None
        origins = {(node.inputs[0].name or "", axis)} if copied and node.inputs[0] is not None else set()
        if not size_follows(flow, origins if copied else sizes[axis] if sizes else set(), moved, axis):
            return False
    return True


def size_follows(flow: Flow, origins: Collection[tuple[str, int]], moved: Labels, axis: int) -> bool:
    """Whether a computed size is that of an axis with the same channels.

    origins: the (value, axis) pairs whose sizes it was computed from
    """
    if len(origins) != 1:
        return False
    ((other, place),) = origins
    labels = flow.of.get(other)
    count = moved.shape[axis]
    if labels is None or labels.ndim <= place or labels.shape[place] != count:
        return False
    return bool(np.array_equal(labels_along(labels, place, count), labels_along(moved, axis, count)))


def _same_as_shape_of(flow: Flow, target: ir.Value | None, moved: Labels) -> bool:
    """Whether a computed target is the whole shape of a value with the same labels, and so changes with them."""
    maker = target.producer() if target is not None else None
    if maker is None or maker.op_type != "Shape" or maker.attributes:
        return False
    labels = flow.read(maker.inputs[0])
    return labels is not None and labels.shape == moved.shape and bool((labels == moved).all())


def _follows_shape_of(flow: Flow, target: ir.Value | None, wide: Labels) -> bool:
    """Whether a computed target is the shape of a value that can lose the slices of these labels; links them.

    Norms are broadcast like this (x / Expand(|x|, Shape(x))): the norm has no elements along the axis it is taken over,
    x has.
    """
    if _same_as_shape_of(flow, target, wide):
        return True
    maker = target.producer() if target is not None else None
    labels = (
        flow.read(maker.inputs[0]) if maker is not None and maker.op_type == "Shape" and not maker.attributes else None
    )
    axes = varying_axes(wide)
    if labels is None or labels.ndim != wide.ndim or len(axes) != 1 or labels.shape[axes[0]] != wide.shape[axes[0]]:
        return False
    count = wide.shape[axes[0]]
    flow.link(labels_along(wide, axes[0], count), labels_along(labels, axes[0], count).reshape(count, -1))
    return True


def _transpose(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    if labels is None:
        return freeze_inputs(flow, node, f"Transpose ({node.name}) of a tensor without channels")
    order = read.ints_attribute(node, "perm") or list(range(labels.ndim))[::-1]
    return flow.write(node.outputs[0], labels.transpose(order))


def _concat(flow: Flow, node: ir.Node) -> None:
    rank = flow.rank(node.outputs[0])
    axis = axis_of(node, max(rank, 1))
    parts: list[tuple[Labels, int]] = []
    fixed: dict[int, tuple[int, ...]] = {}
    for index, value in enumerate(node.inputs):
        labels, shape = flow.read(value), flow.shape(value)
        constant = stored_array(value)
        if labels is None and constant is not None:
            labels, shape = np.zeros((1,) * rank, np.int64), constant.shape
            fixed[index] = constant.shape
        if labels is None or shape is None:
            return freeze_inputs(flow, node, f"Concat ({node.name}) with a tensor without channels")
        parts.append((labels, shape[axis]))
    box = np.broadcast_shapes(*(tuple(1 if a == axis else s for a, s in enumerate(p.shape)) for p, _ in parts))
    wide = [np.broadcast_to(p, tuple(size if a == axis else s for a, s in enumerate(box))) for p, size in parts]
    if all(not any(a != axis for a in varying_axes(p)) for p, _ in parts):
        return flow.write(node.outputs[0], np.concatenate(wide, axis=axis))
    if all(
        not varying_axes(p) or axis not in varying_axes(p) for p, _ in parts
    ):  # the parts' channels are tied position by position
        full = [p.take([0], axis=axis) for i, p in enumerate(wide) if i not in fixed and p.shape[axis]]
        first, *others = full or [
            next((p for p in wide if p.shape[axis]), wide[0])
        ]  # the past of a first step is empty
        for other in others:
            flow.tie(first, other)
        for index, sizes in fixed.items():
            for a in (a for a in varying_axes(first) if sizes[a] > 1):
                flow.slice(node, index, a, "along", labels_along(first, a, sizes[a]))
        return flow.write(node.outputs[0], first)
    return flow.write(node.outputs[0], np.concatenate(wide, axis=axis))


def _split(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    rank = labels.ndim if labels is not None else 0
    axis = axis_of(node, max(rank, 1))
    computed = len(node.inputs) > 1 and node.inputs[1] is not None and read.constant(node.inputs[1]) is None
    if labels is None or (computed and axis in varying_axes(labels)):
        return freeze_inputs(flow, node, f"Split ({node.name}) into computed sizes")
    start = 0
    for value in node.outputs:
        size = (flow.shape(value) or (0,) * rank)[axis]
        part = labels.take(range(start, start + size), axis=axis) if axis in varying_axes(labels) else labels
        flow.write(value, part)
        start += size
    return None


def _pad(flow: Flow, node: ir.Node) -> None:
    labels = flow.read(node.inputs[0])
    pads_value = node.inputs[1] if len(node.inputs) > 1 else None
    pads = read.constant(pads_value) if pads_value is not None else np.array(read.ints_attribute(node, "pads"))
    axes = () if labels is None else varying_axes(labels)
    if labels is not None and axes and pads is None and _pads_nothing(flow, node, labels.ndim, axes):
        return flow.write(node.outputs[0], labels)
    if labels is None or (axes and (pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None))):
        return freeze_inputs(flow, node, f"Pad ({node.name}) by computed amounts")
    padded = [a for a in axes if pads is not None and (pads[a] or pads[a + labels.ndim])]
    if not padded:
        return flow.write(node.outputs[0], labels)
    assert pads is not None
    (axis, *more) = padded
    before, after = int(pads[axis]), int(pads[axis + labels.ndim])
    if more or len(axes) > 1 or not read.fills_constant(node) or min(before, after) < 0:
        return freeze_inputs(flow, node, f"Pad ({node.name}) reflects or crops channels")
    vector = np.concatenate([flow.new_labels(before), labels.reshape(-1), flow.new_labels(after)])
    shape = [1] * labels.ndim
    shape[axis] = len(vector)
    return flow.write(node.outputs[0], vector.reshape(shape))


def _pads_nothing(flow: Flow, node: ir.Node, rank: int, axes: tuple[int, ...]) -> bool:
    """Whether a Pad by computed amounts leaves these axes alone in every run."""
    amounts = known_elements(node.inputs[1], flow.trace)
    named = node.inputs[3] if len(node.inputs) > 3 else None
    chosen = np.arange(rank) if named is None else read.constant(named)
    if amounts is None or chosen is None or amounts.size != 2 * chosen.size:
        return False
    places = [int(a) % rank for a in chosen]
    found = [amounts.ravel()[[places.index(a), places.index(a) + len(places)]] for a in axes if a in places]
    return all(amount == 0 for pair in found for amount in pair)


def slice_bounds(flow_shape: tuple[int, ...], node: ir.Node) -> dict[int, slice] | None:
    """The slice that a Slice with constant operands takes of each axis it names; None where they are computed."""
    if len(node.inputs) > 1:
        given = [read.constant(v) if v is not None else None for v in node.inputs[1:]]
        if any(g is None and v is not None for g, v in zip(given, node.inputs[1:], strict=True)):
            return None
        starts, ends, axes, steps = [
            None if g is None else [int(i) for i in g.ravel()] for g in [*given, None, None][:4]
        ]
    else:
        starts, ends = read.ints_attribute(node, "starts"), read.ints_attribute(node, "ends")
        axes, steps = read.ints_attribute(node, "axes") or None, None
    if starts is None or ends is None:
        return None
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    found = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        place = axis % len(flow_shape)
        stop = None if step < 0 and end < -flow_shape[place] else end
        found[place] = slice(start, stop, step)
    return found


def _slice(flow: Flow, node: ir.Node) -> None:
    labels, source, target = flow.read(node.inputs[0]), flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if labels is None or source is None or target is None:
        return freeze_inputs(flow, node, f"Slice ({node.name}) of unknown shape")
    bounds = slice_bounds(source, node)
    if bounds is None:
        if any(source[a] != target[a] or _reversed(node) for a in varying_axes(labels)):
            return freeze_inputs(flow, node, f"Slice ({node.name}) takes channels at computed positions")
        return flow.write(node.outputs[0], labels)
    index = [bounds.get(a, slice(None)) if a in varying_axes(labels) else slice(None) for a in range(labels.ndim)]
    if any(i.step not in (None, 1) for i in index):
        return freeze_inputs(flow, node, f"Slice ({node.name}) takes channels with a stride")
    return flow.write(node.outputs[0], labels[tuple(index)])


def _reversed(node: ir.Node) -> bool:
    """Whether a Slice may reverse an axis (a negative or unknown step)."""
    if len(node.inputs) < 5 or node.inputs[4] is None:
        return False
    steps = read.constant(node.inputs[4])
    return steps is None or bool((steps < 0).any())


def axis_of(node: ir.Node, rank: int) -> int:
    """The axis that a node names, from 0 on."""
    return read.int_attribute(node, "axis", 0) % rank


def _held_shape(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of an initializer, which may be the default of an input; () where there is none."""
    tensor = value.const_value if value is not None else None
    return () if tensor is None else tuple(int(d) for d in tensor.shape.numpy())


def _expand(flow: Flow, node: ir.Node) -> None:
    labels, shape = flow.read(node.inputs[0]), flow.shape(node.outputs[0])
    fill = read.constant(node.inputs[0])
    single = fill is not None and fill.size == 1
    unlabelled = labels is not None and not varying_axes(labels)
    if (single or unlabelled) and shape is not None and node.inputs[1] is not None:
        reason = f"Expand ({node.name}) makes a tensor of their number"
        found = labels_of_sizes(flow, node.inputs[1], shape, reason)
        source = flow.shape(node.inputs[0]) or _held_shape(node.inputs[0])
        own = (1,) * (len(shape) - len(source)) + source
        if any(own[a] != 1 for a in varying_axes(found)):  # not repeated there, so that it cannot shrink
            flow.freeze(found, reason)
            found = np.zeros((1,) * len(shape), np.int64)
        return flow.write(node.outputs[0], found)
    if labels is None or shape is None:
        return freeze_inputs(flow, node, f"Expand ({node.name}) of a tensor without channels")
    wide = labels.reshape((1,) * (len(shape) - labels.ndim) + labels.shape)
    target = read.constant(node.inputs[1])
    elements = known_elements(node.inputs[1], flow.trace)
    pieces = None if elements is None else elements.ravel().tolist()
    known = pieces is not None and all(
        a < len(shape) - len(pieces)
        or pieces[a - len(shape) + len(pieces)] in ((1,) if target is None else (1, shape[a]))
        for a in varying_axes(wide)
    )
    if varying_axes(wide) and not known and not _follows_shape_of(flow, node.inputs[1], wide):
        return freeze_inputs(flow, node, f"Expand ({node.name}) to a computed shape")
    return flow.write(node.outputs[0], wide)


def _tile(flow: Flow, node: ir.Node) -> None:
    labels, repeats = flow.read(node.inputs[0]), read.constant(node.inputs[1]) if len(node.inputs) == 2 else None
    if labels is None or (repeats is None and varying_axes(labels)):
        return freeze_inputs(flow, node, f"Tile ({node.name}) with computed repeats")
    times = [int(repeats[a]) if repeats is not None and a in varying_axes(labels) else 1 for a in range(labels.ndim)]
    return flow.write(node.outputs[0], np.tile(labels, times))


def _depth_to_space(flow: Flow, node: ir.Node) -> None:
    """The channels that form one output channel are removed together."""
    labels, source = flow.read(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or source is None or varying_axes(labels) not in ((), (1,)):
        return freeze_inputs(flow, node, f"DepthToSpace ({node.name}) of unknown channels")
    block = read.int_attribute(node, "blocksize", 1) ** 2
    vector = np.broadcast_to(labels.reshape(-1), (source[1],))
    mode = read.attribute(node, "mode", "DCR")
    rows = vector.reshape(-1, block) if mode in ("CRD", b"CRD") else vector.reshape(block, -1).T
    flow.tie(rows, rows[:, :1])
    return flow.write(node.outputs[0], rows[:, 0].reshape(1, -1, 1, 1))


def _space_to_depth(flow: Flow, node: ir.Node) -> None:
    labels, source = flow.read(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or source is None or varying_axes(labels) not in ((), (1,)):
        return freeze_inputs(flow, node, f"SpaceToDepth ({node.name}) of unknown channels")
    block = read.int_attribute(node, "blocksize", 1) ** 2
    vector = np.broadcast_to(labels.reshape(-1), (source[1],))
    return flow.write(node.outputs[0], np.tile(vector, block).reshape(1, -1, 1, 1))


RULES: dict[str, Callable[[Flow, ir.Node], None]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Pad": _pad,
    "Slice": _slice,
    "Expand": _expand,
    "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
