"""Products of one input with several matrices, as one product.

before -> after

    MatMul(x, A) + a, MatMul(x, B) + b, ... -> Split(MatMul(x, [A B ...]) + [a b ...])
    Gemm(x, A, a), Gemm(x, B, b), ...       -> Split(Gemm(x, [A B ...], [a b ...]))

Why: each product packs x again and pays for its call; queries, keys and values of attention are three of them, the
gates of a decoder two. For short sequences that is as much as the product itself.

Conditions: constant float32 matrices [K, N] of one operator with the same attributes (Gemm without scales), each column
is computed as before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.elementwise.activations import FLOAT32, Builder, float_type

_LAST_AXIS = 11  # operator set from which on Split takes a negative axis
_SIZES_AS_INPUT = 13  # operator set from which on the sizes of Split are an input


@dataclass(frozen=True)
class _Product:
    """A product with its bias.  matrix: [K, N]; bias: [N], zeros without one; value: of the result."""

    matrix: np.ndarray
    bias: np.ndarray
    value: ir.Value


def merge_products(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Make one of all products of the first input of a node, in place; whether there were several."""
    x = node.inputs[0] if node.op_type in ("MatMul", "Gemm") else None
    if x is None or float_type(x, sizes) != FLOAT32 or read.opset(model) < _LAST_AXIS:
        return False
    readers = {id(use.node): use.node for use in x.uses() if use.node.op_type == node.op_type}
    found = {key: product for key, reader in readers.items() if (product := _product(model, reader, x)) is not None}
    if len(found) < 2 or id(node) not in found:
        return False
    first = next(n for n in model.graph if id(n) in found)
    products = list(found.values())
    make, stem = Builder(model, first), read.node_label(first)
    inputs = [x, edit.add_constant(model, np.concatenate([p.matrix for p in products], 1), f"{stem}_weight")]
    bias = edit.add_constant(model, np.concatenate([p.bias for p in products]), f"{stem}_bias")
    if node.op_type == "Gemm":
        merged = make("Gemm", [*inputs, bias])
    else:
        merged = make("Add", [make("MatMul", inputs), bias])
    parts = _split(make, merged, [p.matrix.shape[1] for p in products])
    for product, part in zip(products, parts, strict=True):
        edit.reroute(model, product.value, part)
    return True


def _product(model: ir.Model, node: ir.Node, x: ir.Value) -> _Product | None:
    """A product of the main graph with a constant matrix; the Add of a constant behind a MatMul is part of it."""
    matrix = read.constant(node.inputs[1])
    plain = node.graph is model.graph and read.standard(node) and node.inputs[0] is x
    if not plain or matrix is None or matrix.dtype != FLOAT32 or matrix.ndim != 2:
        return None
    if node.op_type == "Gemm":
        matrix = matrix.T if read.int_attribute(node, "transB", 0) else matrix
        bias = read.column_bias(node, matrix.shape[1])
        scaled = read.float_attribute(node, "alpha", 1.0) != 1.0 or read.int_attribute(node, "transA", 0) != 0
        return None if scaled or bias is None else _Product(matrix, bias.astype(FLOAT32), node.outputs[0])
    value = node.outputs[0]
    reader = read.only_user(value)
    if reader is not None and reader.op_type == "Add" and read.standard(reader):
        other = read.constant(reader.inputs[1] if reader.inputs[0] is value else reader.inputs[0])
        if other is not None and other.dtype == FLOAT32 and other.shape == (matrix.shape[1],):
            return _Product(matrix, other, reader.outputs[0])
    return _Product(matrix, np.zeros(matrix.shape[1], FLOAT32), value)


def _split(make: Builder, value: ir.Value, lengths: list[int]) -> list[ir.Value]:
    """The parts of the last axis."""
    stem = f"{read.node_label(make.before)}_Split"
    given: dict[str, object] = {"axis": -1}
    inputs = [value]
    if read.opset(make.model) < _SIZES_AS_INPUT:
        given["split"] = lengths
    else:
        inputs.append(edit.add_constant(make.model, np.array(lengths, np.int64), f"{stem}_sizes"))
    parts = edit.insert_many(make.model, make.before, "Split", inputs, stem, len(lengths))
    maker = parts[0].producer()
    assert maker is not None
    edit.set_attributes(maker, given)
    return parts
