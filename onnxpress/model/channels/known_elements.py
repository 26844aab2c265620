"""Elements of small integer tensors that are the same in every run, where others are computed from sizes.

Exporters compute pads and targets by chains of Concat, Reshape, Slice and Transpose of which only some elements depend
on an input: those of a channel axis are constants.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.trace import Trace

_MOST = 64  # elements: what the trace keeps
_MOVES = frozenset(
    "Identity Cast Reshape Flatten Squeeze Unsqueeze Transpose Slice Gather Concat ConstantOfShape".split()
)


def known_elements(value: ir.Value | None, trace: Trace) -> np.ndarray | None:
    """The elements of a value, of dtype object: int where they are constant, None where they are computed.

    None where not even the shape is known, or the value is large.
    """
    if value is None:
        return None
    constant = read.constant(value)
    shape = constant.shape if constant is not None else trace.shape(value.name)
    if shape is None or int(np.prod(shape)) > _MOST:
        return None
    if constant is not None:
        return _objects(constant.tolist(), shape)
    node = value.producer()
    computed = np.full(shape, None, object)
    if node is None or node.op_type not in _MOVES or not read.standard(node):
        return computed
    moved = _moved(node, shape, trace)
    return computed if moved is None or moved.shape != tuple(shape) else moved


def _objects(elements: object, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(shape, object)
    array[...] = elements
    return array


def _moved(node: ir.Node, shape: tuple[int, ...], trace: Trace) -> np.ndarray | None:
    """What an operator that only moves elements gives; None where it moves them by computed amounts."""
    parts = [known_elements(v, trace) for v in node.inputs]
    first = parts[0] if parts else None
    if first is None:
        return None
    if node.op_type == "ConstantOfShape":
        fill = read.attribute(node, "value", None)
        number = 0 if fill is None else int(np.asarray(fill.numpy()).item())  # type: ignore[attr-defined]
        return _objects(number, shape)
    if node.op_type in ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return first.reshape(shape) if first.size == int(np.prod(shape)) else None
    if node.op_type == "Transpose":
        return first.transpose(read.ints_attribute(node, "perm") or None)
    if node.op_type == "Concat":
        whole = [p for p in parts if p is not None]
        return np.concatenate(whole, axis=read.int_attribute(node, "axis", 0)) if len(whole) == len(parts) else None
    if node.op_type == "Gather":
        index = read.constant(node.inputs[1])
        return None if index is None else np.take(first, index, axis=read.int_attribute(node, "axis", 0))
    return _sliced(node, first)


def _sliced(node: ir.Node, first: np.ndarray) -> np.ndarray | None:
    given = [read.constant(v) if v is not None else None for v in node.inputs[1:]]
    if len(given) < 2 or any(g is None and v is not None for g, v in zip(given, node.inputs[1:], strict=True)):
        return None
    starts, ends, axes, steps = [None if g is None else [int(i) for i in g.ravel()] for g in [*given, None, None][:4]]
    assert starts is not None and ends is not None
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = axes[place] if axes else place, steps[place] if steps else 1
        index: list[slice] = [slice(None)] * first.ndim
        index[axis] = slice(start, None if step < 0 and end < -first.shape[axis] else end, step)
        first = first[tuple(index)]
    return first
