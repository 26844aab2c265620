"""Folding of two linear layers in sequence into one, where that is cheaper.

y = W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2). One of two convolutions must be 1x1. If the first one is 1x1 and the
second one pads, the first must not have a bias, since the padding is 0 and not b1. Cheaper means fewer
multiply-accumulates and no more weights, so low-rank factors are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace


@dataclass(frozen=True)
class _LinearLayer:
    """Weight [out, in, *kernel] and bias [out] in float64; whether it is pointwise; whether it pads its input."""

    weight: np.ndarray
    bias: np.ndarray
    pointwise: bool
    pads: bool


def fold_linear(model: ir.Model, node: ir.Node, trace: Trace) -> bool:
    """Fold a Conv, Gemm or MatMul into the layer in front of it, if nothing else reads the value between them."""
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if source is None or not read.standard(source) or read.only_user(source.outputs[0]) is not node:
        return False
    op_types = {source.op_type, node.op_type}
    if op_types != {"Conv"} and not op_types <= {"Gemm", "MatMul"}:
        return False
    first, second = _linear_layer(source), _linear_layer(node)
    if first is None or second is None:
        return False
    if second.pointwise:
        weight = np.einsum("om,m...->o...", second.weight.reshape(second.weight.shape[:2]), first.weight)
        kept = source
    elif first.pointwise and not (second.pads and first.bias.any()):
        weight = np.einsum("om...,mi->oi...", second.weight, first.weight.reshape(first.weight.shape[:2]))
        kept = node
    else:
        return False
    bias = second.weight.reshape(*second.weight.shape[:2], -1).sum(2) @ first.bias + second.bias
    if not _cheaper(trace, source, node, weight.size, first.weight.size, second.weight.size):
        return False
    if op_types == {"Conv"}:
        _merge_convs(model, source, node, kept, weight, bias)
        return True
    return _merge_matrices(model, source, node, weight, bias, trace)


def _cheaper(trace: Trace, source: ir.Node, node: ir.Node, size: int, first_size: int, second_size: int) -> bool:
    """Whether the merged layer takes fewer multiply-accumulates and no more weights than the two."""
    before, after = (trace.shape(n.outputs[0].name) for n in (source, node))
    if before is None or after is None or size > first_size + second_size:
        return False
    if source.op_type != "Conv":
        return True
    positions = [float(np.prod(shape[2:])) for shape in (before, after)]
    return size * positions[1] < first_size * positions[0] + second_size * positions[1]


def _linear_layer(node: ir.Node) -> _LinearLayer | None:
    """Weight and bias of a node; None where it is not a plain layer with constant weights."""
    weight = read.constant(node.inputs[1])
    if weight is None or weight.dtype != np.float32:
        return None
    exact = weight.astype(np.float64)
    if node.op_type == "Conv":
        bias = read.column_bias(node, weight.shape[0])
        if bias is None or read.int_attribute(node, "group", 1) != 1:
            return None
        strides_and_dilations = [*read.ints_attribute(node, "strides"), *read.ints_attribute(node, "dilations")]
        auto_padded = read.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET", "VALID", b"VALID")
        pads = any(read.ints_attribute(node, "pads")) or auto_padded
        pointwise = all(k == 1 for k in weight.shape[2:]) and all(s == 1 for s in strides_and_dilations) and not pads
        return _LinearLayer(exact, np.broadcast_to(bias.astype(np.float64), weight.shape[:1]), pointwise, pads)
    if weight.ndim != 2:
        return None
    if node.op_type == "MatMul":
        return _LinearLayer(exact.T, np.zeros(weight.shape[1]), True, False)
    if read.int_attribute(node, "transA", 0):
        return None
    matrix = (exact if read.int_attribute(node, "transB", 0) else exact.T) * read.float_attribute(node, "alpha", 1.0)
    bias = read.column_bias(node, len(matrix))
    if bias is None:
        return None
    return _LinearLayer(matrix, np.broadcast_to(bias.astype(np.float64), (len(matrix),)), True, False)


def _merge_convs(
    model: ir.Model, source: ir.Node, node: ir.Node, kept: ir.Node, weight: np.ndarray, bias: np.ndarray
) -> None:
    """Put the merged weight into the kept convolution and remove the other."""
    edit.set_input(model, kept, 1, weight.astype(np.float32), f"{kept.name}_weight")
    edit.set_input(model, kept, 2, bias.astype(np.float32), f"{kept.name}_bias")
    if kept is source:
        edit.bypass(model, node, source.outputs[0])
    else:
        assert source.inputs[0] is not None
        edit.bypass(model, source, source.inputs[0])


def _merge_matrices(
    model: ir.Model, source: ir.Node, node: ir.Node, weight: np.ndarray, bias: np.ndarray, trace: Trace
) -> bool:
    """Replace two matrix products by one MatMul, or by a Gemm where there is a bias and the input is a matrix."""
    x = source.inputs[0]
    assert x is not None
    shape = trace.shape(x.name)
    if bias.any() and (shape is None or len(shape) != 2):
        return False
    parts = [x, edit.add_constant(model, np.ascontiguousarray(weight.T).astype(np.float32), f"{node.name}_weight")]
    if bias.any():
        parts.append(edit.add_constant(model, bias.astype(np.float32), f"{node.name}_bias"))
    first_size = edit.insert_before(model, node, "Gemm" if bias.any() else "MatMul", parts, f"{node.name}_merged")
    edit.bypass(model, node, first_size)
    model.graph.remove(source, safe=True)
    return True
