"""Selection of the trainable weights: float initializers from which gradients reach an output.

Excluded are shapes, scales of Resize, statistics of BatchNormalization, scalars (an epsilon, a temperature) and
infinite values (masks), which are not trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.train import operators

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_LARGEST = 1e30


def values_with_gradient(
    nodes: Sequence[ir.Node], outputs: Iterable[str], versions: Mapping[str, int], fake_quant: bool = False
) -> set[str]:
    """Names of the values that a gradient of the outputs reaches (of subgraphs: through all of their outputs)."""
    wanted = set(outputs)
    for node in reversed(nodes):
        if not any(v.name in wanted for v in node.outputs):
            continue
        positions = gradient_inputs(node, versions, fake_quant)
        wanted.update(
            v.name
            for i, v in enumerate(node.inputs)
            if v is not None and v.name and (positions is None or i in positions)
        )
        for graph in subgraphs(node):
            wanted |= values_with_gradient(list(graph), [v.name for v in graph.outputs if v.name], versions, fake_quant)
    return wanted


def gradient_inputs(node: ir.Node, versions: Mapping[str, int], fake_quant: bool = False) -> tuple[int, ...] | None:
    """Positions of a node's inputs that carry gradients; None: all."""
    if fake_quant and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return (0,)
    if node.op_type == "Cast" and read.standard(node):
        target = node.attributes.get("to")
        return (0,) if target is not None and (target.is_ref() or target.value in FLOATS) else ()
    domain = "" if read.standard(node) else node.domain
    entry = operators.find_operator(domain, node.op_type, versions.get(domain, versions.get("ai.onnx", 1)))
    return None if entry is None else entry.grad_inputs


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The subgraphs of a node."""
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH and not attr.is_ref():
            yield attr.value
        elif attr.type == ir.AttributeType.GRAPHS and not attr.is_ref():
            yield from attr.value


def stored_tensors(graph: ir.Graph, nodes: Iterable[ir.Node]) -> dict[str, ir.TensorProtocol]:
    """Every tensor stored in a graph by value name: initializers and Constant nodes, including those of subgraphs."""
    found = {name: v.const_value for name, v in graph.initializers.items() if v.const_value is not None}
    for node in nodes:
        if node.op_type == "Constant" and read.standard(node) and "value" in node.attributes and node.outputs[0].name:
            attr = node.attributes["value"]
            if not attr.is_ref():
                found.setdefault(node.outputs[0].name, attr.value)
        for inner in subgraphs(node):
            for name, tensor in stored_tensors(inner, inner).items():
                found.setdefault(name, tensor)
    return found


def is_weight(tensor: ir.TensorProtocol, lone: bool) -> bool:
    """Whether a tensor can be a trained weight.  lone: it is a Constant node's, where a single number is a setting."""
    if tensor.dtype not in FLOATS or len(tensor.shape) == 0 or tensor.size <= int(lone):
        return False
    array = tensor.numpy()
    if tensor.dtype != ir.DataType.DOUBLE:
        array = array.astype(np.float32)
    return bool(np.all(np.abs(array) < _LARGEST))


def trainable_weights(graph: ir.Graph, tensors: Mapping[str, ir.TensorProtocol], reach: set[str]) -> list[str]:
    """Names of the trained tensors, in the order in which the graph stores them."""
    fixed = set(graph.initializers)
    return [n for n, t in tensors.items() if n in reach and is_weight(t, n not in fixed)]
