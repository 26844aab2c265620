"""Groups of channels that can be removed.

`propagation.py` finds which channel positions belong together, `coupled_slices.py` which slices do where channels lie
on several axes.  Here they become groups: the removable channels that lie in the same slices of the same weights.
`removal.py` removes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxpress.model import read
from onnxpress.model.channels.coupled_slices import CoupledSliceClosure
from onnxpress.model.channels.labels import Flow, varying_axes
from onnxpress.model.channels.propagation import propagate
from onnxpress.model.trace import Trace

_ATTENDING = 3
Removal = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class ChannelSlice:
    """The part of a constant operand that a group occupies: positions[j] are those of channel j along the axis."""

    node: str
    operand: int
    axis: int
    role: str
    positions: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class ChannelGroup:
    """`size` channels that lie in the same slices of the same weights.

    name:       the node that produces them, stable for one file
    bottleneck: narrower than both the inputs of its producer and the outputs of its readers
    sliced:     each channel is a slice of several axes (a head, a dimension of all heads, a group of a grouped
                convolution)
    multiplied: a product of two computed tensors sums over the channels (queries and keys): it reads them, though no
                weight does
    """

    name: str
    size: int
    slices: tuple[ChannelSlice, ...]
    bottleneck: bool = False
    sliced: bool = False
    multiplied: bool = False

    @property
    def producers(self) -> tuple[str, ...]:
        """Nodes that compute the channels."""
        return tuple(dict.fromkeys(p.node for p in self.slices if p.role == "out"))

    @property
    def readers(self) -> tuple[ChannelSlice, ...]:
        """Slices of weights that read the channels."""
        return tuple(p for p in self.slices if p.role == "in")

    @property
    def internal(self) -> bool:
        """Whether the channels are internal to a block.

        They are with one producer and no bottleneck, or as slices that at most three layers share (query, key, value).
        Channels of several producers form a residual stream, where all must agree.
        """
        return len(self.producers) <= (_ATTENDING if self.sliced else 1) and not self.bottleneck

    @property
    def block(self) -> int:
        """Output channels of a layer per channel of the group."""
        return max(len(p.positions[0]) for p in self.slices if p.role == "out")


@dataclass(frozen=True)
class Refusal:
    """A node with weights whose output channels cannot be removed, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Channels:
    """The channel coupling of one model: removable groups, refusals, and the label propagation.

    component: [labels] connected component of each label
    members:   by group, the components of each of its channels
    """

    groups: tuple[ChannelGroup, ...]
    refused: tuple[Refusal, ...]
    flow: Flow = field(repr=False)
    component: np.ndarray = field(repr=False)
    members: dict[str, list[np.ndarray]] = field(repr=False)

    def group(self, name: str) -> ChannelGroup:
        return next(g for g in self.groups if g.name == name)

    def keep_mask(self, removal: Removal) -> np.ndarray:
        """[labels] whether the channel of each label is kept.  removal: by group, the channels to remove."""
        removed = np.zeros(int(self.component.max()) + 1, bool)
        for name, channels in removal.items():
            for channel in channels:
                removed[self.members[name][channel]] = True
        return np.asarray(~removed[self.component])

    def kept(self, value: str, removal: Removal) -> np.ndarray | None:
        """Kept positions of a value's channel axis; None without removable channels, or with several channel axes."""
        labels = self.flow.of.get(value)
        if labels is None or len(varying_axes(labels)) != 1:
            return None
        return np.flatnonzero(self.keep_mask(removal)[labels.reshape(-1)])


def find_channel_groups(model: ir.Model, trace: Trace) -> Channels:
    """Find the groups of a canonical model.  trace: of one run (see runtime.session.trace)."""
    flow = propagate(model, trace)
    component = _components(flow)
    closure = CoupledSliceClosure(flow, component)
    finder = _GroupFinder(model, flow, component)
    finder.single(~closure.bound)
    for family in closure.families():
        finder.sliced(family.units)
    free = {s.layer for s in flow.slots if s.role == "out" and (s.node, s.operand, s.axis) in finder.cut}
    return Channels(tuple(finder.groups), _refusals(model, flow, component, free), flow, component, finder.members)


class _GroupFinder:
    """Collects groups of units (sets of components) that lie in the same slices of the same weights."""

    def __init__(self, model: ir.Model, flow: Flow, component: np.ndarray) -> None:
        self.model, self.flow, self.component = model, flow, component
        self.groups: list[ChannelGroup] = []
        self.members: dict[str, list[np.ndarray]] = {}
        self.cut: set[tuple[str, int, int]] = set()  # axes of weights that produce the channels of a group
        self._roots = [component[s.labels] for s in flow.slots]
        self._summed = np.zeros(int(component.max()) + 1, bool)
        for product in flow.products:
            self._summed[component[product.labels]] = True

    def single(self, able: np.ndarray) -> None:
        """Components that are units on their own.  able: by component."""
        owner = np.where(able, np.arange(len(able)), -1)
        owner[self.component[0]] = -1
        self._add(owner, lambda root: np.array([root]), False)

    def sliced(self, units: Sequence[np.ndarray]) -> None:
        """Units of several components."""
        owner = np.full(int(self.component.max()) + 1, -1)
        for number, unit in enumerate(units):
            owner[unit] = number
        self._add(owner, lambda number: units[number], True)

    def _add(self, owner: np.ndarray, unit: Callable[[int], np.ndarray], sliced: bool) -> None:
        """owner: by component, the unit it belongs to, -1 for none."""
        where: dict[int, list[tuple[int, np.ndarray]]] = {}
        for index, roots in enumerate(self._roots):
            mine = owner[roots]
            if mine.ndim > 1:
                mine = np.where((mine == mine[:, :1]).all(axis=1), mine[:, 0], -1)
            if mine.max(initial=-1) < 0:
                continue
            order = np.argsort(mine, kind="stable")
            numbers, starts = np.unique(mine[order], return_index=True)
            for number, positions in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
                if number >= 0:
                    where.setdefault(number, []).append((index, positions))
        by_signature: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for number, found in where.items():
            by_signature.setdefault(tuple((i, len(p)) for i, p in found), []).append(number)
        for signature, owned in by_signature.items():
            self._group(signature, owned, where, unit, sliced)

    def _group(
        self,
        signature: tuple[tuple[int, int], ...],
        numbers: list[int],
        where: dict[int, list[tuple[int, np.ndarray]]],
        unit: Callable[[int], np.ndarray],
        sliced: bool,
    ) -> None:
        slots = self.flow.slots
        summed = [bool(self._summed[unit(n)].any()) for n in numbers]
        if not all(summed) and not any(slots[i].role == "in" for i, _ in signature):
            return  # no weight reads them: a removal would change the outputs
        producers = [i for i, _ in signature if slots[i].role == "out"]
        if not producers or any(count >= len(slots[i].labels) for i, count in signature):
            return
        first = producers[0]
        numbers.sort(key=lambda n: int(next(p for i, p in where[n] if i == first)[0]))
        name = slots[first].layer
        if name in self.members:
            name = f"{name}#{sum(g.name.split('#')[0] == name for g in self.groups)}"
        self.members[name] = [unit(n) for n in numbers]
        self.cut |= {(slots[i].node, slots[i].operand, slots[i].axis) for i in producers}
        slices = tuple(
            ChannelSlice(
                slots[i].node, slots[i].operand, slots[i].axis, slots[i].role, tuple(where[n][k][1] for n in numbers)
            )
            for k, (i, _) in enumerate(signature)
        )
        narrow = not sliced and _narrowest(self.model, slices, len(numbers))
        self.groups.append(ChannelGroup(name, len(numbers), slices, narrow, sliced, any(summed)))


def _narrowest(model: ir.Model, slices: tuple[ChannelSlice, ...], size: int) -> bool:
    """Whether a group is narrower than the other side of all its producers and readers."""
    nodes = {n.name: n for n in model.graph}

    def other_side(place: ChannelSlice) -> int:
        weight = read.constant(nodes[place.node].inputs[place.operand])
        return size if weight is None or weight.ndim < 2 else weight.shape[1 - place.axis] if place.axis < 2 else size

    sides = {role: [other_side(p) for p in slices if p.role == role and p.operand == 1] for role in ("out", "in")}
    return all(side and size < min(side) for side in sides.values())


def _components(flow: Flow) -> np.ndarray:
    pairs = np.concatenate(flow.edges) if flow.edges else np.empty((0, 2), np.int64)
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(flow.count, flow.count))
    return np.asarray(connected_components(graph, directed=False)[1])


def _refusals(model: ir.Model, flow: Flow, component: np.ndarray, free: set[str]) -> tuple[Refusal, ...]:
    reasons: dict[int, str] = {}
    for labels, reason in (*flow.frozen, *flow.mixed):
        for label in labels.tolist():
            reasons.setdefault(label, reason)
    producers = {s.layer: s for s in flow.slots if s.role == "out"}
    passing = {s.layer for s in flow.slots if s.role == "along"} - set(producers)  # depthwise
    refused = []
    for node in model.graph:
        weighted = node.op_type in read.WEIGHTED | read.RECURRENT
        if not weighted or node.name in free | passing:
            continue
        slot = producers.get(node.name or "")
        if slot is None:
            if all(read.constant(v) is None for v in node.inputs[:2]):
                reason = read.why_not_constant(node.inputs[1])
                if reason == read.COMPUTED and node.op_type == "MatMul":
                    continue  # a product of two computed tensors has no weight
            else:
                reason = f"{node.op_type} in a form whose channels cannot be traced"
        else:
            own = next((reasons[label] for label in slot.labels.ravel().tolist() if label in reasons), None)
            stays = bool((component[slot.labels] == component[0]).any())
            reason = own or ("tied to channels that must stay" if stays else "no weight reads its channels")
        refused.append(Refusal(node.name or "", reason))
    return tuple(refused)
