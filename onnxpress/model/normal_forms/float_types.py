"""Models in float16 or float64, and weights that are kept in 16 bits.

onnxruntime's CPU kernels compute float16 as float32 between Casts, and passes work on float32: `compute_in_float32`
makes such a model, with the types of the signature kept by Casts at the ends. The weights of a file in 16 bits are
folded to float32 for passes (`fold_casts`); `sixteen_bit_type` tells how they are to be stored again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read

SIXTEEN = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_OTHERS = (ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_LEAST = 64  # elements of a weight


def sixteen_bit_type(model: ir.Model) -> ir.DataType | None:
    """The 16-bit type that a file keeps weights in, or None."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in SIXTEEN and tensor.size >= _LEAST:
            return tensor.dtype
    return None


def other_float_type(model: ir.Model) -> ir.DataType | None:
    """The type that a model computes in where it is not float32: that of a weight that anything but a Cast reads."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _OTHERS or tensor.size < _LEAST:
            continue
        if any(use.node.op_type != "Cast" for use in value.uses()):
            return tensor.dtype
    return None


def fold_casts(model: ir.Model) -> None:
    """Make float32 initializers of those in 16 bits behind a Cast, in place."""
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "Cast" and read.standard(node) else None
        tensor = None if value is None or value.is_graph_input() else read.constant_tensor(value)
        whole = read.int_attribute(node, "to", 0) == ir.DataType.FLOAT if value is not None else False
        if tensor is None or not whole or tensor.dtype not in SIXTEEN or node.outputs[0].is_graph_output():
            continue
        wide = edit.add_constant(model, tensor.numpy().astype(np.float32), node.outputs[0].name or "wide")
        edit.bypass(model, node, wide)
    edit.drop_dead(model)


def compute_in_float32(model: ir.Model, kind: ir.DataType) -> ir.Model:
    """A clone in float32 with the same signature. kind: the float type it computes in now.

    Raises ValueError where numbers are too large for float32.
    """
    clone = model.clone()
    kept = {v.name for v in (*clone.graph.inputs, *clone.graph.outputs)}
    ends = [(v, v.dtype) for v in clone.graph.outputs]
    for graph in (clone.graph, *clone.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.name not in kept or graph is not clone.graph:
                _widen_constant(value, kind)
        for value in _values(graph):
            if value.dtype == kind and (graph is not clone.graph or not value.is_graph_input()):
                value.type = ir.TensorType(ir.DataType.FLOAT)
        for node in graph:
            _widen_attributes(node, kind)
    for value in [v for v in clone.graph.inputs if v.dtype == kind]:
        edit.cast_readers(clone, value, ir.DataType.FLOAT)
    for value, wanted in ends:
        if wanted == kind:
            edit.cast_output(clone, value, kind)
    return clone


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _widen_constant(value: ir.Value, kind: ir.DataType) -> None:
    tensor = value.const_value
    if tensor is None or tensor.dtype != kind:
        return
    array = tensor.numpy()
    with np.errstate(over="ignore"):
        wide = array.astype(np.float32)
    if np.isfinite(array).sum() != np.isfinite(wide).sum():
        raise ValueError(f"{value.name} has numbers that are too large for float32")
    edit.set_constant(value, wide)


def _widen_attributes(node: ir.Node, kind: ir.DataType) -> None:
    """Types that a node names (`to`, `dtype`), and the tensor it fills with."""
    for name, attribute in list(node.attributes.items()):
        if name in ("to", "dtype") and attribute.value == kind:
            edit.set_int(node, name, ir.DataType.FLOAT.value)
        elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == kind:
            edit.set_tensor(node, name, attribute.value.numpy().astype(np.float32))
