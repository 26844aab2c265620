"""Bounds of values for every input of the declared types, by interval arithmetic over the graph.

Unsigned inputs lie between 0 and the maximum of their type, float inputs are unbounded. Intervals are propagated
through the known operators, per channel through layers with weights. The bounds are sound but not tight: a value never
lies outside. They prove two reductions:

* a Relu whose input is never negative is removed;
* a channel that is never positive in front of its Relu is zero behind it: its weights and bias become zero, and
  `reduce.py` removes it.

Padding adds zeros to what a layer reads, so the interval is extended by zero there. Bounds are widened by the rounding
error of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace

_ROUNDING_SLACK = 1e-5  # relative to the largest possible sum; bounds the rounding of float32 sums
_NUMPY_BROADCAST_OPSET = 7  # first operator set in which elementwise operators broadcast like numpy
_BOUNDS_PRESERVING = frozenset(
    "Identity Dropout MaxPool GlobalMaxPool GlobalAveragePool ReduceMax ReduceMin ReduceMean".split()
)
_DATA_MOVEMENT = frozenset(
    "Reshape Flatten Squeeze Unsqueeze Transpose Slice Gather Expand Tile Split DepthToSpace SpaceToDepth".split()
)
_UNSIGNED = {ir.DataType.UINT8: 255.0, ir.DataType.UINT16: 65535.0, ir.DataType.BOOL: 1.0}


@dataclass(frozen=True)
class Bounds:
    """Interval of a value.

    Attributes:
        low, high: arrays of the value's rank with size 1 on every axis along which the bound is constant; of rank 0 if
            it is the same for all elements.
    """

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def scalar(cls, low: float, high: float) -> Bounds:
        """The same interval for all elements."""
        return cls(np.array(low), np.array(high))

    @property
    def hull(self) -> Bounds:
        """The smallest interval that holds for all elements."""
        return Bounds.scalar(float(self.low.min()), float(self.high.max()))

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Bounds:
        """The bounds behind a non-decreasing function."""
        return Bounds(function(self.low), function(self.high))


UNBOUNDED = Bounds.scalar(-np.inf, np.inf)
KnownBounds = Mapping[str, Bounds]


def value_bounds(model: ir.Model, trace: Trace) -> dict[str, Bounds]:
    """Compute the bounds of all values that have a finite bound.

    Args:
        model: the model.
        trace: shapes of its values.

    Returns:
        Bounds by value name.
    """
    known: dict[str, Bounds] = {}
    for value in model.graph.inputs:
        if value.dtype in _UNSIGNED:
            known[value.name or ""] = Bounds.scalar(0.0, _UNSIGNED[value.dtype])
    with np.errstate(invalid="ignore", over="ignore"):
        for node in model.graph:
            if not read.standard(node) or read.has_subgraph(node):
                continue
            result = _output_bounds(node, known, trace)
            if result is None:
                continue
            low, high = (
                np.nan_to_num(a, nan=side, posinf=np.inf, neginf=-np.inf)
                for a, side in ((result.low, -np.inf), (result.high, np.inf))
            )
            if np.isfinite(low).any() or np.isfinite(high).any():
                for output in node.outputs if node.op_type == "Split" else node.outputs[:1]:
                    known[output.name or ""] = Bounds(low, high)
    return known


def _bounds_of(value: ir.Value | None, known: KnownBounds) -> Bounds:
    """Bounds of a node's input, constants included."""
    array = read.constant(value)
    if array is not None and array.size and array.dtype.kind in "fiub":
        exact = array.astype(np.float64)
        return Bounds(exact, exact)
    return known.get(value.name or "", UNBOUNDED) if value is not None else UNBOUNDED


def _output_bounds(node: ir.Node, known: KnownBounds, trace: Trace) -> Bounds | None:
    """Bounds of a node's output; None where nothing is known."""
    op = node.op_type
    if op in _FIXED_RANGES:
        return Bounds.scalar(*_FIXED_RANGES[op])
    if op in read.WEIGHTED:
        return _layer_bounds(node, known, trace.shape(node.outputs[0].name))
    if op == "Clip":
        return _clip_bounds(node, _bounds_of(node.inputs[0], known))
    if op in _BINARY:
        if len(node.inputs) != 2:
            return None
        first, second = (_bounds_of(v, known) for v in node.inputs)
        if read.node_opset(node) < _NUMPY_BROADCAST_OPSET:  # broadcasts by an attribute
            first, second = first.hull, second.hull
        return _broadcast_rule(_BINARY[op], first, second, trace.shape(node.outputs[0].name))
    if op == "Concat":
        parts = [_bounds_of(v, known).hull for v in node.inputs]
        return Bounds.scalar(min(float(p.low) for p in parts), max(float(p.high) for p in parts))
    if not node.inputs or node.inputs[0] is None:
        return None
    source = _bounds_of(node.inputs[0], known)
    if op in _MONOTONIC:
        return source.map(_MONOTONIC[op])
    if op == "Abs":
        lowest = np.where(
            (source.low <= 0) & (source.high >= 0), 0.0, np.minimum(np.abs(source.low), np.abs(source.high))
        )
        return Bounds(lowest, np.maximum(np.abs(source.low), np.abs(source.high)))
    if op == "Cast":
        return source if read.int_attribute(node, "to", 0) in (ir.DataType.FLOAT, ir.DataType.DOUBLE) else None
    if op == "AveragePool":  # zero padding may be counted
        return Bounds(np.minimum(source.low, 0), np.maximum(source.high, 0))
    if op == "Dropout" and len(node.inputs) > 2:
        return None
    if op in _BOUNDS_PRESERVING:  # per-axis bounds stay valid only if the axes do
        shapes = trace.shape(node.inputs[0].name), trace.shape(node.outputs[0].name)
        keeps_axes = source.low.ndim == 0 or (
            None not in shapes and len(shapes[0] or ()) == len(shapes[1] or ()) and not op.startswith("Reduce")
        )
        return source if keeps_axes else source.hull
    return source.hull if op in _DATA_MOVEMENT else None


_MONOTONIC: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Exp": np.exp,
    "Sqrt": lambda x: np.sqrt(np.maximum(x, 0)),
    "Floor": np.floor,
    "Ceil": np.ceil,
}
_FIXED_RANGES = {
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax"), (0.0, 1.0)),
    **dict.fromkeys(("Tanh", "Erf", "Sin", "Cos"), (-1.0, 1.0)),
    "Softplus": (0.0, np.inf),
}


def _product(first: Bounds, second: Bounds) -> Bounds:
    """Bounds of a product."""
    with np.errstate(invalid="ignore"):
        products = [
            np.nan_to_num(a * b, nan=0.0, posinf=np.inf, neginf=-np.inf)
            for a in (first.low, first.high)
            for b in (second.low, second.high)
        ]
    return Bounds(np.minimum.reduce(products), np.maximum.reduce(products))


def _quotient(first: Bounds, second: Bounds) -> Bounds:
    """Bounds of a quotient; unbounded where the divisor may be zero."""
    excludes_zero = (second.low > 0) | (second.high < 0)
    interval = [
        np.where(excludes_zero, 1 / np.where(excludes_zero, end, 1.0), side)
        for end, side in ((second.high, -np.inf), (second.low, np.inf))
    ]
    return _product(first, Bounds(interval[0], interval[1]))


_BINARY: dict[str, Callable[[Bounds, Bounds], Bounds]] = {
    "Add": lambda a, b: Bounds(a.low + b.low, a.high + b.high),
    "Sub": lambda a, b: Bounds(a.low - b.high, a.high - b.low),
    "Mul": _product,
    "Div": _quotient,
    "Max": lambda a, b: Bounds(np.maximum(a.low, b.low), np.maximum(a.high, b.high)),
    "Min": lambda a, b: Bounds(np.minimum(a.low, b.low), np.minimum(a.high, b.high)),
}


def _broadcast_rule(
    rule: Callable[[Bounds, Bounds], Bounds], first: Bounds, second: Bounds, shape: tuple[int, ...] | None
) -> Bounds:
    """Apply a rule elementwise under broadcasting, or to the hulls where the shapes are not known."""
    result = rule(first, second)
    if shape is not None and result.low.ndim in (0, len(shape)) and result.low.size <= max(shape, default=1):
        return result
    return rule(first.hull, second.hull)


def _clip_bounds(node: ir.Node, source: Bounds) -> Bounds:
    """Bounds of the output of a Clip."""
    limits = [node.inputs[i] if len(node.inputs) > i else None for i in (1, 2)]
    interval = [read.constant(v) for v in limits]
    if any(v is not None and end is None for v, end in zip(limits, interval, strict=True)):
        return UNBOUNDED  # a computed limit has any value
    if read.node_opset(node) < 11:
        interval = [np.array(read.float_attribute(node, name, d)) for name, d in (("min", -np.inf), ("max", np.inf))]
    low, high = (
        float(end.ravel()[0]) if end is not None and end.size else d
        for end, d in zip(interval, (-np.inf, np.inf), strict=True)
    )
    return source.map(lambda x: np.clip(x, low, high)) if low <= high else UNBOUNDED


def _layer_bounds(node: ir.Node, known: KnownBounds, shape: tuple[int, ...] | None) -> Bounds | None:
    """Bounds per output channel of a Conv (one group or depthwise), a Gemm, or a MatMul with a matrix.

    shape: shape of the output.
    """
    weight = read.constant(node.inputs[1])
    source = _bounds_of(node.inputs[0], known)
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
        source = Bounds(np.minimum(source.low, 0), np.maximum(source.high, 0))  # padding adds zeros
        channel = 1
    else:
        if weight.ndim != 2 or read.int_attribute(node, "transA", 0):
            return None
        rows = exact if read.int_attribute(node, "transB", 0) else exact.T
        rows = rows * read.float_attribute(node, "alpha", 1.0)
        positive, negative, group = np.maximum(rows, 0), np.minimum(rows, 0), 1
        channel = len(shape) - 1
    interval = _channel_bounds(source, channel, positive.shape[1] if group == 1 else len(positive))
    bias = np.zeros(len(positive)) if node.op_type == "MatMul" else read.column_bias(node, len(positive))
    if interval is None or bias is None:
        return None
    low, high = interval
    if group > 1:
        sums = positive[:, 0] * low + negative[:, 0] * high, positive[:, 0] * high + negative[:, 0] * low
        size = (positive[:, 0] - negative[:, 0]) * np.maximum(np.abs(low), np.abs(high))
    else:
        sums = _dot(positive, low) + _dot(negative, high), _dot(positive, high) + _dot(negative, low)
        size = _dot(positive - negative, np.maximum(np.abs(low), np.abs(high)))
    slack = _ROUNDING_SLACK * (size + np.abs(bias))
    broadcast_shape = [1] * len(shape)
    broadcast_shape[channel] = len(positive)
    return Bounds((sums[0] + bias - slack).reshape(broadcast_shape), (sums[1] + bias + slack).reshape(broadcast_shape))


def _dot(rows: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """rows @ ends, where zero times infinity is zero."""
    finite = np.where(np.isfinite(ends), ends, 0.0)
    infinite = rows[:, ~np.isfinite(ends)] * np.sign(ends[~np.isfinite(ends)])
    return np.asarray(rows @ finite + np.where(infinite > 0, np.inf, np.where(infinite < 0, -np.inf, 0.0)).sum(1))


def _channel_bounds(source: Bounds, axis: int, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(low, high) of each channel over all positions; None where the bounds do not have the channel axis."""
    result = []
    for side, reduce in ((source.low, np.min), (source.high, np.max)):
        if side.ndim == 0:
            result.append(np.full(count, float(side)))
            continue
        if side.ndim <= axis:
            return None
        flat = reduce(np.moveaxis(side, axis, 0).reshape(side.shape[axis], -1), axis=1)
        if flat.size not in (1, count):
            return None
        result.append(np.broadcast_to(flat, (count,)).astype(np.float64))
    return result[0], result[1]


def fold_relu(model: ir.Model, node: ir.Node, trace: Trace) -> bool:
    """Remove a Relu behind an operator whose output is never negative (Relu, Sigmoid, Softmax, Clip from 0), in place.

    `drop_redundant_relus` does the same with bounds over the whole graph.

    Returns:
        Whether the node was removed.
    """
    source = node.inputs[0].producer() if node.op_type == "Relu" and node.inputs[0] is not None else None
    if source is None or node.inputs[0] is None or not read.standard(source):
        return False
    result = _output_bounds(source, {}, trace)
    if result is None or not (result.low >= 0).all():
        return False
    edit.bypass(model, node, node.inputs[0])
    return True


def drop_redundant_relus(model: ir.Model, trace: Trace) -> tuple[int, int]:
    """Remove Relus without effect, and zero channels that their Relu always sets to zero, in place.

    Returns:
        (number of removed Relus, number of zeroed channels).
    """
    known = value_bounds(model, trace)
    dropped = zeroed = 0
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "Relu" and read.standard(node) else None
        result = known.get(value.name or "") if value is not None else None
        if value is None or result is None:
            continue
        if (result.low >= 0).all():
            edit.bypass(model, node, value)
            dropped += 1
        else:
            zeroed += _zero_dead_channels(model, value, result)
    return dropped, zeroed


def _zero_dead_channels(model: ir.Model, value: ir.Value, result: Bounds) -> int:
    """Zero the weights and biases of outputs that are never positive and are read by the Relu only; their number."""
    maker = value.producer()
    if maker is None or maker.op_type not in ("Conv", "Gemm") or read.only_user(value) is None or result.high.ndim == 0:
        return 0
    weight = read.constant(maker.inputs[1])
    axis = 0 if maker.op_type == "Conv" or read.int_attribute(maker, "transB", 0) else 1
    if weight is None or weight.shape[axis] != result.high.size:
        return 0
    bias = read.column_bias(maker, weight.shape[axis])
    always_off = np.flatnonzero(
        (result.high.ravel() <= 0) & np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).any(1)
    )
    if bias is None or not len(always_off) or read.float_attribute(maker, "beta", 1.0) != 1.0:
        return 0
    rows = np.array(np.moveaxis(weight, axis, 0))
    rows[always_off] = 0
    edit.set_input(model, maker, 1, np.moveaxis(rows, 0, axis), f"{maker.name}_weight")
    edit.set_input(
        model,
        maker,
        2,
        np.where(np.isin(np.arange(len(bias)), always_off), np.float32(0), bias).astype(np.float32),
        f"{maker.name}_bias",
    )
    return len(always_off)
