"""Products of a picture with one number for each channel (squeeze-and-excitation), in the layout of convolutions.

before -> after

    Mul(x, g), g of [N, C, 1, 1] computed -> Mul(x, Resize(g, nearest, by H and W))

Why: onnxruntime multiplies blocked tensors of one size only; with another operand both are brought to the plain order
and the product back, and what is added to the next convolution can no longer become part of it, since the sizes of the
two are not proved to be equal. Copying a pixel to H x W stays in blocks. The name of the free axis of samples is stated
for the copies: nothing infers it, and without it the sizes are not proved to be equal either.

Conditions: between float convolutions; H and W follow from the file; x and g have the same axis of samples, which is
proved by a walk to the inputs.

Source: onnxruntime core/optimizer/nchwc_transformer.cc (binary operators, Resize).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.convolutions.blocked_layout import between_convolutions
from onnxpress.passes.rewriting.convolutions.sample_axis import sample_axis
from onnxpress.passes.rewriting.elementwise.activations import FLOAT32, Builder, float_type

_FIRST = 10  # operator set with Resize
_COORDINATES, _OPTIONAL = 11, 13  # from which on it has coordinates, and need not be given a region


def copy_gate(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Change one product, in place; whether it was one of a picture with a gate."""
    if node.op_type != "Mul" or not read.standard(node) or read.opset(model) < _FIRST:
        return False
    found = _operands(node, sizes)
    if found is None or float_type(node.outputs[0], sizes) != FLOAT32 or not between_convolutions(node):
        return False
    picture, gate = found
    samples, others = sample_axis(picture, sizes), sample_axis(gate, sizes)
    if samples is None or samples != others or not samples.fixed:
        return False
    shape = sizes.shape(picture.name)
    assert shape is not None
    make = Builder(model, node)
    scales = edit.add_constant(model, np.array([1, 1, *shape[2:]], np.float32), f"{read.node_label(node)}_size")
    if read.opset(model) < _COORDINATES:
        copied = make("Resize", [gate, scales], mode="nearest")
    else:
        given = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        none = np.zeros(0, np.float32)
        region = None if read.opset(model) >= _OPTIONAL else edit.add_constant(model, none, "region")
        copied = make("Resize", [gate, region, scales], **given)
    if isinstance(samples.size, str):
        copied.shape = ir.Shape([samples.size, None, None, None])
    node.replace_input_with(node.inputs.index(gate), copied)
    return True


def _operands(node: ir.Node, sizes: Trace) -> tuple[ir.Value, ir.Value] | None:
    """The picture and the gate of a product; None where it is another."""
    a, b = node.inputs
    if a is None or b is None or any(read.constant_tensor(v) is not None for v in (a, b)):
        return None
    shapes = [sizes.shape(v.name) for v in (a, b)]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return None
    (first, second) = (shape for shape in shapes if shape is not None)
    if first[1] != second[1] or (first[2:] == (1, 1)) == (second[2:] == (1, 1)):
        return None
    return (a, b) if second[2:] == (1, 1) else (b, a)
