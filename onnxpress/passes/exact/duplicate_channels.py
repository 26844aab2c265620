"""Removal of reads of channels that repeat another channel.

* Equal channels: all constants that produce and transform the two are the same, so that they are equal for every input.
  All operators on the values of a channel group treat its channels alike (model/channels/labels.py), so that only the
  constants have to be compared.
* Scaled channels: one layer produces them, one row of its weight is a positive multiple of the other, and only
  positively homogeneous operators lie on the way to the readers (Relu, LeakyRelu, maxima, averages, data movement).

The readers' weights of the repeated channel, times the factor, are added to those of the other channel and become
zero. The channel is then never read, and `reduce.py` removes it where that pays off. Exact for every input, up to
rounding.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.channels import groups as ch

# f(s x) = s f(x) for every s > 0, applied to each channel separately
_POSITIVELY_HOMOGENEOUS = frozenset(
    """Relu LeakyRelu Identity MaxPool AveragePool GlobalMaxPool GlobalAveragePool Reshape Flatten Transpose Squeeze
    Unsqueeze Concat ReduceMean ReduceSum ReduceMax""".split()
)
_RELATIVE_TOLERANCE = 2.0**-22  # of scaled float32 numbers, which are rounded

Duplicates = list[tuple[int, int, float]]  # (channel, channel it repeats, factor)


def merge_duplicate_channels(model: ir.Model, channels: ch.Channels) -> int:
    """Make the readers of duplicate channels read one channel of each set, in place.

    Args:
        model: the model to change.
        channels: its channel groups.

    Returns:
        The number of channels that are no longer read.
    """
    nodes = {n.name or "": n for n in model.graph}
    total = 0
    for group in channels.groups:
        if group.sliced or group.multiplied or not _mergeable(group, nodes):
            continue
        pairs = _equal_channels(group, nodes) + _scaled_channels(group, nodes)
        for place in group.readers if pairs else ():
            _redirect_reader(model, nodes[place.node], place, pairs)
        total += len(pairs)
    return total


def _mergeable(group: ch.ChannelGroup, nodes: dict[str, ir.Node]) -> bool:
    """Whether the group is produced and read only by layers with weights that are not shared."""
    for place in group.slices:
        if place.role == "along":
            continue
        node = nodes[place.node]
        value = node.inputs[place.operand]
        if not read.standard(node) or node.op_type not in read.WEIGHTED:
            return False
        if place.role == "in" and (value is None or len(list(value.uses())) != 1 or read.constant(value) is None):
            return False
        if place.role == "in" and node.op_type == "ConvTranspose" and read.int_attribute(node, "group", 1) != 1:
            return False
    return bool(group.readers)


def _channel_parameters(group: ch.ChannelGroup, nodes: dict[str, ir.Node]) -> np.ndarray | None:
    """All constants that produce and transform each channel, [channels, numbers]; None where one is not stored."""
    parts = []
    for place in group.slices:
        if place.role != "in":
            array = read.constant(nodes[place.node].inputs[place.operand])
            if array is None or array.dtype != np.float32:
                return None
            parts.append(np.stack([np.take(array, p, axis=place.axis).ravel() for p in place.positions]))
    return np.concatenate(parts, axis=1) if parts else None


def _equal_channels(group: ch.ChannelGroup, nodes: dict[str, ir.Node]) -> Duplicates:
    """Channels with the same constants as an earlier one."""
    rows = _channel_parameters(group, nodes)
    if rows is None:
        return []
    first: dict[bytes, int] = {}
    found = []
    for channel, row in enumerate(rows):
        other = first.setdefault((row + np.float32(0)).tobytes(), channel)  # -0.0 is 0.0
        if other != channel and row.any():  # zero channels are handled as dead
            found.append((channel, other, 1.0))
    return found


def _scaled_channels(group: ch.ChannelGroup, nodes: dict[str, ir.Node]) -> Duplicates:
    """Channels whose constants are a positive multiple of those of another one."""
    if len(group.producers) != 1 or any(p.role == "along" and p.node != group.producers[0] for p in group.slices):
        return []
    if not _is_homogeneous(nodes[group.producers[0]], {p.node for p in group.readers}):
        return []
    maker = nodes[group.producers[0]]
    biased = len(maker.inputs) > 2 and maker.inputs[2] is not None
    rows = _channel_parameters(group, nodes)
    if rows is None or (biased and not any(p.operand == 2 for p in group.slices if p.node == maker.name)):
        return []  # a bias that all channels share is not scaled with them
    exact = rows.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    alive = np.flatnonzero(norms > 0)
    if len(alive) < 2:
        return []
    direction = np.random.default_rng(0).standard_normal(exact.shape[1])
    order = alive[
        np.argsort((exact[alive] @ direction) / norms[alive], kind="stable")
    ]  # scaled channels are neighbours
    found, first = [], int(order[0])
    for channel in order[1:].tolist():
        factor = norms[channel] / norms[first]
        if np.array_equal(rows[channel], rows[first]):
            continue  # found by _equal_channels
        if (np.abs(exact[channel] - factor * exact[first]) <= _RELATIVE_TOLERANCE * np.abs(exact[channel])).all():
            found.append((channel, first, float(factor)))
        else:
            first = channel
    return found


def _is_homogeneous(maker: ir.Node, readers: set[str]) -> bool:
    """Whether only positively homogeneous operators lie between a producer and its readers."""
    pending, seen = list(maker.outputs), set[int]()
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return False
        for use in value.uses():
            if (use.node.name or "") in readers:
                continue
            if (
                not read.standard(use.node)
                or use.node.op_type not in _POSITIVELY_HOMOGENEOUS
                or (use.idx > 0 and use.node.op_type != "Concat")
            ):
                return False
            if id(use.node) not in seen:
                seen.add(id(use.node))
                pending += use.node.outputs
    return True


def _redirect_reader(model: ir.Model, reader: ir.Node, place: ch.ChannelSlice, pairs: Duplicates) -> None:
    """Move the weights of duplicate channels to the channels they repeat, in place."""
    weight = np.moveaxis(np.array(read.constant(reader.inputs[place.operand]), np.float64), place.axis, 0)
    for channel, other, factor in pairs:
        weight[place.positions[other]] += factor * weight[place.positions[channel]]
        weight[place.positions[channel]] = 0
    edit.set_input(
        model, reader, place.operand, np.moveaxis(weight, 0, place.axis).astype(np.float32), f"{reader.name}_weight"
    )
