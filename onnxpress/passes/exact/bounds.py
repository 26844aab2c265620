"""Between which numbers values lie, for every input of the declared types: interval arithmetic over the graph.

An unsigned input lies between 0 and its type's largest number, a float one anywhere; what operators do to intervals is followed as
far as it is known, channel by channel through layers of weights.  Sound, not tight: a value is never outside.  What follows:

* a Relu whose input is never below zero does nothing, and goes;
* a channel that is never above zero in front of its Relu is zero behind it: what makes it becomes zero, and `reduce` removes it.

Padding puts zeros beside what a layer reads, so that its interval holds zero there.  Bounds are widened by the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace

_SLACK = 1e-5  # of a sum's largest possible size: float32 sums differ by less
_BROADCASTS = 7  # the operator set from which on elementwise operators broadcast as numpy does
_KEEP = frozenset("Identity Dropout MaxPool GlobalMaxPool GlobalAveragePool ReduceMax ReduceMin ReduceMean".split())
_MOVE = frozenset(
    "Reshape Flatten Squeeze Unsqueeze Transpose Slice Gather Expand Tile Split DepthToSpace SpaceToDepth".split()
)
_UNSIGNED = {ir.DataType.UINT8: 255.0, ir.DataType.UINT16: 65535.0, ir.DataType.BOOL: 1.0}


@dataclass(frozen=True)
class Bounds:
    """low, high: arrays of the value's rank, with size 1 on every axis along which they are the same; of rank 0: everywhere."""

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def everywhere(cls, low: float, high: float) -> Bounds:
        return cls(np.array(low), np.array(high))

    @property
    def whole(self) -> Bounds:
        """The same for all elements."""
        return Bounds.everywhere(float(self.low.min()), float(self.high.max()))

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Bounds:
        """Through a function that never falls."""
        return Bounds(function(self.low), function(self.high))


ANYTHING = Bounds.everywhere(-np.inf, np.inf)
Known = Mapping[str, Bounds]


def bounds(model: ir.Model, trace: Trace) -> dict[str, Bounds]:
    """Bounds of all values that are bounded at all, by name."""
    known: dict[str, Bounds] = {}
    for value in model.graph.inputs:
        if value.dtype in _UNSIGNED:
            known[value.name or ""] = Bounds.everywhere(0.0, _UNSIGNED[value.dtype])
    with np.errstate(invalid="ignore", over="ignore"):
        for node in model.graph:
            if not read.standard(node) or read.has_subgraph(node):
                continue
            found = _after(node, known, trace)
            if found is None:
                continue
            low, high = (
                np.nan_to_num(a, nan=side, posinf=np.inf, neginf=-np.inf)
                for a, side in ((found.low, -np.inf), (found.high, np.inf))
            )
            if np.isfinite(low).any() or np.isfinite(high).any():
                for output in node.outputs if node.op_type == "Split" else node.outputs[:1]:
                    known[output.name or ""] = Bounds(low, high)
    return known


def _of(value: ir.Value | None, known: Known) -> Bounds:
    array = read.constant(value)
    if array is not None and array.size and array.dtype.kind in "fiub":
        exact = array.astype(np.float64)
        return Bounds(exact, exact)
    return known.get(value.name or "", ANYTHING) if value is not None else ANYTHING


def _after(node: ir.Node, known: Known, trace: Trace) -> Bounds | None:
    """Bounds of a node's output; None where nothing is known of it."""
    op = node.op_type
    if op in _RANGES:
        return Bounds.everywhere(*_RANGES[op])
    if op in read.WEIGHTED:
        return _layer(node, known, trace.shape(node.outputs[0].name))
    if op == "Clip":
        return _clipped(node, _of(node.inputs[0], known))
    if op in _BINARY:
        if len(node.inputs) != 2:
            return None
        one, two = (_of(v, known) for v in node.inputs)
        if read.node_opset(node) < _BROADCASTS:  # by an attribute, another way
            one, two = one.whole, two.whole
        return _fitting(_BINARY[op], one, two, trace.shape(node.outputs[0].name))
    if op == "Concat":
        parts = [_of(v, known).whole for v in node.inputs]
        return Bounds.everywhere(min(float(p.low) for p in parts), max(float(p.high) for p in parts))
    if not node.inputs or node.inputs[0] is None:
        return None
    source = _of(node.inputs[0], known)
    if op in _RISING:
        return source.map(_RISING[op])
    if op == "Abs":
        least = np.where(
            (source.low <= 0) & (source.high >= 0), 0.0, np.minimum(np.abs(source.low), np.abs(source.high))
        )
        return Bounds(least, np.maximum(np.abs(source.low), np.abs(source.high)))
    if op == "Cast":
        return source if read.int_attribute(node, "to", 0) in (ir.DataType.FLOAT, ir.DataType.DOUBLE) else None
    if op == "AveragePool":  # with its padding counted zeros come in
        return Bounds(np.minimum(source.low, 0), np.maximum(source.high, 0))
    if op == "Dropout" and len(node.inputs) > 2:
        return None
    if op in _KEEP:  # these keep the rank or are the same for all elements
        same = trace.shape(node.inputs[0].name), trace.shape(node.outputs[0].name)
        kept = source.low.ndim == 0 or (
            None not in same and len(same[0] or ()) == len(same[1] or ()) and not op.startswith("Reduce")
        )
        return source if kept else source.whole
    return source.whole if op in _MOVE else None


_RISING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Exp": np.exp,
    "Sqrt": lambda x: np.sqrt(np.maximum(x, 0)),
    "Floor": np.floor,
    "Ceil": np.ceil,
}
_RANGES = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0), "Erf": (-1.0, 1.0),
           "Sin": (-1.0, 1.0), "Cos": (-1.0, 1.0), "Softplus": (0.0, np.inf)}  # fmt: skip


def _product(one: Bounds, two: Bounds) -> Bounds:
    with np.errstate(invalid="ignore"):
        all_ = [
            np.nan_to_num(a * b, nan=0.0, posinf=np.inf, neginf=-np.inf)
            for a in (one.low, one.high)
            for b in (two.low, two.high)
        ]
    return Bounds(np.minimum.reduce(all_), np.maximum.reduce(all_))


def _quotient(one: Bounds, two: Bounds) -> Bounds:
    apart = (two.low > 0) | (two.high < 0)  # from zero
    ends = [
        np.where(apart, 1 / np.where(apart, end, 1.0), side) for end, side in ((two.high, -np.inf), (two.low, np.inf))
    ]
    return _product(one, Bounds(ends[0], ends[1]))


_BINARY: dict[str, Callable[[Bounds, Bounds], Bounds]] = {
    "Add": lambda a, b: Bounds(a.low + b.low, a.high + b.high),
    "Sub": lambda a, b: Bounds(a.low - b.high, a.high - b.low),
    "Mul": _product,
    "Div": _quotient,
    "Max": lambda a, b: Bounds(np.maximum(a.low, b.low), np.maximum(a.high, b.high)),
    "Min": lambda a, b: Bounds(np.minimum(a.low, b.low), np.minimum(a.high, b.high)),
}


def _fitting(
    rule: Callable[[Bounds, Bounds], Bounds], one: Bounds, two: Bounds, shape: tuple[int, ...] | None
) -> Bounds:
    """By the rule, element by element as the operator broadcasts; the same for all where that is not known."""
    found = rule(one, two)
    if shape is not None and found.low.ndim in (0, len(shape)) and found.low.size <= max(shape, default=1):
        return found
    return rule(one.whole, two.whole)


def _clipped(node: ir.Node, source: Bounds) -> Bounds:
    given = [node.inputs[i] if len(node.inputs) > i else None for i in (1, 2)]
    ends = [read.constant(v) for v in given]
    if any(v is not None and end is None for v, end in zip(given, ends, strict=True)):
        return ANYTHING  # an end that is computed may lie anywhere
    if read.node_opset(node) < 11:
        ends = [np.array(read.float_attribute(node, name, d)) for name, d in (("min", -np.inf), ("max", np.inf))]
    low, high = (
        float(end.ravel()[0]) if end is not None and end.size else d
        for end, d in zip(ends, (-np.inf, np.inf), strict=True)
    )
    return source.map(lambda x: np.clip(x, low, high)) if low <= high else ANYTHING


def _layer(node: ir.Node, known: Known, shape: tuple[int, ...] | None) -> Bounds | None:
    """Of a Conv without groups or a depthwise one, a Gemm or a MatMul by a matrix: one interval an output channel.

    shape: of the output."""
    weight = read.constant(node.inputs[1])
    source = _of(node.inputs[0], known)
    bounded = np.isfinite(source.low).any() and np.isfinite(source.high).any()
    if weight is None or shape is None or node.op_type == "ConvTranspose" or not bounded:
        return None
    exact = weight.astype(np.float64)
    if node.op_type == "Conv":
        group = read.int_attribute(node, "group", 1)
        if group not in (1, weight.shape[0]) or (group > 1 and weight.shape[1] != 1):
            return None
        rows = exact.reshape(*exact.shape[:2], -1)
        positive, negative = (np.maximum(rows, 0).sum(2), np.minimum(rows, 0).sum(2))
        source = Bounds(np.minimum(source.low, 0), np.maximum(source.high, 0))  # what is padded is zero
        channel = 1
    else:
        if weight.ndim != 2 or read.int_attribute(node, "transA", 0):
            return None
        rows = exact if read.int_attribute(node, "transB", 0) else exact.T
        rows = rows * read.float_attribute(node, "alpha", 1.0)
        positive, negative, group = np.maximum(rows, 0), np.minimum(rows, 0), 1
        channel = len(shape) - 1
    ends = _by_channel(source, channel, positive.shape[1] if group == 1 else len(positive))
    bias = np.zeros(len(positive)) if node.op_type == "MatMul" else read.column_bias(node, len(positive))
    if ends is None or bias is None:
        return None
    low, high = ends
    if group > 1:
        sums = positive[:, 0] * low + negative[:, 0] * high, positive[:, 0] * high + negative[:, 0] * low
        size = (positive[:, 0] - negative[:, 0]) * np.maximum(np.abs(low), np.abs(high))
    else:
        sums = _sum(positive, low) + _sum(negative, high), _sum(positive, high) + _sum(negative, low)
        size = _sum(positive - negative, np.maximum(np.abs(low), np.abs(high)))
    slack = _SLACK * (size + np.abs(bias))
    own = [1] * len(shape)
    own[channel] = len(positive)
    return Bounds((sums[0] + bias - slack).reshape(own), (sums[1] + bias + slack).reshape(own))


def _sum(rows: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """rows @ ends, where zero times infinity is zero."""
    finite = np.where(np.isfinite(ends), ends, 0.0)
    endless = rows[:, ~np.isfinite(ends)] * np.sign(ends[~np.isfinite(ends)])
    return np.asarray(rows @ finite + np.where(endless > 0, np.inf, np.where(endless < 0, -np.inf, 0.0)).sum(1))


def _by_channel(source: Bounds, axis: int, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Bounds of every channel, wherever it is."""
    found = []
    for side, worst in ((source.low, np.min), (source.high, np.max)):
        if side.ndim == 0:
            found.append(np.full(count, float(side)))
            continue
        if side.ndim <= axis:
            return None
        flat = worst(np.moveaxis(side, axis, 0).reshape(side.shape[axis], -1), axis=1)
        if flat.size not in (1, count):
            return None
        found.append(np.broadcast_to(flat, (count,)).astype(np.float64))
    return found[0], found[1]


def drop_relu(model: ir.Model, node: ir.Node, trace: Trace) -> bool:
    """A Relu of what an operator never lets below zero: a Relu, Sigmoid, Softmax, or a Clip from 0 (see also `steady`)."""
    source = node.inputs[0].producer() if node.op_type == "Relu" and node.inputs[0] is not None else None
    if source is None or node.inputs[0] is None or not read.standard(source):
        return False
    found = _after(source, {}, trace)
    if found is None or not (found.low >= 0).all():
        return False
    edit.bypass(model, node, node.inputs[0])
    return True


def steady(model: ir.Model, trace: Trace) -> tuple[int, int]:
    """Drop every Relu that does nothing, and make zero what makes channels that a Relu always sets to zero, in place; how many
    Relus, and how many channels."""
    known = bounds(model, trace)
    dropped = silenced = 0
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "Relu" and read.standard(node) else None
        found = known.get(value.name or "") if value is not None else None
        if value is None or found is None:
            continue
        if (found.low >= 0).all():
            edit.bypass(model, node, value)
            dropped += 1
        else:
            silenced += _silence(model, value, found)
    return dropped, silenced


def _silence(model: ir.Model, value: ir.Value, found: Bounds) -> int:
    """Zero the rows of the layer whose outputs are never above zero; they are read by the Relu alone."""
    maker = value.producer()
    if maker is None or maker.op_type not in ("Conv", "Gemm") or read.only_user(value) is None or found.high.ndim == 0:
        return 0
    weight = read.constant(maker.inputs[1])
    axis = 0 if maker.op_type == "Conv" or read.int_attribute(maker, "transB", 0) else 1
    if weight is None or weight.shape[axis] != found.high.size:
        return 0
    bias = read.column_bias(maker, weight.shape[axis])
    dead = np.flatnonzero(
        (found.high.ravel() <= 0) & np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).any(1)
    )
    if bias is None or not len(dead) or read.float_attribute(maker, "beta", 1.0) != 1.0:
        return 0
    rows = np.array(np.moveaxis(weight, axis, 0))
    rows[dead] = 0
    edit.set_input(model, maker, 1, np.moveaxis(rows, 0, axis), f"{maker.name}_weight")
    edit.set_input(
        model,
        maker,
        2,
        np.where(np.isin(np.arange(len(bias)), dead), np.float32(0), bias).astype(np.float32),
        f"{maker.name}_bias",
    )
    return len(dead)
