"""Constant channels: their contribution moves into the bias of their reader.

`reduce.py` proves channels constant for every input. Here they are observed as constant on samples, which need not hold
for other inputs. This is therefore done on request only (`calibrated` of `simplify`), counts as lossy, and is recorded
in the plan with its values.
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

ChannelConstants = Mapping[int, np.ndarray]  # by channel: the value at each of its positions in the reader's weight


def has_padding(node: ir.Node) -> bool:
    """Whether a Conv or pool pads its input."""
    automatic = read.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET", "VALID", b"VALID")
    return any(read.ints_attribute(node, "pads")) or automatic


def fold_constant_channels(
    model: ir.Model, reader: ir.Node, place: ch.ChannelSlice, values: ChannelConstants
) -> list[int]:
    """Move the contribution of constant channels into the reader's bias, in place.

    Args:
        model: the model to change.
        reader: the node that reads the channels.
        place: the channels' positions in the reader's weight.
        values: for each channel its constant values.

    Returns:
        The channels that the reader no longer needs: zeros always, other constants if the reader has a bias for them
        and does not pad its input.
    """
    zeros = [j for j, v in values.items() if not v.any()]
    weight = read.constant(reader.inputs[1])
    if weight is None or len(zeros) == len(values):
        return zeros
    unscaled = read.float_attribute(reader, "alpha", 1.0) == 1.0 and read.float_attribute(reader, "beta", 1.0) == 1.0
    out_axis = 1 - place.axis
    bias = read.column_bias(reader, weight.shape[out_axis])
    if has_padding(reader) or reader.op_type not in ("Conv", "Gemm") or bias is None or not unscaled:
        return zeros
    rows = np.moveaxis(np.array(weight, np.float64), (place.axis, out_axis), (0, 1))
    rows = rows.reshape(*rows.shape[:2], -1).sum(axis=2)
    shift = sum((v @ rows[place.positions[j]] for j, v in values.items()), np.zeros(len(bias)))
    _zero_reader_weights(model, reader, place, list(values))
    edit.set_input(model, reader, 2, (shift + bias).astype(np.float32), f"{reader.name}_bias")
    return list(values)


def _zero_reader_weights(model: ir.Model, reader: ir.Node, place: ch.ChannelSlice, channels: Sequence[int]) -> None:
    """Set the weights of channels in a reader to zero."""
    changed = np.array(read.constant(reader.inputs[place.operand]))
    index: list[slice | np.ndarray] = [slice(None)] * changed.ndim
    for channel in channels:
        index[place.axis] = place.positions[channel]
        changed[tuple(index)] = 0
    edit.set_input(model, reader, place.operand, changed, f"{reader.name}_weight")


def find_inactive_channels(evidence: Evidence) -> list[Action]:
    """Find the inner channels that are constant on the samples.

    Returns:
        Decisions {"inactive": group, "channels": [...], "values": {reader: a list of values for each channel}}.
    """
    nodes = {n.name or "": n for n in evidence.model.graph}
    groups = [g for g in evidence.channels.groups if _can_fold(g, nodes)]
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
        constant = set(range(group.size))
        for place in group.readers:
            histogram = seen.get(_input_name(nodes[place.node]))
            if (
                histogram is None
                or not histogram.finite
                or histogram.channel_low is None
                or histogram.channel_high is None
            ):
                constant = set()
                break
            low, high = histogram.channel_low, histogram.channel_high
            can_fold = nodes[place.node].op_type in ("Conv", "Gemm") and not has_padding(nodes[place.node])
            for j in list(constant):
                p = place.positions[j]
                if (low[p] != high[p]).any() or (low[p].any() and not can_fold):
                    constant.discard(j)
        if 0 < len(constant) < group.size:
            for place in group.readers:
                numbers = seen[_input_name(nodes[place.node])].channel_low
                assert numbers is not None
                values[place.node] = [numbers[place.positions[j]].tolist() for j in sorted(constant)]
            found.append({"inactive": group.name, "channels": sorted(constant), "values": values})
    return found


def _input_name(node: ir.Node) -> str:
    """Name of a node's first input."""
    return (node.inputs[0].name or "") if node.inputs[0] is not None else ""


def _can_fold(group: ch.ChannelGroup, nodes: Mapping[str, ir.Node]) -> bool:
    """Whether a group is internal, and read only by layers with weights of their own, as their first input."""
    if not group.internal or group.sliced or group.multiplied:
        return False
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


def fold_inactive_channels(model: ir.Model, actions: Sequence[Action]) -> list[str]:
    """Apply the decisions of `find_inactive_channels` in place.

    Returns:
        Notes for the user.
    """
    if not actions:
        return []
    evidence = Evidence(model, None)
    nodes = {n.name or "": n for n in model.graph}
    total = 0
    for action in actions:
        group = evidence.channels.group(action["inactive"])
        for place in group.readers:
            numbers = dict(zip(action["channels"], (np.array(v) for v in action["values"][place.node]), strict=True))
            folded = fold_constant_channels(model, nodes[place.node], place, numbers)
            _zero_reader_weights(model, nodes[place.node], place, folded)
        total += len(action["channels"])
    return [f"lossy: {total} channels that are constant on the samples are folded into biases"]
