"""What a model's nodes still cost while groups of channels get narrower: counted from the positions that each group has in weights.

A group may have part of an axis only (one input of a Concat, channels that zeros are padded to), and two groups may be slices of the
same positions (heads, and dimensions of all heads).  Parts add up; slices multiply.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.model import read
from onnxpress.model.channels import groups as ch
from onnxpress.model.counts import macs

Costs = Mapping[str, Mapping[str, float]]  # by what is counted, of every node
Axis = tuple[str, int, int]  # node, operand, axis


def counted(evidence: Evidence) -> dict[str, dict[str, float]]:
    """Multiply-accumulates and weights of every node."""
    nodes = {n.name: n for n in evidence.model.graph}
    slots = evidence.channels.flow.slots  # a depthwise Conv's weight lies along its channels
    weighs = [
        s for s in slots if s.role in ("in", "out") or (s.operand == 1 and nodes[s.node].op_type in read.WEIGHTED)
    ]
    operands = sorted({(s.node, s.operand) for s in weighs})
    sizes: dict[str, float] = {}
    for node, operand in operands:
        layer, _, shape = _weight(nodes[node], operand)
        sizes[layer] = sizes.get(layer, 0.0) + (float(math.prod(shape)) if shape else 0.0)
    return {"macs": {k: float(v) for k, v in macs(evidence.model, evidence.trace).items()}, "params": sizes}


@dataclass(frozen=True)
class _Touch:
    """An axis that a group has part of.  each: share of the axis that one of its channels has."""

    axis: Axis
    each: float


@dataclass
class Ledger:
    """costs: what is left of them by kind and node; gone: channels of each group taken so far."""

    groups: Mapping[str, ch.ChannelGroup]
    costs: dict[str, dict[str, float]]
    gone: dict[str, int]
    _whole: Costs
    _sizes: Mapping[str, Mapping[int, float]]  # numbers in a node's weight operands
    _touched: Mapping[str, list[_Touch]]
    _parts: dict[Axis, float]  # shares of an axis that are gone
    _slices: dict[Axis, float]  # what slices leave of an axis

    @classmethod
    def of(cls, evidence: Evidence, names: Iterable[str], costs: Costs) -> Ledger:
        groups = {n: evidence.channels.group(n) for n in names}
        nodes = {n.name or "": n for n in evidence.model.graph}
        sizes: dict[str, dict[int, float]] = {}
        touched: dict[str, list[_Touch]] = {}
        for name, group in groups.items():
            touched[name] = []
            for place in group.slices:
                layer, operand, shape = (
                    _weight(nodes[place.node], place.operand) if place.node in nodes else ("", 0, ())
                )
                if len(shape) < 2 or _is_bias(nodes[layer], operand):  # costs nothing
                    continue
                sizes.setdefault(layer, _beside(nodes[layer]))[operand] = float(math.prod(shape))
                each = sum(len(p) for p in place.positions) / group.size / shape[place.axis]
                touched[name].append(_Touch((layer, operand, place.axis), each))
        return cls(
            groups,
            {what: dict(own) for what, own in costs.items()},
            dict.fromkeys(groups, 0),
            costs,
            sizes,
            touched,
            {},
            {},
        )

    def copy(self) -> Ledger:
        """One that goes on from here by itself."""
        costs = {what: dict(own) for what, own in self.costs.items()}
        return Ledger(
            self.groups, costs, dict(self.gone), self._whole, self._sizes, self._touched, dict(self._parts), dict(self._slices)
        )  # fmt: skip

    def total(self, what: str) -> float:
        return sum(self.costs[what].values())

    def gain(self, name: str, following: int, what: str) -> float:
        """What a group's next width saves."""
        return sum(
            self.costs[what].get(n, 0.0) - self._whole[what].get(n, 0.0) * left
            for n, left in self._next(name, following)[2].items()
        )

    def take(self, name: str, following: int) -> None:
        """Narrow a group until so many of its channels are gone; fewer than before widen it again."""
        parts, slices, lefts = self._next(name, following)
        self._parts |= parts
        self._slices |= slices
        for what, own in self.costs.items():
            for node, left in lefts.items():
                own[node] = self._whole[what].get(node, 0.0) * left
        self.gone[name] = following

    def take_all(self, gone: Mapping[str, int]) -> None:
        for name, count in gone.items():
            if count:
                self.take(name, count)

    def _next(self, name: str, following: int) -> tuple[dict[Axis, float], dict[Axis, float], dict[str, float]]:
        """The touched axes' parts and slices, and what is left of the touched nodes, where so many are gone."""
        group, before = self.groups[name], self.gone[name]
        parts: dict[Axis, float] = {}
        slices: dict[Axis, float] = {}
        for touch in self._touched[name]:
            if group.sliced:
                rest = (1 - touch.each * following) / (1 - touch.each * before)
                slices[touch.axis] = slices.get(touch.axis, self._slices.get(touch.axis, 1.0)) * rest
            else:
                parts[touch.axis] = parts.get(touch.axis, self._parts.get(touch.axis, 0.0)) + touch.each * (
                    following - before
                )
        return (
            parts,
            slices,
            {node: self._left(node, parts, slices) for node in dict.fromkeys(t.axis[0] for t in self._touched[name])},
        )

    def _left(self, node: str, parts: Mapping[Axis, float], slices: Mapping[Axis, float]) -> float:
        """The share of a node's work that is left: of each weight what its axes leave, by size."""
        found = 0.0
        for operand, numbers in self._sizes[node].items():
            rest = 1.0
            for axis in range(_MOST_AXES):
                key = (node, operand, axis)
                rest *= 1 - parts.get(key, self._parts.get(key, 0.0))
                rest *= slices.get(key, self._slices.get(key, 1.0))
            found += numbers * max(rest, 0.0)
        return found / sum(self._sizes[node].values())


_MOST_AXES = 5  # of a weight


def _beside(node: ir.Node) -> dict[int, float]:
    """Numbers in the weights of a recurrent layer: W counts where only R narrows, and R where only W does."""
    return {i: float(math.prod(_weight(node, i)[2])) for i in (1, 2)} if node.op_type in read.RECURRENT else {}


def _is_bias(node: ir.Node, operand: int) -> bool:
    """Of any rank: a recurrent layer's is [directions, 2 gates H], a Gemm's may be [1, N]."""
    return operand >= 3 if node.op_type in read.RECURRENT else operand == 2 and node.op_type in read.WEIGHTED


def _weight(node: ir.Node, operand: int) -> tuple[str, int, tuple[int, ...]]:
    """Whose constant it is, as which operand, and its shape: behind a DequantizeLinear the layer's that reads it."""
    held = read.constant_tensor(node.inputs[operand])
    shape = () if held is None else tuple(int(d) for d in held.shape.numpy())
    if node.op_type == "DequantizeLinear":
        use = next(iter(node.outputs[0].uses()), None)
        return ("", 0, ()) if use is None else (use.node.name or "", use.idx, shape)
    return node.name or "", operand, shape
