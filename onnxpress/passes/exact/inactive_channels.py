"""Channels that are one number wherever they are read: what they bring moves into their reader's bias.

`reduce` proves it for every input; here it is also observed, on samples.  What was observed need not hold elsewhere, so that it is
done only when asked for (`simplify --calibrated`), counts as lossy, and stands in the plan with its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.ranges import collect_histograms
from onnxpress.model import edit, read
from onnxpress.model.channels import groups as ch
from onnxpress.passes.core.contract import Action

Values = Mapping[int, np.ndarray]  # by channel, one number for each of its positions in the reader's weight


def padded(node: ir.Node) -> bool:
    """Whether a Conv or pool reads beyond the edge."""
    automatic = read.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET", "VALID", b"VALID")
    return any(read.ints_attribute(node, "pads")) or automatic


def absorb(model: ir.Model, reader: ir.Node, place: ch.ChannelSlice, values: Values) -> list[int]:
    """Move constant channels into the reader's bias, in place; which of them the reader needs no more.

    Zeros are needed by nobody; other numbers stay where the reader has no bias to take them, or reads zeros beyond the edge.
    """
    zeros = [j for j, v in values.items() if not v.any()]
    weight = read.constant(reader.inputs[1])
    if weight is None or len(zeros) == len(values):
        return zeros
    plain = read.float_attribute(reader, "alpha", 1.0) == 1.0 and read.float_attribute(reader, "beta", 1.0) == 1.0
    out_axis = 1 - place.axis
    bias = read.column_bias(reader, weight.shape[out_axis])
    if padded(reader) or reader.op_type not in ("Conv", "Gemm") or bias is None or not plain:
        return zeros
    rows = np.moveaxis(np.array(weight, np.float64), (place.axis, out_axis), (0, 1))
    rows = rows.reshape(*rows.shape[:2], -1).sum(axis=2)
    shift = sum((v @ rows[place.positions[j]] for j, v in values.items()), np.zeros(len(bias)))
    _drop(model, reader, place, list(values))
    edit.set_input(model, reader, 2, (shift + bias).astype(np.float32), f"{reader.name}_bias")
    return list(values)


def _drop(model: ir.Model, reader: ir.Node, place: ch.ChannelSlice, channels: Sequence[int]) -> None:
    """Let the reader give the channels no weight."""
    changed = np.array(read.constant(reader.inputs[place.operand]))
    index: list[slice | np.ndarray] = [slice(None)] * changed.ndim
    for channel in channels:
        index[place.axis] = place.positions[channel]
        changed[tuple(index)] = 0
    edit.set_input(model, reader, place.operand, changed, f"{reader.name}_weight")


def inactive(evidence: Evidence) -> list[Action]:
    """What no sample moves: {"inactive": group, "channels": [...], "values": {reader: a list for each channel}}."""
    nodes = {n.name or "": n for n in evidence.model.graph}
    groups = [g for g in evidence.channels.groups if g.internal and not g.sliced and _plainly_read(g, nodes)]
    axes = {}
    for group in groups:
        for place in group.readers:
            value = nodes[place.node].inputs[0]
            shape = evidence.trace.shape(value.name) if value is not None else None
            if value is not None and shape is not None:
                axes[value.name or ""] = 1 if nodes[place.node].op_type == "Conv" else len(shape) - 1
    seen = collect_histograms(evidence, list(axes), axes)
    found: list[Action] = []
    for group in groups:
        values: dict[str, list[list[float]]] = {}
        still = set(range(group.size))
        for place in group.readers:
            spread = seen.get(_read_by(nodes[place.node]))
            if spread is None or not spread.finite or spread.channel_low is None or spread.channel_high is None:
                still = set()
                break
            low, high = spread.channel_low, spread.channel_high
            able = nodes[place.node].op_type in ("Conv", "Gemm") and not padded(nodes[place.node])
            still &= {
                j for j in still if (low[p := place.positions[j]] == high[p]).all() and (able or not low[p].any())
            }  # fmt: skip
        if 0 < len(still) < group.size:
            for place in group.readers:
                numbers = seen[_read_by(nodes[place.node])].channel_low
                assert numbers is not None
                values[place.node] = [numbers[place.positions[j]].tolist() for j in sorted(still)]
            found.append({"inactive": group.name, "channels": sorted(still), "values": values})
    return found


def _read_by(node: ir.Node) -> str:
    return (node.inputs[0].name or "") if node.inputs[0] is not None else ""


def _plainly_read(group: ch.ChannelGroup, nodes: Mapping[str, ir.Node]) -> bool:
    """Whether layers with weights of their own read the group, each as its first input."""
    for place in group.readers:
        node = nodes[place.node]
        weight = node.inputs[place.operand]
        if (
            node.op_type not in ("Conv", "Gemm", "MatMul")
            or place.operand != 1
            or read.int_attribute(node, "transA", 0)
        ):
            return False
        if weight is None or read.constant(weight) is None or len(list(weight.uses())) != 1:
            return False
    return bool(group.readers)


def ignore(model: ir.Model, decisions: Sequence[Action]) -> list[str]:
    """Carry out what `inactive` found, in place: the channels are then read by nobody; what to say of it."""
    if not decisions:
        return []
    evidence = Evidence(model, None)
    nodes = {n.name or "": n for n in model.graph}
    total = 0
    for decision in decisions:
        group = evidence.channels.group(decision["inactive"])
        for place in group.readers:
            numbers = dict(
                zip(decision["channels"], (np.array(v) for v in decision["values"][place.node]), strict=True)
            )
            taken = absorb(model, nodes[place.node], place, numbers)
            _drop(model, nodes[place.node], place, taken)
        total += len(decision["channels"])
    return [f"lossy: {total} channels that no sample moves are read no more"]
