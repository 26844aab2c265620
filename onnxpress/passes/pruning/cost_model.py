"""Cost of a model's nodes as a function of the removed channels, counted from the channels' positions in weights.

A group may cover part of an axis (one input of a Concat, channels that are padded with zeros), and two groups may slice
the same positions (heads, and dimensions of all heads). Removed shares of parts add up; remaining shares of slices
multiply.

Work and weights fall with the channels; the time of a convolution falls in steps of the kernel's block, as a block that
is not full takes the time of one that is.
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

SECONDS = "seconds"  # the kind of cost that falls in steps of blocks
Costs = Mapping[str, Mapping[str, float]]  # by kind of cost and node name
Axis = tuple[str, int, int]  # node name, operand index, axis of the operand


def node_costs(evidence: Evidence) -> dict[str, dict[str, float]]:
    """Multiply-accumulates per sample ("macs") and number of weights ("params") of every node."""
    nodes = {n.name: n for n in evidence.model.graph}
    slots = evidence.channels.flow.slots  # the weight of a depthwise Conv lies along its channels
    weight_slots = [
        s for s in slots if s.role in ("in", "out") or (s.operand == 1 and nodes[s.node].op_type in read.WEIGHTED)
    ]
    operands = sorted({(s.node, s.operand) for s in weight_slots})
    sizes: dict[str, float] = {}
    for node, operand in operands:
        layer, _, shape = _layer_operand(nodes[node], operand)
        sizes[layer] = sizes.get(layer, 0.0) + (float(math.prod(shape)) if shape else 0.0)
    return {"macs": {k: float(v) for k, v in macs(evidence.model, evidence.trace).items()}, "params": sizes}


@dataclass(frozen=True)
class _AxisShare:
    """An axis that a group covers in part, and the share of the axis that one channel of the group takes."""

    axis: Axis
    share: float


@dataclass
class CostModel:
    """Costs that remain while groups of channels are narrowed.

    Attributes:
        groups: the channel groups by name.
        costs: remaining costs by kind and node name.
        removed: number of removed channels of each group.
    """

    groups: Mapping[str, ch.ChannelGroup]
    costs: dict[str, dict[str, float]]
    removed: dict[str, int]
    _original: Costs
    _sizes: Mapping[str, Mapping[int, float]]  # by node: elements of each weight operand
    _blocks: Mapping[Axis, tuple[int, int]]  # of axes whose time falls in steps: channels, and those of a block
    _shares: Mapping[str, list[_AxisShare]]
    _removed_shares: dict[Axis, float]  # removed share of an axis, added up over groups
    _slice_factors: dict[Axis, float]  # remaining share of an axis, multiplied over slicing groups

    @classmethod
    def from_evidence(cls, evidence: Evidence, names: Iterable[str], costs: Costs) -> CostModel:
        """Start with all channels.

        Args:
            evidence: the model.
            names: names of the groups that may be narrowed.
            costs: original costs by kind and node name.
        """
        groups = {n: evidence.channels.group(n) for n in names}
        nodes = {n.name or "": n for n in evidence.model.graph}
        sizes: dict[str, dict[int, float]] = {}
        blocks: dict[Axis, tuple[int, int]] = {}
        shares: dict[str, list[_AxisShare]] = {}
        for name, group in groups.items():
            shares[name] = []
            for place in group.slices:
                layer, operand, shape = (
                    _layer_operand(nodes[place.node], place.operand) if place.node in nodes else ("", 0, ())
                )
                if len(shape) < 2 or _is_bias(nodes[layer], operand):  # negligible
                    continue
                sizes.setdefault(layer, _recurrent_weight_sizes(nodes[layer]))[operand] = float(math.prod(shape))
                each = sum(len(p) for p in place.positions) / group.size / shape[place.axis]
                axis = (layer, operand, place.axis)
                shares[name].append(_AxisShare(axis, each))
                if _in_blocks(nodes[layer], operand, place.axis):
                    blocks[axis] = shape[place.axis], evidence.machine.conv_block
        return cls(
            groups,
            {kind: dict(by_node) for kind, by_node in costs.items()},
            dict.fromkeys(groups, 0),
            costs,
            sizes,
            blocks,
            shares,
            {},
            {},
        )

    def copy(self) -> CostModel:
        """An independent copy of the current state."""
        costs = {kind: dict(by_node) for kind, by_node in self.costs.items()}
        removed, removed_shares, slice_factors = (
            dict(self.removed),
            dict(self._removed_shares),
            dict(self._slice_factors),
        )
        return CostModel(
            self.groups,
            costs,
            removed,
            self._original,
            self._sizes,
            self._blocks,
            self._shares,
            removed_shares,
            slice_factors,
        )

    def total(self, kind: str) -> float:
        """Remaining cost of one kind, summed over all nodes."""
        return sum(self.costs[kind].values())

    def saving(self, name: str, count: int, kind: str) -> float:
        """Cost of one kind that is saved if `count` channels of the group are removed instead of the present number."""
        removed_shares, slice_factors, nodes = self._after(name, count)
        by_node, original = self.costs[kind], self._original[kind]
        return sum(
            by_node.get(n, 0.0) - original.get(n, 0.0) * self._remaining_share(n, removed_shares, slice_factors, kind)
            for n in nodes
        )

    def set_removed(self, name: str, count: int) -> None:
        """Set the number of removed channels of a group, which may also decrease."""
        removed_shares, slice_factors, nodes = self._after(name, count)
        self._removed_shares |= removed_shares
        self._slice_factors |= slice_factors
        for kind, by_node in self.costs.items():
            for node in nodes:
                by_node[node] = self._original[kind].get(node, 0.0) * self._remaining_share(node, {}, {}, kind)
        self.removed[name] = count

    def set_all_removed(self, removed: Mapping[str, int]) -> None:
        """Set the numbers of removed channels of several groups; zeros are ignored."""
        for name, count in removed.items():
            if count:
                self.set_removed(name, count)

    def _after(self, name: str, count: int) -> tuple[dict[Axis, float], dict[Axis, float], list[str]]:
        """Removed shares and slice factors of the affected axes, and the affected nodes."""
        group, before = self.groups[name], self.removed[name]
        removed_shares: dict[Axis, float] = {}
        slice_factors: dict[Axis, float] = {}
        for part in self._shares[name]:
            axis = part.axis
            if group.sliced:
                factor = (1 - part.share * count) / (1 - part.share * before)
                slice_factors[axis] = slice_factors.get(axis, self._slice_factors.get(axis, 1.0)) * factor
            else:
                known = removed_shares.get(axis, self._removed_shares.get(axis, 0.0))
                removed_shares[axis] = known + part.share * (count - before)
        return removed_shares, slice_factors, list(dict.fromkeys(part.axis[0] for part in self._shares[name]))

    def _remaining_share(
        self, node: str, removed_shares: Mapping[Axis, float], slice_factors: Mapping[Axis, float], kind: str
    ) -> float:
        """The remaining share of a node's cost: that of its weights' axes, averaged over the weights by size."""
        found = 0.0
        for operand, numbers in self._sizes[node].items():
            factor = 1.0
            for axis in range(_MAX_AXES):
                key = (node, operand, axis)
                left = 1 - removed_shares.get(key, self._removed_shares.get(key, 0.0))
                left *= slice_factors.get(key, self._slice_factors.get(key, 1.0))
                factor *= _in_steps(left, *self._blocks[key]) if kind == SECONDS and key in self._blocks else left
            found += numbers * max(factor, 0.0)
        return found / sum(self._sizes[node].values())


_MAX_AXES = 5  # of a weight


def _in_steps(left: float, channels: int, block: int) -> float:
    """The share of whole blocks that remains with a share of the channels."""
    return math.ceil(max(left, 0.0) * channels / block - 1e-6) / math.ceil(channels / block)


def _in_blocks(node: ir.Node, operand: int, axis: int) -> bool:
    """Whether the time of a weight falls along an axis in steps: in blocked convolutions, on both sides."""
    if node.op_type != "Conv" or operand != 1 or axis > 1:
        return False
    return axis == 0 or read.int_attribute(node, "group", 1) == 1


def _recurrent_weight_sizes(node: ir.Node) -> dict[int, float]:
    """Sizes of W and R of a recurrent layer; both count where only one of them is narrowed."""
    return {i: float(math.prod(_layer_operand(node, i)[2])) for i in (1, 2)} if node.op_type in read.RECURRENT else {}


def _is_bias(node: ir.Node, operand: int) -> bool:
    """Whether an operand is a bias, of any rank ([directions, 2 gates H] in recurrent layers, [1, N] in Gemm)."""
    return operand >= 3 if node.op_type in read.RECURRENT else operand == 2 and node.op_type in read.WEIGHTED


def _layer_operand(node: ir.Node, operand: int) -> tuple[str, int, tuple[int, ...]]:
    """(layer name, operand index, shape) of a constant; behind a DequantizeLinear, of the layer that reads it."""
    tensor = read.constant_tensor(node.inputs[operand])
    shape = () if tensor is None else tuple(int(d) for d in tensor.shape.numpy())
    if node.op_type == "DequantizeLinear":
        use = next(iter(node.outputs[0].uses()), None)
        return ("", 0, ()) if use is None else (use.node.name or "", use.idx, shape)
    return node.name or "", operand, shape
