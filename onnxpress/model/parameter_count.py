"""The number of parameters of a model: of the numbers that its operators read, however the file stores them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import read

_COUNTS_NOT = (ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING)  # sizes, positions, flags
_ELEMENTWISE = frozenset("Cast DequantizeLinear Mul Add Sub Div Identity".split())


def parameters(model: ir.Model) -> int:
    """Number of parameters: elements of the constants that operators read.

    A weight that is stored as codes, with tables and scales from which it is computed when the file is loaded, counts
    as what is computed. Constants of type INT64, BOOL and STRING are not counted.
    """
    shapes = _constant_shapes(model)
    used: dict[str, int] = {}
    for node in model.graph:
        if node.outputs and node.outputs[0] in shapes:
            continue  # part of what computes a weight
        for value in node.inputs:
            if value is not None and value.name and value.name not in used:
                used[value.name] = _elements(value, shapes)
    inner = {name for node in model.graph if read.has_subgraph(node) for name in read.captured(node)}
    kept = {name for name, value in model.graph.initializers.items() if name in inner or value.is_graph_output()}
    for name in kept - used.keys():
        used[name] = _elements(model.graph.initializers[name], shapes)
    return sum(used.values())


def _elements(value: ir.Value, shapes: dict[ir.Value, tuple[int, ...]]) -> int:
    if value in shapes:
        return int(np.prod(shapes[value]))
    tensor = value.const_value if value.is_initializer() else None
    return 0 if tensor is None or tensor.dtype in _COUNTS_NOT else int(tensor.size)


def _constant_shapes(model: ir.Model) -> dict[ir.Value, tuple[int, ...]]:
    """The shapes of values that are computed from initializers alone, by the operators that unpack weights."""
    found: dict[ir.Value, tuple[int, ...]] = {}
    for node in model.graph:
        shapes = [_shape(v, found) for v in node.inputs if v is not None]
        if not node.outputs or not shapes or any(s is None for s in shapes) or not read.standard(node):
            continue
        shape = _computed(node, [s for s in shapes if s is not None])
        if shape is not None:
            found[node.outputs[0]] = shape
    return found


def _shape(value: ir.Value, found: dict[ir.Value, tuple[int, ...]]) -> tuple[int, ...] | None:
    if value in found:
        return found[value]
    tensor = read.constant_tensor(value) if not value.is_graph_input() else None
    return None if tensor is None else tuple(int(d) for d in tensor.shape.numpy())


def _computed(node: ir.Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    if node.op_type == "DequantizeLinear":
        return shapes[0]
    if node.op_type in _ELEMENTWISE:
        return np.broadcast_shapes(*shapes)
    if node.op_type == "Gather":
        axis = read.int_attribute(node, "axis", 0)
        return shapes[0][:axis] + shapes[1] + shapes[0][axis + 1 :]
    if node.op_type == "Transpose":
        order = read.ints_attribute(node, "perm") or list(reversed(range(len(shapes[0]))))
        return tuple(shapes[0][a] for a in order)
    if node.op_type == "Reshape":
        target = read.constant(node.inputs[1])
        if target is None or (target == 0).any():
            return None
        rest = int(np.prod(shapes[0])) // max(int(np.prod(target[target > 0])), 1)
        return tuple(rest if d == -1 else int(d) for d in target.ravel())
    return None
