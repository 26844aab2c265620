"""Fusion of subgraphs that are one torch kernel: layer normalization, Gelu and attention as exporters decompose them.

Only the last node of a pattern is overridden; it then reads the inputs of the pattern, and the nodes between are not
scheduled where nothing else (an output, an extra output) reads them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch.nn import functional

from onnxpress.model import read
from onnxpress.train.graph.compile import Override
from onnxpress.train.graph.registry import Builder, NodeContext, Run
from onnxpress.train.graph.tensors import Tensor
from onnxpress.train.operators.layers.normalize import layer_norm


@dataclass(frozen=True)
class _Graph:
    """The part of a graph in which patterns are searched.

    tensors: constant tensors by name.
    inside: ids of the nodes of the region.
    fed: names of values given from outside, at which patterns end.
    """

    tensors: Mapping[str, ir.TensorProtocol]
    inside: frozenset[int]
    fed: frozenset[str]

    def number(self, value: ir.Value | None) -> float | None:
        """The scalar that a value always is; None for another value."""
        tensor = self.tensors.get(value.name or "") if value is not None else None
        if (
            tensor is None or tensor.size != 1 or len(tensor.shape) > 1
        ):  # a higher rank would change the rank of the result
            return None
        return float(tensor.numpy().reshape(()))

    def is_number(self, value: ir.Value | None, wanted: float) -> bool:
        """Whether a value is the given constant."""
        found = self.number(value)
        return found is not None and math.isclose(found, wanted, rel_tol=2e-4)

    def made_by(self, value: ir.Value | None, op: str) -> ir.Node | None:
        """The node of the region that computes a value, where it has the given operator."""
        node = value.producer() if value is not None else None
        if node is None or id(node) not in self.inside or (value is not None and value.name in self.fed):
            return None
        return node if node.op_type == op and read.standard(node) else None


def fuse_patterns(
    nodes: Sequence[ir.Node], fed: Collection[str], tensors: Mapping[str, ir.TensorProtocol], trained: Collection[str]
) -> dict[int, Override]:
    """Overrides of the last nodes of the patterns, by node id.

    fed: names of values given from outside.
    tensors: stored tensors by name.
    trained: names of tensors that are trained.
    """
    fixed = {n: t for n, t in tensors.items() if n not in set(trained)}
    graph = _Graph(fixed, frozenset(id(n) for n in nodes), frozenset(fed))
    found = {}
    for node in nodes:
        match = _PATTERNS.get(node.op_type) if read.standard(node) else None
        override = match(node, graph) if match is not None else None
        if override is not None:
            found[id(node)] = override
    return found


def _value_and_constant(node: ir.Node | None, graph: _Graph) -> tuple[ir.Value, float] | None:
    """The operands of a node with one value and one constant scalar."""
    if node is None:
        return None
    for value, other in (node.inputs, node.inputs[::-1]):
        number = graph.number(other)
        if number is not None and value is not None and graph.number(value) is None:
            return value, number
    return None


def _names(*values: ir.Value | None) -> tuple[str | None, ...]:
    return tuple(v.name if v is not None else None for v in values)


def _factors(value: ir.Value | None, graph: _Graph) -> list[ir.Value | None]:
    """Operands of a product of up to three factors."""
    outer = graph.made_by(value, "Mul")
    factors: list[ir.Value | None] = []
    for operand in outer.inputs if outer is not None else ():
        inner = graph.made_by(operand, "Mul")
        factors += inner.inputs if inner is not None else [operand]
    return factors


def _gelu(node: ir.Node, graph: _Graph) -> Override | None:
    """x * (1 + erf(x / sqrt 2)) * 0.5, in any order."""
    factors = _factors(node.outputs[0], graph)
    rest = [f for f in factors if not graph.is_number(f, 0.5)]
    if len(factors) != 3 or len(rest) != 2:
        return None
    for x, gate in (rest, rest[::-1]):
        shifted = _value_and_constant(graph.made_by(gate, "Add"), graph)
        if shifted is None or not math.isclose(shifted[1], 1.0):
            continue
        erf = graph.made_by(shifted[0], "Erf")
        inner = erf.inputs[0] if erf is not None else None
        divided, times = graph.made_by(inner, "Div"), _value_and_constant(graph.made_by(inner, "Mul"), graph)
        if divided is not None and divided.inputs[0] is x and graph.is_number(divided.inputs[1], math.sqrt(2)):
            return Override(lambda context: functional.gelu, _names(x))
        if times is not None and times[0] is x and math.isclose(times[1], math.sqrt(0.5), rel_tol=2e-4):
            return Override(lambda context: functional.gelu, _names(x))
    return None


def _reduced_over_last_axis(node: ir.Node | None, graph: _Graph) -> ir.Value | None:
    """The input of a ReduceMean over the last axis."""
    if node is None or not read.int_attribute(node, "keepdims", 1):
        return None
    x = node.inputs[0]
    axes = read.ints_attribute(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        stored = graph.tensors.get(node.inputs[1].name or "")
        axes = [] if stored is None else [int(a) for a in stored.numpy().reshape(-1)]
    rank = len(x.shape) if x is not None and x.shape is not None else None
    return x if axes == [-1] or (rank is not None and axes == [rank - 1]) else None


def _layer_norm(node: ir.Node, graph: _Graph) -> Override | None:
    """(x - mean) / sqrt(mean of squares + epsilon) * gamma + beta over the last axis."""
    for scaled, beta in (node.inputs, node.inputs[::-1]):
        product = graph.made_by(scaled, "Mul")
        for normed, gamma in (product.inputs, product.inputs[::-1]) if product is not None else ():
            divided = graph.made_by(normed, "Div")
            found = _normalized(divided, graph) if divided is not None else None
            if found is not None and all(v is not None for v in (gamma, beta)):
                return Override(_as_layer_norm(found[1]), _names(found[0], gamma, beta))
    return None


def _normalized(node: ir.Node, graph: _Graph) -> tuple[ir.Value, float] | None:
    """x and epsilon of a Div that normalizes."""
    centred, root = graph.made_by(node.inputs[0], "Sub"), graph.made_by(node.inputs[1], "Sqrt")
    if centred is None or root is None:
        return None
    x = centred.inputs[0]
    spread = _value_and_constant(graph.made_by(root.inputs[0], "Add"), graph)
    if (
        x is None
        or spread is None
        or _reduced_over_last_axis(graph.made_by(centred.inputs[1], "ReduceMean"), graph) is not x
    ):
        return None
    square = _reduced_over_last_axis(graph.made_by(spread[0], "ReduceMean"), graph)
    power, product = graph.made_by(square, "Pow"), graph.made_by(square, "Mul")
    base = None
    if power is not None and graph.is_number(power.inputs[1], 2.0):
        base = power.inputs[0]
    elif product is not None and product.inputs[0] is product.inputs[1]:
        base = product.inputs[0]
    other = graph.made_by(base, "Sub")  # some exporters subtract the mean twice
    same = base is node.inputs[0] or (other is not None and list(other.inputs) == list(centred.inputs))
    return (x, spread[1]) if same else None


def _as_layer_norm(epsilon: float) -> Builder:
    def build(context: NodeContext) -> Run:
        return lambda x, gamma, beta: layer_norm(x, gamma, beta, -1, epsilon)

    return build


def _attention(node: ir.Node, graph: _Graph) -> Override | None:
    """softmax(scale q k' + mask) v, where the scale is a scalar and the mask may be absent."""
    soft = graph.made_by(node.inputs[0], "Softmax")
    if soft is None or read.node_opset(soft) < 13 or read.int_attribute(soft, "axis", -1) not in (-1, 3):
        return None
    scores, mask = soft.inputs[0], None
    added = graph.made_by(scores, "Add")
    for value, other in (added.inputs, added.inputs[::-1]) if added is not None else ():
        if _scaled(value, graph) is not None:
            scores, mask = value, other
            break
    found = _scaled(scores, graph)
    if found is None:
        return None
    product, scale = found
    rank = len(node.outputs[0].shape) if node.outputs[0].shape is not None else None
    if rank not in (None, 4):
        return None
    return Override(_as_attention(scale), _names(product.inputs[0], product.inputs[1], node.inputs[1], mask))


def _scaled(value: ir.Value | None, graph: _Graph) -> tuple[ir.Node, float] | None:
    """The MatMul that computes a value, and the scalar by which it is multiplied."""
    direct = graph.made_by(value, "MatMul")
    if direct is not None:
        return direct, 1.0
    times, divided = _value_and_constant(graph.made_by(value, "Mul"), graph), graph.made_by(value, "Div")
    if times is not None:
        product = graph.made_by(times[0], "MatMul")
        return None if product is None else (product, times[1])
    number = graph.number(divided.inputs[1]) if divided is not None else None
    product = graph.made_by(divided.inputs[0], "MatMul") if divided is not None else None
    return (product, 1.0 / number) if product is not None and number else None


def _as_attention(scale: float) -> Builder:
    def build(context: NodeContext) -> Run:
        def run(q: Tensor, turned: Tensor, v: Tensor, mask: Tensor = None) -> Tensor:
            lead, rows = q.shape[:-2], (*q.shape[:-1], turned.shape[-1])
            plain = mask is None or torch.broadcast_shapes(mask.shape, rows) == rows
            if not plain or turned.shape[:-2] != lead or v.shape[:-2] != lead:  # shapes that only MatMul broadcasts
                scores = torch.matmul(q, turned) * scale
                return torch.matmul(torch.softmax(scores if mask is None else scores + mask, -1), v)
            return functional.scaled_dot_product_attention(q, turned.transpose(-1, -2), v, mask, scale=scale)

        return run

    return build


_PATTERNS = {"Mul": _gelu, "Add": _layer_norm, "MatMul": _attention}
