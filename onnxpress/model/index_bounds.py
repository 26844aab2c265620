"""Bounds of integer inputs that are used as indices: the number of rows of the tables they index."""

from __future__ import annotations

import onnx_ir as ir

from onnxpress.model import read

# Operators that do not change values, only their shape or type.
_VALUE_PRESERVING = frozenset(
    "Cast Identity Reshape Unsqueeze Squeeze Flatten Transpose Slice Expand Tile Concat Split".split()
)
# Operators that index tables: input position of the indices -> input position of the table.
_LOOKUPS = {
    "Gather": {1: 0},
    "GatherBlockQuantized": {1: 0},
    "EmbedLayerNormalization": {0: 2, 1: 4},
}


def index_bounds(model: ir.Model) -> dict[str, int]:
    """By input, the exclusive upper bound of its values, for the integer inputs that index tables of known size."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.name and value.dtype in (ir.DataType.INT32, ir.DataType.INT64):
            bound = _bound(value)
            if bound is not None:
                found[value.name] = bound
    return found


def _bound(start: ir.Value) -> int | None:
    """The smallest bound among the tables that a value indexes; None where there is none."""
    bounds: list[int] = []
    waiting, seen = [start], {id(start)}
    while waiting:
        for use in waiting.pop().uses():
            node, position = use.node, use.idx
            table = _LOOKUPS.get(node.op_type, {}).get(position)
            if table is not None and table < len(node.inputs):
                axis = read.int_attribute(node, "axis" if node.op_type == "Gather" else "gather_axis", 0)
                bounds += _size(node.inputs[table], axis)
            elif node.op_type in _VALUE_PRESERVING and (position == 0 or node.op_type == "Concat"):
                new = [v for v in node.outputs if id(v) not in seen]
                seen.update(id(v) for v in new)
                waiting += new
    return min(bounds, default=None)


def _size(value: ir.Value | None, axis: int) -> list[int]:
    """[size] of the table along an axis; [] where it is computed.  An int8 table is behind a DequantizeLinear."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    tensor = read.constant_tensor(value)
    if tensor is None:
        return []
    shape = tensor.shape.numpy()
    return [int(shape[axis])] if -len(shape) <= axis < len(shape) else []
