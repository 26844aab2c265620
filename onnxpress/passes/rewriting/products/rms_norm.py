"""RMS normalization, in the spelling that onnxruntime fuses.

before -> after

    x * Reciprocal(Sqrt(v)), x * (1 / Sqrt(v)) -> x / Sqrt(v)

Why: onnxruntime makes one kernel, SimplifiedLayerNormalization, of Pow, ReduceMean, Add, Sqrt, Div and Mul; torch's
exporters write rsqrt, which it does not know.

Conditions: the reciprocal is of a Sqrt, and nothing else reads it. A root of a float is far from where its reciprocal
overflows, so that both forms round once or twice and are the same else, for 0 and what is not finite, too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.elementwise.activations import Builder, float_type


def divide_by_root(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Change one product, in place; whether it was one with the reciprocal of a root."""
    dtype = float_type(node.outputs[0], sizes) if node.op_type == "Mul" and read.standard(node) else None
    if dtype is None:
        return False
    for index in (0, 1):
        value, other = node.inputs[index], node.inputs[1 - index]
        root = _root(value)
        if value is not None and other is not None and root is not None and read.only_user(value) is node:
            edit.bypass(model, node, Builder(model, node, dtype)("Div", [other, root]))
            return True
    return False


def _root(value: ir.Value | None) -> ir.Value | None:
    """The root whose reciprocal a value is."""
    maker = value.producer() if value is not None else None
    if maker is None or not read.standard(maker):
        return None
    if maker.op_type == "Reciprocal":
        root = maker.inputs[0]
    elif maker.op_type == "Div" and _is_one(maker.inputs[0]):
        root = maker.inputs[1]
    else:
        return None
    source = root.producer() if root is not None else None
    return root if source is not None and source.op_type == "Sqrt" and read.standard(source) else None


def _is_one(value: ir.Value | None) -> bool:
    array = read.constant(value)
    return array is not None and array.size == 1 and bool(np.all(array == 1)) and array.ndim < 2
