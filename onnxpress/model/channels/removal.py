"""Removal of channels from a model, and the equivalent mask.

`remove` slices weights, and rewrites operators that store sizes, counts or positions.  `mask` defines the meaning of a
removal: the original model whose readers ignore the channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.channels.groups import Channels, Removal
from onnxpress.model.channels.labels import varying_axes
from onnxpress.model.channels.layout_rules import slice_bounds


def remove(model: ir.Model, channels: Channels, removal: Removal) -> ir.Model:
    """A clone without the channels.  Raises ValueError where a removal would leave nothing along an axis."""
    clone = model.clone()
    keep = channels.keep_mask(removal)
    nodes = {n.name: n for n in clone.graph}
    cuts: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    for slot in channels.flow.slots:
        stays = slot.stays(keep)
        if not stays.any():
            raise ValueError(f"a removal must leave a channel of {slot.node}")
        if not stays.all():
            cuts.setdefault((slot.node, slot.operand), {})[slot.axis] = np.flatnonzero(stays)
    _slice(clone, nodes, cuts)
    for name, attribute, labels in channels.flow.counts:
        stays = keep[labels].reshape(len(labels), -1).any(axis=1)
        if not stays.all():
            edit.set_int(nodes[name], attribute, int(stays.sum()))
    for node in clone.graph:
        writer = _WRITERS.get(node.op_type) if read.standard(node) else None
        if writer is not None and node.name:
            writer(clone, node, _Sizes(channels, keep, node))
    edit.forget_shapes(clone)
    return clone


def _slice(
    model: ir.Model, nodes: dict[str | None, ir.Node], cuts: dict[tuple[str, int], dict[int, np.ndarray]]
) -> None:
    """Slice constants; a constant that all of its readers slice equally remains shared."""
    done: set[int] = set()
    for (name, operand), axes in cuts.items():
        node = nodes[name]
        value = node.inputs[operand]
        assert value is not None
        if id(value) in done:
            continue
        array = np.asarray(read.constant(value))
        for axis, positions in axes.items():
            array = np.take(array, positions, axis=axis)
        users = [(u.node.name or "", u.idx) for u in value.uses()]
        if value.is_initializer() and all(_same_cuts(cuts.get(u), axes) for u in users):
            edit.set_constant(value, array)
            done.add(id(value))
        else:
            edit.set_input(model, node, operand, array, f"{name}_in{operand}")


def _same_cuts(one: dict[int, np.ndarray] | None, two: dict[int, np.ndarray]) -> bool:
    return one is not None and set(one) == set(two) and all(np.array_equal(one[a], two[a]) for a in two)


class _Sizes:
    """Sizes of a node's first input and of its outputs, before and after a removal."""

    def __init__(self, channels: Channels, keep: np.ndarray, node: ir.Node) -> None:
        self._flow, self._keep, self._node = channels.flow, keep, node

    def source(self) -> dict[int, np.ndarray]:
        return self._stays(self._node.inputs[0])

    def output(self, number: int = 0) -> dict[int, np.ndarray]:
        return self._stays(self._node.outputs[number])

    def full(self, number: int = 0) -> tuple[int, ...]:
        """The shape of an output before the removal."""
        return self._flow.shape(self._node.outputs[number]) or ()

    def full_source(self) -> tuple[int, ...] | None:
        return self._flow.shape(self._node.inputs[0])

    def rank(self) -> int:
        return len(self.full())

    def _stays(self, value: ir.Value | None) -> dict[int, np.ndarray]:
        """By axis that loses positions, which of its positions stay."""
        labels = self._flow.read(value)
        if labels is None:
            return {}
        kept = self._keep[labels]
        found = {a: np.moveaxis(kept, a, 0).reshape(kept.shape[a], -1).any(axis=1) for a in varying_axes(labels)}
        return {a: stays for a, stays in found.items() if not stays.all()}


def _reshape(model: ir.Model, node: ir.Node, sizes: _Sizes) -> None:
    target = read.constant(node.inputs[1])
    if target is None:  # the target is computed again
        return
    new = np.array(target)
    shift = sizes.rank() - len(new)  # an Expand may name the last axes only
    for axis, stays in sizes.output().items():
        if axis >= shift and new[axis - shift] > 1:
            new[axis - shift] = int(stays.sum())
    if not np.array_equal(new, target):
        edit.set_input(model, node, 1, new, f"{node.name}_shape")


def _split(model: ir.Model, node: ir.Node, sizes: _Sizes) -> None:
    axis = read.int_attribute(node, "axis", 0) % max(sizes.rank(), 1)
    if axis not in sizes.source():
        return
    found = []
    for number in range(len(node.outputs)):
        stays = sizes.output(number).get(axis)
        found.append(sizes.full(number)[axis] if stays is None else int(stays.sum()))
    node.attributes.pop("num_outputs", None)
    if read.opset(model) >= 13:
        edit.set_input(model, node, 1, np.array(found, np.int64), f"{node.name}_split")
    else:
        edit.set_ints(node, "split", found)


def _pad(model: ir.Model, node: ir.Node, sizes: _Sizes) -> None:
    given = read.constant(node.inputs[1]) if len(node.inputs) > 1 else np.array(read.ints_attribute(node, "pads"))
    if given is None:
        return
    pads = np.array(given)
    rank = len(pads) // 2
    for axis, stays in sizes.output().items():
        after = int(pads[axis + rank])
        pads[axis], pads[axis + rank] = (
            int(stays[: int(pads[axis])].sum()),
            int(stays[len(stays) - after :].sum()) if after else 0,
        )
    if np.array_equal(pads, given):
        return
    if len(node.inputs) > 1:
        edit.set_input(model, node, 1, pads, f"{node.name}_pads")
    else:
        edit.set_ints(node, "pads", pads.tolist())


def _slice_bounds(model: ir.Model, node: ir.Node, sizes: _Sizes) -> None:
    """A Slice of channels: from the first to after the last of its channels that stay."""
    shape = sizes.full_source()
    bounds = slice_bounds(shape, node) if shape is not None else None
    if bounds is None or shape is None:
        return
    starts, ends, changed = {}, {}, False
    for axis, bound in bounds.items():
        starts[axis], ends[axis] = bound.start, bound.stop
        stays = sizes.source().get(axis)
        if stays is not None:
            first, last, _ = bound.indices(shape[axis])
            starts[axis], ends[axis], changed = int(stays[:first].sum()), int(stays[:last].sum()), True
    if not changed:
        return
    order = list(bounds)
    if len(node.inputs) > 1:
        edit.set_input(model, node, 1, np.array([starts[a] for a in order], np.int64), f"{node.name}_starts")
        edit.set_input(model, node, 2, np.array([ends[a] for a in order], np.int64), f"{node.name}_ends")
        edit.set_input(model, node, 3, np.array(order, np.int64), f"{node.name}_axes")
    else:
        edit.set_ints(node, "starts", [starts[a] for a in order])
        edit.set_ints(node, "ends", [ends[a] for a in order])
        edit.set_ints(node, "axes", order)


def _gather(model: ir.Model, node: ir.Node, sizes: _Sizes) -> None:
    """A Gather of channels: those of its channels that stay, by their new indices."""
    shape, index = sizes.full_source(), read.constant(node.inputs[1])
    if shape is None or index is None:
        return
    axis = read.int_attribute(node, "axis", 0) % len(shape)
    stays = sizes.source().get(axis)
    if stays is None:
        return
    number = np.cumsum(stays) - 1
    flat = np.where(index < 0, index + len(stays), index)
    left = flat if flat.ndim == 0 else flat[stays[flat]]
    edit.set_input(model, node, 1, number[left].astype(index.dtype), f"{node.name}_indices")


def _resize(model: ir.Model, node: ir.Node, sizes: _Sizes) -> None:
    target = read.constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if target is None or target.size == 0:
        return
    axes = read.ints_attribute(node, "axes") or list(range(target.size))
    new = np.array(target)
    for axis, stays in sizes.output().items():
        if axis in axes:
            new[axes.index(axis)] = int(stays.sum())
    if not np.array_equal(new, target):
        edit.set_input(model, node, 3, new, f"{node.name}_sizes")


_WRITERS: dict[str, Callable[[ir.Model, ir.Node, _Sizes], None]] = {
    "Reshape": _reshape,
    "Split": _split,
    "Pad": _pad,
    "Slice": _slice_bounds,
    "Gather": _gather,
    "Expand": _reshape,
    "Resize": _resize,
}


def _zero(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """What represents zero in a stored weight: the zero point where it is stored as integers."""
    point = read.constant(node.inputs[2]) if node.op_type == "DequantizeLinear" and len(node.inputs) > 2 else None
    if point is None or point.size == 1:
        return np.zeros((), weight.dtype) if point is None else point.reshape(())
    axis = read.int_attribute(node, "axis", 1) % weight.ndim
    return point.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])


def mask(model: ir.Model, channels: Channels, removal: Removal) -> ir.Model:
    """A clone that computes what a removal means, with nothing removed.

    Every reader's weights for the channels are zero, and so are the channels themselves where two computed tensors are
    multiplied and summed over them.
    """
    clone = model.clone()
    keep = channels.keep_mask(removal)
    nodes = {n.name: n for n in clone.graph}
    for slot in channels.flow.slots:
        stays = slot.stays(keep)
        if slot.role != "in" or stays.all():
            continue
        weight = np.array(read.constant(nodes[slot.node].inputs[slot.operand]))
        index: list[slice | np.ndarray] = [slice(None)] * weight.ndim
        index[slot.axis] = np.flatnonzero(~stays)
        weight[tuple(index)] = np.broadcast_to(_zero(nodes[slot.node], weight), weight.shape)[tuple(index)]
        edit.set_input(clone, nodes[slot.node], slot.operand, weight, f"{slot.node}_masked")
    for product in channels.flow.products:
        stays = keep[product.labels]
        node = nodes[product.node]
        source = node.inputs[product.operand]
        if stays.all() or source is None:
            continue
        factor = edit.add_constant(
            clone, stays.astype(np.float32 if source.dtype is None else source.dtype.numpy()), f"{node.name}_mask"
        )
        node.replace_input_with(
            product.operand, edit.insert_before(clone, node, "Mul", [source, factor], f"{node.name}_masked")
        )
    return clone
