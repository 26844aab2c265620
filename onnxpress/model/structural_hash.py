"""Hash of a model's structure: models that differ only in weights, names or the order of nodes have the same hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxpress.model import read

_COMMUTATIVE = {"Add", "Mul", "Sum", "Max", "Min", "Mean", "And", "Or", "Xor", "Equal"}
_SMALL_FLOAT_OPS = {"Resize", "Upsample", "Clip", "Pad"}  # operators whose small float constants count by value, too
_SMALL = 64  # elements up to which an integer constant counts by value: shapes, axes, pads


def structural_hash(model: ir.Model, named: bool = True) -> str:
    """Hash of operators, attributes, connections and shapes of weights.

    Small integer constants (shapes, axes) count by value.

    named: inputs and outputs count by name, else by position
    """
    return _hash(sorted(model.opset_imports.items()), *_outputs(model.graph, {}, named))


def _outputs(graph: ir.Graph, outer: Mapping[int, str], named: bool = True) -> list[str]:
    """Hashes of a graph's outputs.  outer: hashes of the values of the enclosing graphs."""
    known = dict(outer)
    for place, value in enumerate(graph.inputs):
        known[id(value)] = _hash("input", value.name if named else place, value.dtype, value.shape)
    for value in graph.initializers.values():
        known[id(value)] = _initializer_hash(value)
    for node in graph:
        inputs = ["" if v is None else known.get(id(v), "unknown") for v in node.inputs]
        if read.standard(node) and node.op_type in _COMMUTATIVE:
            inputs.sort()
        attributes = sorted(f"{a.name}={_attribute(a, known)}" for a in node.attributes.values())
        whole = _hash(node.domain, node.op_type, *attributes, *inputs)
        for index, output in enumerate(node.outputs):
            known[id(output)] = _hash(whole, index, len(output.uses()))  # one value read twice differs from two values
    return [_hash(v.name if named else "", known.get(id(v), "unknown")) for v in graph.outputs]


def _initializer_hash(value: ir.Value) -> str:
    """Hash of an initializer; a shared one differs from two equal ones by its number of readers."""
    tensor = value.const_value
    if tensor is None:
        return _hash("weight", value.dtype, value.shape)
    steered = any(u.node.op_type in _SMALL_FLOAT_OPS and u.idx > 0 for u in value.uses())
    steers = (steered or np.dtype(tensor.dtype.numpy()).kind in "iub") and tensor.size <= _SMALL
    if steers or tensor.size <= 1:
        return _hash("constant", tensor.dtype, tensor.shape, tensor.numpy().tolist())
    return _hash("weight", tensor.dtype, tensor.shape, len(value.uses()))


def _attribute(attribute: ir.Attr, known: Mapping[int, str]) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return _hash(tensor.dtype, tensor.shape, tensor.numpy().tolist() if tensor.size <= _SMALL else "")
    if attribute.type == ir.AttributeType.GRAPH:
        return _hash(*_outputs(attribute.as_graph(), known))
    return str(attribute.value)


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
