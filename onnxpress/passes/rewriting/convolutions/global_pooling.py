"""Reductions over whole pictures, as pooling.

before -> after

    ReduceMean over H and W of [N, C, H, W]              -> GlobalAveragePool (and Flatten without the axes)
    ReduceMax over H and W                               -> GlobalMaxPool
    AveragePool, MaxPool whose kernel is the whole size  -> GlobalAveragePool, GlobalMaxPool

Why: GlobalAveragePool reads the blocked layout; ReduceMean needs the plain order.

Conditions: float32 and rank 4; for pooling operators fixed sizes in the file, no padding.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.elementwise.activations import FLOAT32, Builder, float_type

_REDUCTIONS = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}
_POOLS = {"AveragePool": "GlobalAveragePool", "MaxPool": "GlobalMaxPool"}


def as_global_pooling(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Replace one reduction or pooling, in place; whether it was one of the whole picture."""
    if not read.standard(node) or node.inputs[0] is None or float_type(node.outputs[0], sizes) != FLOAT32:
        return False
    shape = sizes.shape(node.inputs[0].name)
    if shape is None or len(shape) != 4:
        return False
    kept = True
    if node.op_type in _REDUCTIONS:
        axes = _axes(node)
        if axes is None or sorted(a % 4 for a in axes) != [2, 3]:
            return False
        kept, kind = bool(read.int_attribute(node, "keepdims", 1)), _REDUCTIONS[node.op_type]
    elif node.op_type in _POOLS and _covers(node):
        kind = _POOLS[node.op_type]
    else:
        return False
    make = Builder(model, node)
    pooled = make(kind, [node.inputs[0]])
    edit.bypass(model, node, pooled if kept else make("Flatten", [pooled], axis=1))
    return True


def _axes(node: ir.Node) -> list[int] | None:
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        array = read.constant(node.inputs[1])
        return None if array is None else [int(v) for v in array.ravel()]
    return read.ints_attribute(node, "axes") or None


def _covers(node: ir.Node) -> bool:
    """Whether a pooling has the size of its input, which is fixed, and no padding."""
    value, kernel = node.inputs[0], read.ints_attribute(node, "kernel_shape")
    if value is None or value.shape is None or len(value.shape) != 4 or len(node.outputs) != 1:
        return False
    plain = read.attribute(node, "auto_pad", "NOTSET") in ("NOTSET", b"NOTSET", "VALID", b"VALID")
    dilated = any(d != 1 for d in read.ints_attribute(node, "dilations"))
    fixed = [d if isinstance(d, int) else None for d in list(value.shape)[2:]]
    return fixed == kernel and not any(read.ints_attribute(node, "pads")) and plain and not dilated
