"""Sums in front of LayerNormalization, as Sum.

before -> after

    LayerNormalization(Add(x, y)) -> LayerNormalization(Sum(x, y)), also where the normalization is spelled out

Why: onnxruntime makes SkipLayerNormalization of the first, whose CPU kernel goes number by number; LayerNormalization
alone is a vector kernel, and a Sum of two costs what an Add costs. No fusion looks for Sum.

Conditions: both operands are computed, float32 and of one shape; what is computed is the same.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.elementwise.activations import FLOAT32, Builder, float_type

_NORMS = frozenset(("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"))


def as_sum(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Make a Sum of one Add in front of a normalization, in place; whether it was one."""
    if node.op_type != "Add" or not read.standard(node) or float_type(node.outputs[0], sizes) != FLOAT32:
        return False
    shapes = [sizes.shape(v.name) if v is not None else None for v in node.inputs]
    computed = all(v is not None and read.constant_tensor(v) is None for v in node.inputs)
    if not computed or shapes[0] is None or shapes[0] != shapes[1] or len(shapes[0]) < 2:
        return False
    if not feeds_normalization(node.outputs[0]):
        return False
    edit.bypass(model, node, Builder(model, node)("Sum", list(node.inputs)))
    return True


def feeds_normalization(value: ir.Value) -> bool:
    """Whether a normalization of the last axis reads a value, as one operator or spelled out."""
    readers = [use.node for use in value.uses() if use.idx == 0]
    if any(n.op_type in _NORMS for n in readers):
        return True
    means = [n for n in readers if n.op_type == "ReduceMean"]
    centred = [n for n in readers if n.op_type == "Sub"]
    return any(n.inputs[1] is m.outputs[0] for m in means for n in centred)
