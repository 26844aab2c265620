"""Multiply-accumulates of a model, by node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.trace import Trace


def node_macs(node: ir.Node, trace: Trace) -> int:
    """Multiply-accumulates of one node at the sizes of the trace; 0 for operators without a contraction."""
    if not read.standard(node) or not node.outputs:
        return 0
    if node.op_type in read.RECURRENT:
        return _recurrent(node, trace)
    if node.op_type not in read.WEIGHTED:
        return 0
    out = trace.shape(node.outputs[0].name)
    source = node.inputs[0]
    first = trace.shape(source.name) if source is not None else None
    first = first or _stored(source)
    if out is None or first is None:
        return 0
    weight = _stored(node.inputs[1]) or trace.shape(node.inputs[1].name if node.inputs[1] is not None else None)
    if node.op_type == "Conv" and weight is not None:
        return int(np.prod(out) * np.prod(weight[1:]))
    if node.op_type == "ConvTranspose" and weight is not None:
        return int(np.prod(first) * np.prod(weight[1:]))
    if node.op_type in ("Gemm", "MatMul"):
        inner = first[0] if node.op_type == "Gemm" and read.int_attribute(node, "transA", 0) else first[-1]
        return int(np.prod(out) * inner)
    return 0


def _recurrent(node: ir.Node, trace: Trace) -> int:
    """Over all time steps: input and state times W [directions, gates H, I] and R [directions, gates H, H]."""
    source = node.inputs[0]
    shape = trace.shape(source.name) if source is not None else None
    weights = [_stored(v) or trace.shape(v.name if v is not None else None) for v in node.inputs[1:3]]
    if shape is None or any(w is None for w in weights):
        return 0
    return int(np.prod(shape[:2])) * sum(int(np.prod(w)) for w in weights if w is not None)


def _stored(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a constant; None for others."""
    tensor = read.constant_tensor(value)
    return None if tensor is None else tuple(int(d) for d in tensor.shape.numpy())


def macs(model: ir.Model, trace: Trace) -> dict[str, int]:
    """Multiply-accumulates by node name, for nodes with weights only."""
    return {n.name or "": node_macs(n, trace) for n in model.graph if n.op_type in read.WEIGHTED | read.RECURRENT}
