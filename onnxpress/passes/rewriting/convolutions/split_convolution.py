"""Convolutions whose channels are split behind, as one convolution for each part.

before -> after

    Conv, activation, Split (or Slices) of channels -> for each part a Conv of its rows of the weight, activation

Why: onnxruntime has no blocked kernel for Split, so that the tensor is brought to its plain order, copied in parts, and
blocked again for each reader (the blocks of YOLO and of cross-stage networks). The work of the convolutions stays.

Conditions: constant float32 weights of one group, readers that are a Split or Slices of the channels with constant
places which do not overlap, nothing but activations in between, and parts of at least a half block.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.convolutions.blocked_layout import is_blocked
from onnxpress.passes.rewriting.elementwise.activations import FLOAT32, Builder, float_type

_NARROWEST = 8  # channels of a part
_ACTIVATIONS = frozenset("Relu Clip LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Elu Gelu Softplus Mish Mul".split())
Part = tuple[int, int, ir.Value]  # first channel, last channel + 1, the value that holds them


def split_weights(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Split one convolution, in place; whether its channels are split behind it."""
    if not is_blocked(node) or read.int_attribute(node, "group", 1) != 1:
        return False
    weight = read.constant(node.inputs[1])
    bias = read.column_bias(node, len(weight)) if weight is not None else None
    whole = _behind_activations(node)
    if weight is None or bias is None or whole is None or float_type(whole, sizes) != FLOAT32:
        return False
    parts = channel_parts(whole, len(weight), _NARROWEST)
    if parts is None:
        return False
    for first, last, value in parts:
        make = Builder(model, node)
        inputs = [
            node.inputs[0],
            edit.add_constant(model, weight[first:last], f"{node.name}_weight"),
            edit.add_constant(model, bias[first:last].astype(np.float32), f"{node.name}_bias"),
        ]
        made = make("Conv", inputs, **{name: a.value for name, a in node.attributes.items()})
        edit.reroute(model, value, _copied(make, whole, {id(node.outputs[0]): made}))
    return True


def _behind_activations(node: ir.Node) -> ir.Value | None:
    """The value behind the activation of a convolution; None where something else reads what lies before it."""
    value = node.outputs[0]
    while True:
        readers = [use.node for use in value.uses()]
        if value.is_graph_output() or not readers:
            return None
        if all(r.op_type in ("Split", "Slice") for r in readers):
            return value
        if not all(r.op_type in _ACTIVATIONS and read.standard(r) for r in readers):
            return None
        if any(read.constant_tensor(v) is None for r in readers if r.op_type != "Mul" for v in r.inputs[1:] if v):
            return None  # a bound that is computed
        if len(readers) == 1 and readers[0].op_type != "Mul":
            value = readers[0].outputs[0]
            continue
        gate = next((r for r in readers if r.op_type == "Mul"), None)
        inner = [r for r in readers if r is not gate]
        if gate is None or len(readers) != 2 or len(inner) != 1:
            return None
        other = inner[0].outputs[0]
        if read.only_user(other) is not gate or not all(v is value or v is other for v in gate.inputs):
            return None
        value = gate.outputs[0]


def _copied(make: Builder, value: ir.Value, known: dict[int, ir.Value]) -> ir.Value:
    """The activations up to a value once more, on another convolution. known: copies by the value that they copy."""
    if id(value) not in known:
        maker = value.producer()
        assert maker is not None
        inputs = [
            v if v is None or read.constant_tensor(v) is not None else _copied(make, v, known) for v in maker.inputs
        ]
        attributes = {name: a.value for name, a in maker.attributes.items()}
        known[id(value)] = make(maker.op_type, inputs, **attributes)
    return known[id(value)]


def channel_parts(value: ir.Value, channels: int, narrowest: int = 1) -> list[Part] | None:
    """The parts that readers split a value into, by their first channel; None where they are not wide and disjoint.

    narrowest: channels of a part at least.
    """
    if value.is_graph_output():
        return None
    found: list[Part] = []
    for node in {id(use.node): use.node for use in value.uses()}.values():
        own = _split(node, channels) if node.op_type == "Split" else _slice(node, channels)
        if own is None or node.inputs[0] is not value:
            return None
        found += own
    found.sort(key=lambda part: part[:2])
    wide = all(last - first >= narrowest for first, last, _ in found)
    disjoint = all(a[1] <= b[0] for a, b in itertools.pairwise(found))
    return found if len(found) > 1 and wide and disjoint else None


def _split(node: ir.Node, channels: int) -> list[Part] | None:
    if not read.standard(node) or read.int_attribute(node, "axis", 0) != 1:
        return None
    given = read.constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        return None
    lengths = read.ints_attribute(node, "split") if given is None else [int(v) for v in given]
    if not lengths:
        each = -(-channels // len(node.outputs))
        lengths = [min(each, channels - each * k) for k in range(len(node.outputs))]
    if sum(lengths) != channels or len(lengths) != len(node.outputs):
        return None
    ends = np.cumsum(lengths).tolist()
    places = zip(ends, lengths, node.outputs, strict=True)
    return [(end - length, end, value) for end, length, value in places if value.uses() or value.is_graph_output()]


def _slice(node: ir.Node, channels: int) -> list[Part] | None:
    if not read.standard(node) or len(node.inputs) < 4:
        return None
    given = [read.constant(v) for v in node.inputs[1:]]
    if any(a is None or a.size != 1 for a in given):
        return None
    start, end, axis, *step = (int(a.ravel()[0]) for a in given if a is not None)
    if axis != 1 or (step and step[0] != 1):
        return None
    first = max(start + channels, 0) if start < 0 else min(start, channels)
    last = max(end + channels, 0) if end < 0 else min(end, channels)
    return [(first, last, node.outputs[0])] if last > first else None
