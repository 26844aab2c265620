"""Which initializers of a graph are weights: float tensors from which gradients reach an output.

Numbers in the place of shapes, scales of Resize, statistics of BatchNormalization, single numbers (an epsilon, a
temperature) and infinities (masks) are not: nobody trained them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.train import operators

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_LARGEST = 1e30


def reached(
    nodes: Sequence[ir.Node], outputs: Iterable[str], versions: Mapping[str, int], fake_quant: bool = False
) -> set[str]:
    """Names of the values whose gradient an output can give (sub-graphs count with all their outputs)."""
    wanted = set(outputs)
    for node in reversed(nodes):
        if not any(v.name in wanted for v in node.outputs):
            continue
        positions = carries(node, versions, fake_quant)
        wanted.update(
            v.name
            for i, v in enumerate(node.inputs)
            if v is not None and v.name and (positions is None or i in positions)
        )
        for graph in subgraphs(node):
            wanted |= reached(list(graph), [v.name for v in graph.outputs if v.name], versions, fake_quant)
    return wanted


def carries(node: ir.Node, versions: Mapping[str, int], fake_quant: bool = False) -> tuple[int, ...] | None:
    """Positions of a node's inputs that carry gradients; None: all."""
    if fake_quant and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return (0,)
    if node.op_type == "Cast" and read.standard(node):
        target = node.attributes.get("to")
        return (0,) if target is not None and (target.is_ref() or target.value in FLOATS) else ()
    domain = "" if read.standard(node) else node.domain
    entry = operators.find(domain, node.op_type, versions.get(domain, versions.get("ai.onnx", 1)))
    return None if entry is None else entry.data


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH and not attr.is_ref():
            yield attr.value
        elif attr.type == ir.AttributeType.GRAPHS and not attr.is_ref():
            yield from attr.value


def stored(graph: ir.Graph, nodes: Iterable[ir.Node]) -> dict[str, ir.TensorProtocol]:
    """Every tensor a graph holds by value name: initializers and Constant nodes, sub-graphs included."""
    found = {name: v.const_value for name, v in graph.initializers.items() if v.const_value is not None}
    for node in nodes:
        if node.op_type == "Constant" and read.standard(node) and "value" in node.attributes and node.outputs[0].name:
            attr = node.attributes["value"]
            if not attr.is_ref():
                found.setdefault(node.outputs[0].name, attr.value)
        for inner in subgraphs(node):
            for name, tensor in stored(inner, inner).items():
                found.setdefault(name, tensor)
    return found


def is_weight(tensor: ir.TensorProtocol, lone: bool) -> bool:
    """Whether the numbers look trained.  lone: a Constant node's, where a single number is a setting."""
    if tensor.dtype not in FLOATS or len(tensor.shape) == 0 or tensor.size <= int(lone):
        return False
    array = tensor.numpy()
    if tensor.dtype != ir.DataType.DOUBLE:
        array = array.astype(np.float32)
    return bool(np.all(np.abs(array) < _LARGEST))


def weights(graph: ir.Graph, held: Mapping[str, ir.TensorProtocol], reach: set[str]) -> list[str]:
    """Names of the trained tensors among those held, in the order the graph stores them."""
    fixed = set(graph.initializers)
    return [n for n, t in held.items() if n in reach and is_weight(t, n not in fixed)]
