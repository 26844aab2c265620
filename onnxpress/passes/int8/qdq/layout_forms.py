"""Forms that keep float tensors in the layout of convolutions (`passes/rewriting`), taken back where integers stand.

    Conv(x, 1), depthwise 1x1 -> QuantizeLinear      becomes  x -> QuantizeLinear
    Resize(g, 1x1 to H x W)   -> QuantizeLinear, Mul becomes  g -> QuantizeLinear, Mul

Integers have no such layout: there the first multiplies by one, and the second writes every number H x W times.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace

_NEAREST = ("nearest", b"nearest")


def is_identity_convolution(node: ir.Node) -> bool:
    """Whether a node is a depthwise convolution of 1x1 that multiplies by one."""
    if node.op_type != "Conv" or not read.standard(node) or len([v for v in node.inputs if v is not None]) != 2:
        return False
    weight = read.constant(node.inputs[1])
    if weight is None or weight.ndim < 3 or weight.shape[1:] != (1,) * (weight.ndim - 1):
        return False
    single = all(number == 1 for name in ("strides", "dilations") for number in read.ints_attribute(node, name))
    depthwise = read.int_attribute(node, "group", 1) == len(weight)
    return depthwise and single and not any(read.ints_attribute(node, "pads")) and bool(np.all(weight == 1))


def drop_layout_forms(model: ir.Model, sizes: Trace) -> int:
    """Take them out in front of QuantizeLinear, in place; how many."""
    able = [n for n in model.graph if is_identity_convolution(n) or _copies_a_pixel(n, sizes)]
    able = [n for n in able if _all_quantized(n)]
    for node in able:
        source = node.inputs[0]
        assert source is not None
        edit.bypass(model, node, source)
    return len(able)


def _all_quantized(node: ir.Node) -> bool:
    """Whether all that reads a node is quantized, and is a product where the node copies a pixel."""
    value = node.outputs[0]
    readers = [use.node for use in value.uses()]
    if not readers or value.is_graph_output() or any(r.op_type != "QuantizeLinear" for r in readers):
        return False
    if node.op_type == "Conv":
        return True
    behind = [use.node for r in readers for use in r.outputs[0].uses()]
    products = [use.node for d in behind for use in d.outputs[0].uses()]
    return all(d.op_type == "DequantizeLinear" for d in behind) and all(p.op_type == "Mul" for p in products)


def _copies_a_pixel(node: ir.Node, sizes: Trace) -> bool:
    if node.op_type != "Resize" or not read.standard(node) or read.attribute(node, "mode", "nearest") not in _NEAREST:
        return False
    shapes = [sizes.shape(v.name) for v in (node.inputs[0], node.outputs[0]) if v is not None]
    if len(shapes) != 2 or any(shape is None or len(shape) != 4 for shape in shapes):
        return False
    before, after = (shape for shape in shapes if shape is not None)
    return before[2:] == (1, 1) and before[:2] == after[:2]
