"""Channel labels: which channels of which tensors belong together.

Every producer of channels (Conv, Gemm, MatMul, recurrent layers, zero padding of a channel axis) gives each of its
output channels a new label.  Operators pass labels on, tie them (a residual Add: position by position), mix them (a
Softmax over channels: all or none are removed) or freeze them (an operator without a rule, a graph output).  Ties are
edges; connected components are the channels that can only be removed together.  (This is the coupling of DepGraph, Fang
et al. 2023, found on labels instead of index maps per operator; `coupled_slices.py` and `groups.py` use the result.)

A label array has the rank of its tensor, and size 1 on every axis along which labels do not vary.  Label 0 means
frozen.  Labels may vary along several axes (heads x dims): a removal must then leave a box, so whole slices are
removed.  Where one tensor must lose the slices that another one loses although their elements differ (heads of scores
and heads of values), a link says so: its label is removed exactly where all of its members are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.trace import Trace

Labels = np.ndarray


@dataclass(frozen=True)
class Slot:
    """One axis of one constant operand that is sliced along with the channels.

    role:          "out" (rows that produce channels), "in" (columns that read them), "along" (constants by channel)
    labels:        [positions] or [positions, K]: a position is removed when all of its labels are
    node, operand: where the constant is read
    layer:         the node whose weight it is, where a DequantizeLinear lies between
    """

    node: str
    operand: int
    axis: int
    role: str
    labels: np.ndarray
    layer: str

    def stays(self, keep: np.ndarray) -> np.ndarray:
        """[positions] whether each is kept.  keep: by label."""
        found = keep[self.labels]
        return np.asarray(found if found.ndim == 1 else found.any(axis=1))


@dataclass(frozen=True)
class Link:
    """Label p[i] is removed exactly where all of members[i] are.  p: [n]; members: [n, K]."""

    p: np.ndarray
    members: np.ndarray


@dataclass(frozen=True)
class Product:
    """Channels that two computed tensors are multiplied and summed over.  labels: of the operand, in its rank."""

    node: str
    operand: int
    labels: Labels


@dataclass
class Flow:
    """State and result of one label propagation.

    of:       labels by value name
    slots:    axes of constants that are sliced with the channels
    boxes:    label arrays that no value has but that must remain boxes as well (groups x channels of a grouped Conv)
    counts:   (node, attribute, labels) where an attribute counts slices (group, hidden_size, num_heads) along the first
              axis of the labels
    edges:    ties between labels
    frozen:   labels that must stay, and why
    mixed:    labels that can only be removed together, and why
    sizes:    for integer values, the (value, axis) pairs that each of their elements was computed from
    count:    number of labels
    """

    trace: Trace
    of: dict[str, Labels] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    boxes: list[Labels] = field(default_factory=list)
    counts: list[tuple[str, str, np.ndarray]] = field(default_factory=list)
    edges: list[np.ndarray] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    mixed: list[tuple[np.ndarray, str]] = field(default_factory=list)
    sizes: dict[str, list[frozenset[tuple[str, int]]]] = field(default_factory=dict)
    count: int = 1

    def new_labels(self, *shape: int) -> np.ndarray:
        """New labels of a shape."""
        number = int(np.prod(shape))
        labels = np.arange(self.count, self.count + number, dtype=np.int64).reshape(shape)
        self.count += number
        return labels

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Tie labels, position by position (broadcast)."""
        a, b = np.broadcast_arrays(a, b)
        pairs = np.stack([a.ravel(), b.ravel()], axis=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if len(pairs):
            self.edges.append(np.unique(pairs, axis=0))

    def link(self, p: np.ndarray, members: np.ndarray) -> None:
        """Link p [n] to members [n, K].  A single member is a tie."""
        if members.shape[1] == 1:
            self.tie(p, members[:, 0])
        else:
            self.links.append(Link(p, members))

    def mix(self, labels: Labels, axes: tuple[int, ...], reason: str) -> Labels:
        """Tie the labels along these axes: all or none are removed.  Returns the labels with size 1 there."""
        axes = tuple(a for a in axes if labels.shape[a] > 1)
        if not axes:
            return labels
        first = labels
        for axis in axes:
            first = first.take([0], axis=axis)
        self.tie(labels, first)
        self.mixed.append((np.unique(labels), reason))
        return first

    def freeze(self, labels: Labels | None, reason: str) -> None:
        """Keep the channels of these labels."""
        if labels is None:
            return
        found = np.unique(labels)
        found = found[found != 0]
        if len(found):
            self.tie(found, np.zeros_like(found))
            self.frozen.append((found, reason))

    def slice(self, node: ir.Node, operand: int, axis: int, role: str, labels: np.ndarray) -> None:
        """Slice an axis of a node's constant operand with the labels.

        Scales of an operand stored as integers are sliced as well.
        """
        name, value = node.name or "", node.inputs[operand]
        holder = value.producer() if read.constant(value) is None and value is not None else None
        if holder is None:
            self.slots.append(Slot(name, operand, axis, role, labels, name))
            return
        self.slots.append(Slot(holder.name or "", 0, axis, role, labels, name))
        whole = stored_array(value)
        rank = 0 if whole is None else whole.ndim
        for index, scales in enumerate(holder.inputs[1:], 1):
            array = read.constant(scales)
            if array is not None and array.size > 1 and read.int_attribute(holder, "axis", 1) % rank == axis:
                self.slots.append(Slot(holder.name or "", index, 0, "along", labels, name))

    def rank(self, value: ir.Value) -> int:
        shape = self.trace.shape(value.name)
        return len(shape) if shape is not None else 0

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        return None if value is None else self.trace.shape(value.name)

    def blank(self, value: ir.Value) -> Labels:
        """Labels of a value without removable channels."""
        return np.zeros((1,) * self.rank(value), np.int64)

    def read(self, value: ir.Value | None) -> Labels | None:
        return None if value is None or value.name is None else self.of.get(value.name)

    def write(self, value: ir.Value, labels: Labels) -> None:
        """Store labels of a value, in compact form."""
        if value.name:
            self.of[value.name] = compact(labels)


def stored_array(value: ir.Value | None) -> np.ndarray | None:
    """The array that a value always holds, or the integers that a DequantizeLinear converts to it.

    Only its shape is used.
    """
    found = read.constant(value)
    if found is not None or value is None:
        return found
    maker = value.producer()
    return read.constant(maker.inputs[0]) if maker is not None and dequantizes_constants(maker) else None


def dequantizes_constants(node: ir.Node) -> bool:
    """Whether the node is a DequantizeLinear of constants, not blockwise."""
    plain = read.standard(node) and node.op_type == "DequantizeLinear" and not read.int_attribute(node, "block_size", 0)
    return plain and all(v is None or read.constant(v) is not None for v in node.inputs)


def compact(labels: Labels) -> Labels:
    """Shrink every axis along which the labels do not vary to size 1."""
    for axis in range(labels.ndim):
        if labels.shape[axis] > 1:
            first = labels.take([0], axis=axis)
            if (labels == first).all():
                labels = first
    return labels


def varying_axes(labels: Labels) -> tuple[int, ...]:
    """The axes along which the labels vary."""
    return tuple(a for a, size in enumerate(labels.shape) if size > 1)


def labels_along(labels: Labels, axis: int, size: int) -> np.ndarray:
    """Labels at every position of one axis: [size], or [size, K] where labels vary along other axes as well."""
    rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    rows = np.broadcast_to(rows, (size, rows.shape[1]))
    return rows[:, 0] if rows.shape[1] == 1 else rows


def labels_of_sizes(flow: Flow, target: ir.Value, shape: tuple[int, ...], reason: str) -> Labels:
    """Labels of a constant that is made in a computed shape: those of the axes that its sizes were told from.

    Where they were told in a way that no labels express, the channels are frozen for the reason.

    target: the sizes. shape: the traced ones, of which the target may give the last only.
    """
    sizes = flow.sizes.get(target.name or "", [])
    blank = np.zeros((1,) * len(shape), np.int64)
    shift = len(shape) - len(sizes)
    origins = {a + shift: one for a, one in enumerate(sizes)}
    names = {name for one in sizes for name, _ in one}
    if not shift and len(names) == 1 and all(one == {(next(iter(names)), a)} for a, one in origins.items()):
        labels = flow.of.get(next(iter(names)))
        return blank if labels is None else labels
    changing = {
        (axis, name, place)
        for axis, one in origins.items()
        for name, place in one
        if (labels := flow.of.get(name)) is not None and place in varying_axes(labels)
    }
    if len(changing) == 1:
        ((axis, name, place),) = changing
        along = labels_along(flow.of[name], place, flow.of[name].shape[place])
        if len(origins[axis]) == 1 and along.shape == (shape[axis],):
            return along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    for _, name, _ in sorted(changing):
        flow.freeze(flow.of[name], reason)
    return blank


def freeze_inputs(flow: Flow, node: ir.Node, reason: str) -> None:
    """Treat a node as opaque: its inputs are frozen, its outputs have no removable channels."""
    for value in node.inputs:
        flow.freeze(flow.read(value), reason)
    for value in node.outputs:
        if value.name:
            flow.of[value.name] = flow.blank(value)
