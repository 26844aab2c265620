"""How large the numbers may be that a model takes as indices: the rows of the tables that its integer inputs pick from."""

from __future__ import annotations

import onnx_ir as ir

from onnxpress.model import read

# Operators that hand numbers on as they are, perhaps in another shape or type.
_PASSING = frozenset("Cast Identity Reshape Unsqueeze Squeeze Flatten Transpose Slice Expand Tile Concat Split".split())
# Operators that look rows up: position of the indices -> position of the table.
_LOOKUPS = {
    "Gather": {1: 0},
    "GatherBlockQuantized": {1: 0},
    "EmbedLayerNormalization": {0: 2, 1: 4},
}


def index_bounds(model: ir.Model) -> dict[str, int]:
    """By input: the number that every index must stay below, for those integer inputs whose table's size is known."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.name and value.dtype in (ir.DataType.INT32, ir.DataType.INT64):
            limit = _limit(value)
            if limit is not None:
                found[value.name] = limit
    return found


def _limit(start: ir.Value) -> int | None:
    limits: list[int] = []
    waiting, seen = [start], {id(start)}
    while waiting:
        for use in waiting.pop().uses():
            node, position = use.node, use.idx
            table = _LOOKUPS.get(node.op_type, {}).get(position)
            if table is not None and table < len(node.inputs):
                axis = read.int_attribute(node, "axis" if node.op_type == "Gather" else "gather_axis", 0)
                limits += _size(node.inputs[table], axis)
            elif node.op_type in _PASSING and (position == 0 or node.op_type == "Concat"):
                new = [v for v in node.outputs if id(v) not in seen]
                seen.update(id(v) for v in new)
                waiting += new
    return min(limits, default=None)


def _size(value: ir.Value | None, axis: int) -> list[int]:
    """The table's size along an axis; nothing where it is computed.  int8 tables come through a DequantizeLinear."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    tensor = read.constant_tensor(value)
    if tensor is None:
        return []
    shape = tensor.shape.numpy()
    return [int(shape[axis])] if -len(shape) <= axis < len(shape) else []
