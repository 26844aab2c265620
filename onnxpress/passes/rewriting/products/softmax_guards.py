"""Guards against rows of which nothing is left, where rows are whole.

before -> after

    Where(IsNaN(Softmax(s)), 0, Softmax(s)) -> Softmax(s), with s a product of matrices

Why: torch's exporter guards every attention against rows that a mask leaves empty; two passes over the largest tensor.

Conditions: no mask is added to s, which is finite then as the values that it is made of are; a Softmax of finite
numbers is never NaN.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace

_SCALING = frozenset(("Mul", "Div"))


def drop_guard(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Remove one guard, in place; whether it was one."""
    if node.op_type != "Where" or not read.standard(node) or len(node.inputs) != 3:
        return False
    asked = _producer(node.inputs[0], "IsNaN")
    zero, value = read.constant(node.inputs[1]), node.inputs[2]
    softmax = _producer(value, "Softmax")
    if asked is None or softmax is None or value is None or asked.inputs[0] is not value:
        return False
    if zero is None or zero.size != 1 or zero.any() or not _finite(softmax.inputs[0]):
        return False
    edit.bypass(model, node, value)
    return True


def _finite(value: ir.Value | None) -> bool:
    """Whether a value is a product of two matrices, maybe times a finite number."""
    maker = value.producer() if value is not None else None
    while maker is not None and maker.op_type in _SCALING:
        number = read.constant(maker.inputs[1])
        if number is None or number.size != 1 or not abs(number.ravel()[0]) < float("inf") or not number.all():
            return False
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    return maker is not None and maker.op_type in ("MatMul", "FusedMatMul")


def _producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    maker = value.producer() if value is not None else None
    return maker if maker is not None and maker.op_type == kind and read.standard(maker) else None
