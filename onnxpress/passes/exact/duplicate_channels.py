"""Channels that repeat another one: what reads them can take all from the other.

* equal: everything that makes and passes the two holds the same numbers for both, so that they are equal for every input.  All
  that a group of channels passes treats its channels alike (model/labels.py), so that this is all there is to be compared.
* multiples: one layer makes them, by rows of which one is the other times a positive factor, and on the way to the readers there
  is nothing but what keeps such factors: Relu and LeakyRelu, maxima, averages, moves.

What the readers' weights have for the repeating channel is added, times the factor, to what they have for the other and becomes
zero: the channel is then never read, and goes where that is worth it (`reduce.py`).  Exact for every input, up to rounding.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.channels import groups as ch

# f(s x) = s f(x) for every s > 0, and no channel sees another
_KEEPS_FACTORS = frozenset(
    """Relu LeakyRelu Identity MaxPool AveragePool GlobalMaxPool GlobalAveragePool Reshape Flatten Transpose Squeeze
    Unsqueeze Concat ReduceMean ReduceSum ReduceMax""".split()
)
_ROUNDING = 2.0**-22  # of a multiple's numbers, which were rounded when they were stored

Pairs = list[tuple[int, int, float]]  # (channel, the one it repeats, factor)


def merge_alike(model: ir.Model, facts: ch.Channels) -> int:
    """Let the readers of repeating channels read the others, in place; how many channels are no longer read by it."""
    nodes = {n.name or "": n for n in model.graph}
    multiplied = np.zeros(int(facts.component.max()) + 1, bool)
    for product in facts.flow.products:
        multiplied[facts.component[product.labels]] = True
    total = 0
    for group in facts.groups:
        if group.sliced or multiplied[np.concatenate(facts.members[group.name])].any() or not _mergeable(group, nodes):
            continue
        pairs = _equal(group, nodes) + _multiples(group, nodes)
        for place in group.readers if pairs else ():
            _read_the_other(model, nodes[place.node], place, pairs)
        total += len(pairs)
    return total


def _mergeable(group: ch.ChannelGroup, nodes: dict[str, ir.Node]) -> bool:
    """Whether plain layers, whose weights nobody shares, are all that makes and reads the group."""
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


def _rows(group: ch.ChannelGroup, nodes: dict[str, ir.Node]) -> np.ndarray | None:
    """[channels, numbers]: what makes and passes each channel; None where a part of it is not stored."""
    parts = []
    for place in group.slices:
        if place.role != "in":
            array = read.constant(nodes[place.node].inputs[place.operand])
            if array is None or array.dtype != np.float32:
                return None
            parts.append(np.stack([np.take(array, p, axis=place.axis).ravel() for p in place.positions]))
    return np.concatenate(parts, axis=1) if parts else None


def _equal(group: ch.ChannelGroup, nodes: dict[str, ir.Node]) -> Pairs:
    rows = _rows(group, nodes)
    if rows is None:
        return []
    first: dict[bytes, int] = {}
    found = []
    for channel, row in enumerate(rows):
        other = first.setdefault((row + np.float32(0)).tobytes(), channel)  # -0.0 is 0.0
        if other != channel and row.any():  # what is zero is dead, not alike
            found.append((channel, other, 1.0))
    return found


def _multiples(group: ch.ChannelGroup, nodes: dict[str, ir.Node]) -> Pairs:
    if len(group.producers) != 1 or any(p.role == "along" and p.node != group.producers[0] for p in group.slices):
        return []
    if not _keeps_factors(nodes[group.producers[0]], {p.node for p in group.readers}):
        return []
    maker = nodes[group.producers[0]]
    biased = len(maker.inputs) > 2 and maker.inputs[2] is not None
    rows = _rows(group, nodes)
    if rows is None or (biased and not any(p.operand == 2 for p in group.slices if p.node == maker.name)):
        return []  # a bias that all channels share is no multiple
    exact = rows.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    alive = np.flatnonzero(norms > 0)
    if len(alive) < 2:
        return []
    way = np.random.default_rng(0).standard_normal(exact.shape[1])
    order = alive[np.argsort((exact[alive] @ way) / norms[alive], kind="stable")]  # multiples stand side by side
    found, first = [], int(order[0])
    for channel in order[1:].tolist():
        factor = norms[channel] / norms[first]
        if np.array_equal(rows[channel], rows[first]):
            continue  # equal ones are merged already
        if (np.abs(exact[channel] - factor * exact[first]) <= _ROUNDING * np.abs(exact[channel])).all():
            found.append((channel, first, float(factor)))
        else:
            first = channel
    return found


def _keeps_factors(maker: ir.Node, readers: set[str]) -> bool:
    """Whether factors of the maker's channels arrive at its readers."""
    waiting, seen = list(maker.outputs), set[int]()
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            return False
        for use in value.uses():
            if (use.node.name or "") in readers:
                continue
            if (
                not read.standard(use.node)
                or use.node.op_type not in _KEEPS_FACTORS
                or (use.idx > 0 and use.node.op_type != "Concat")
            ):
                return False
            if id(use.node) not in seen:
                seen.add(id(use.node))
                waiting += use.node.outputs
    return True


def _read_the_other(model: ir.Model, reader: ir.Node, place: ch.ChannelSlice, pairs: Pairs) -> None:
    weight = np.moveaxis(np.array(read.constant(reader.inputs[place.operand]), np.float64), place.axis, 0)
    for channel, other, factor in pairs:
        weight[place.positions[other]] += factor * weight[place.positions[channel]]
        weight[place.positions[channel]] = 0
    edit.set_input(
        model, reader, place.operand, np.moveaxis(weight, 0, place.axis).astype(np.float32), f"{reader.name}_weight"
    )
