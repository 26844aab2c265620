"""Groups of channels that can be removed, and their removal.

`label_walk.py` says which channel positions are one; here they become groups (the removable channels that sit in the
same places of the same weights), and a removal becomes slices of weights and new sizes in the few operators that
have them written down.  `mask` is the meaning of a removal: the original model whose readers ignore the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxpress.model import edit, read
from onnxpress.model.label_walk import propagate
from onnxpress.model.labels import Flow
from onnxpress.model.trace import Trace

Removal = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Place:
    """Where a group lies in a constant operand: positions[j] are those of channel j along the axis."""

    node: str
    operand: int
    axis: int
    role: str
    positions: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Group:
    """`size` channels that live in the same places.  name: the node that makes them, stable for one file.

    bottleneck: narrower than both what its maker reads and what its readers make.
    """

    name: str
    size: int
    places: tuple[Place, ...]
    bottleneck: bool = False

    @property
    def makers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p.node for p in self.places if p.role == "out"))

    @property
    def readers(self) -> tuple[Place, ...]:
        return tuple(p for p in self.places if p.role == "in")

    @property
    def hidden(self) -> bool:
        """An inner width of a block: one maker, and no bottleneck.  More makers: a residual spine, where all must agree."""
        return len(self.makers) == 1 and not self.bottleneck


@dataclass(frozen=True)
class Refusal:
    """A weight-bearing node whose output channels stay, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Channels:
    """The coupling of one model: removable groups, refusals, and what a removal needs to be carried out."""

    groups: tuple[Group, ...]
    refused: tuple[Refusal, ...]
    flow: Flow = field(repr=False)
    component: np.ndarray = field(repr=False)
    members: dict[str, np.ndarray] = field(repr=False)

    def group(self, name: str) -> Group:
        return next(g for g in self.groups if g.name == name)

    def width(self, place: Place) -> int:
        """Positions of the whole axis a place lies on (other groups may share it through Concat or Pad)."""
        slot = next(
            s for s in self.flow.slots if (s.node, s.operand, s.axis) == (place.node, place.operand, place.axis)
        )
        return len(slot.labels)

    def keep_mask(self, removal: Removal) -> np.ndarray:
        """For every label whether its channel stays; indexed by label."""
        gone = np.zeros(int(self.component.max()) + 1, bool)
        for name, channels in removal.items():
            gone[self.members[name][np.asarray(list(channels), dtype=np.int64)]] = True
        return np.asarray(~gone[self.component])

    def kept(self, value: str, removal: Removal) -> np.ndarray | None:
        """Positions of a value's channel axis that stay; None where the value has no removable channels."""
        labels = self.flow.of.get(value)
        if labels is None or labels.size <= 1:
            return None
        return np.flatnonzero(self.keep_mask(removal)[labels.reshape(-1)])


def analyse(model: ir.Model, trace: Trace) -> Channels:
    """Find the groups of a canonical model.  trace: shapes of one run (see runtime.session.trace)."""
    flow = propagate(model, trace)
    component = _components(flow)
    by_signature: dict[tuple[tuple[int, int], ...], list[int]] = {}
    where: dict[int, list[tuple[int, np.ndarray]]] = {}
    for index, slot in enumerate(flow.slots):
        roots = component[slot.labels]
        order = np.argsort(roots, kind="stable")
        values, starts = np.unique(roots[order], return_index=True)
        for root, positions in zip(values, np.split(order, starts[1:]), strict=True):
            if root != component[0]:
                where.setdefault(int(root), []).append((index, positions))
    for root, found in where.items():
        by_signature.setdefault(tuple((i, len(p)) for i, p in found), []).append(root)
    groups: list[Group] = []
    members: dict[str, np.ndarray] = {}
    for signature, roots in by_signature.items():
        if not any(flow.slots[i].role == "in" for i, _ in signature):
            continue  # nothing reads them through a weight: removal would change what leaves the analysed part
        makers = [i for i, _ in signature if flow.slots[i].role == "out"]
        if not makers or any(len(set(flow.slots[i].labels.tolist())) < 2 for i in makers):
            continue
        first = makers[0]
        roots.sort(key=lambda r, f=first: int(next(p for i, p in where[r] if i == f)[0]))  # type: ignore[misc]
        name = flow.slots[first].node
        name = name if name not in members else f"{name}#{sum(g.name.split('#')[0] == name for g in groups)}"
        members[name] = np.array(roots)
        places = tuple(
            Place(
                flow.slots[i].node,
                flow.slots[i].operand,
                flow.slots[i].axis,
                flow.slots[i].role,
                tuple(where[r][k][1] for r in roots),
            )
            for k, (i, _) in enumerate(signature)
        )
        groups.append(Group(name, len(roots), places, _narrowest(model, places, len(roots))))
    free = {p.node for g in groups for p in g.places if p.role == "out"}
    return Channels(tuple(groups), _refusals(model, flow, component, free), flow, component, members)


def _narrowest(model: ir.Model, places: tuple[Place, ...], size: int) -> bool:
    nodes = {n.name: n for n in model.graph}

    def other_side(place: Place) -> int:
        weight = read.constant(nodes[place.node].inputs[place.operand])
        return size if weight is None or weight.ndim < 2 else weight.shape[1 - place.axis] if place.axis < 2 else size

    sides = {role: [other_side(p) for p in places if p.role == role and p.operand == 1] for role in ("out", "in")}
    return all(side and size < min(side) for side in sides.values())


def _components(flow: Flow) -> np.ndarray:
    pairs = np.concatenate(flow.edges) if flow.edges else np.empty((0, 2), np.int64)
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(flow.count, flow.count))
    return np.asarray(connected_components(graph, directed=False)[1])


def _refusals(model: ir.Model, flow: Flow, component: np.ndarray, free: set[str]) -> tuple[Refusal, ...]:
    reasons: dict[int, str] = {}
    for labels, reason in flow.frozen:
        for label in labels.tolist():
            reasons.setdefault(label, reason)
    makers = {s.node: s for s in flow.slots if s.role == "out"}
    refused = []
    for node in model.graph:
        if node.op_type not in read.WEIGHTED or node.name in free or read.is_depthwise(node):
            continue
        slot = makers.get(node.name or "")
        if slot is None:
            weight = read.constant(node.inputs[1]) if len(node.inputs) > 1 else None
            reason = "grouped convolution" if weight is not None else read.why_not_constant(node.inputs[1])
        else:
            own = next((reasons[label] for label in slot.labels.tolist() if label in reasons), None)
            tied = component[slot.labels[0]] == component[0] if len(slot.labels) else False
            reason = own or ("tied to channels that must stay" if tied else "nothing reads its channels by a weight")
        refused.append(Refusal(node.name or "", reason))
    return tuple(refused)


def remove(model: ir.Model, channels: Channels, removal: Removal) -> ir.Model:
    """A clone without the channels: weights sliced, group attributes and written-down sizes updated."""
    clone = model.clone()
    keep = channels.keep_mask(removal)
    nodes = {n.name: n for n in clone.graph}
    for slot in channels.flow.slots:
        stays = keep[slot.labels]
        if stays.all():
            continue
        if not stays.any():
            raise ValueError(f"a removal must leave a channel of {slot.node}")
        node = nodes[slot.node]
        edit.slice_constant(clone, node, slot.operand, slot.axis, np.flatnonzero(stays))
        if slot.role == "along" and slot.operand == 1 and node.op_type == "Conv":
            edit.set_int(node, "group", _depthwise_groups(node, int(stays.sum()), len(stays)))
    _resize_movers(clone, channels, keep, nodes)
    edit.forget_shapes(clone)
    return clone


def _depthwise_groups(node: ir.Node, kept: int, before: int) -> int:
    multiplier = before // read.int_attribute(node, "group", 1)
    return kept // multiplier


def _resize_movers(clone: ir.Model, channels: Channels, keep: np.ndarray, nodes: dict[str | None, ir.Node]) -> None:
    splits: dict[str, dict[int, int]] = {}
    for resize in channels.flow.resizes:
        stays = keep[resize.labels]
        node = nodes[resize.node]
        if node.op_type == "Split":
            splits.setdefault(resize.node, {})[resize.part] = int(stays.sum())
        elif stays.all():
            continue
        elif node.op_type == "Reshape":
            target = np.array(read.constant(node.inputs[1]))
            if target[resize.axis] > 0:
                target[resize.axis] = int(stays.sum())
                edit.set_input(clone, node, 1, target, f"{node.name}_shape")
        elif node.op_type == "Pad":
            _resize_pad(clone, node, resize.axis, stays, channels)
    for name, sizes in splits.items():
        node = nodes[name]
        new = np.array([sizes[i] for i in range(len(node.outputs))], np.int64)
        node.attributes.pop("num_outputs", None)
        if read.opset(clone) >= 13:
            edit.set_input(clone, node, 1, new, f"{name}_split")
        else:
            edit.set_ints(node, "split", new.tolist())


def _resize_pad(clone: ir.Model, node: ir.Node, axis: int, stays: np.ndarray, channels: Channels) -> None:
    given = read.constant(node.inputs[1]) if len(node.inputs) > 1 else np.array(read.ints_attribute(node, "pads"))
    pads = np.array(given)
    rank = len(pads) // 2
    before, after = int(pads[axis]), int(pads[axis + rank])
    pads[axis] = int(stays[:before].sum())
    pads[axis + rank] = int(stays[len(stays) - after :].sum()) if after else 0
    if len(node.inputs) > 1:
        edit.set_input(clone, node, 1, pads, f"{node.name}_pads")
    else:
        edit.set_ints(node, "pads", pads.tolist())


def mask(model: ir.Model, channels: Channels, removal: Removal) -> ir.Model:
    """The reference semantics of a removal: nothing is cut, but every reader's weights for the channels are zero."""
    clone = model.clone()
    keep = channels.keep_mask(removal)
    nodes = {n.name: n for n in clone.graph}
    for slot in channels.flow.slots:
        stays = keep[slot.labels]
        if slot.role != "in" or stays.all():
            continue
        weight = np.array(read.constant(nodes[slot.node].inputs[slot.operand]))
        index: list[slice | np.ndarray] = [slice(None)] * weight.ndim
        index[slot.axis] = np.flatnonzero(~stays)
        weight[tuple(index)] = 0
        edit.set_input(clone, nodes[slot.node], slot.operand, weight, f"{slot.node}_masked")
    return clone
