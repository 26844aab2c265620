"""Sums and products with constants between convolutions, as one depthwise convolution.

before -> after

    ... Mul, Add, Sub, Div by a number or by one for each channel, Neg ...  -> Conv, depthwise 1x1, with bias

Why: onnxruntime has no blocked kernel for an operand that is not of the tensor's size; each of these brings the tensor
to its plain order and back. A depthwise 1x1 convolution stays in blocks, and takes an activation behind it with it.
(BatchNormalization alone, and what follows a convolution directly, onnxruntime and `simplify` fold themselves.)

Conditions: float32 tensors [N, C, H, W] between convolutions, nothing reads what lies within a chain, no product with 0
or with what is not finite.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.convolutions.blocked_layout import between_convolutions, channels_of, per_channel
from onnxpress.passes.rewriting.elementwise.activations import FLOAT32, Builder, float_type

_AFFINE = ("Mul", "Add", "Sub", "Div", "Neg")
Affine = tuple[np.ndarray, np.ndarray]  # scale and shift of each channel


def as_depthwise(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Replace the chain that ends at a node, in place; whether there is one."""
    found = _step(node, sizes)
    if found is None or not between_convolutions(node):
        return False
    reader = read.only_user(node.outputs[0])
    if reader is not None and _step(reader, sizes) is not None:
        return False  # not the end of the chain
    source, (scale, shift) = found
    while (inner := _inner(source, sizes)) is not None:
        source, own = inner
        scale, shift = scale * own[0], scale * own[1] + shift
    if not (np.isfinite(scale).all() and np.isfinite(shift).all() and scale.all()):
        return False
    channels = len(scale)
    make = Builder(model, node)
    weight = edit.add_constant(model, scale.reshape(-1, 1, 1, 1).astype(np.float32), "scale")
    inputs = [source, weight]
    if shift.any():
        inputs.append(edit.add_constant(model, shift.astype(np.float32), "shift"))
    edit.bypass(model, node, make("Conv", inputs, group=channels, kernel_shape=[1, 1]))
    return True


def _inner(value: ir.Value, sizes: Trace) -> tuple[ir.Value, Affine] | None:
    """The step that makes a value, where nothing else reads it."""
    producer = value.producer()
    return None if producer is None or read.only_user(value) is None else _step(producer, sizes)


def _step(node: ir.Node, sizes: Trace) -> tuple[ir.Value, Affine] | None:
    """What a node scales and shifts, and by how much."""
    if node.op_type not in _AFFINE or not read.standard(node) or float_type(node.outputs[0], sizes) != FLOAT32:
        return None
    channels = channels_of(node.outputs[0], sizes)
    if channels is None or channels < 2:
        return None
    ones, zeros = np.ones(channels), np.zeros(channels)
    if node.op_type == "Neg":
        return None if node.inputs[0] is None else (node.inputs[0], (-ones, zeros))
    for index in (0, 1):
        source = node.inputs[index]
        numbers = per_channel(node.inputs[1 - index], channels)
        if source is None or numbers is None or channels_of(source, sizes) != channels:
            continue
        n = numbers.astype(np.float64)
        if node.op_type == "Mul":
            return source, (n, zeros)
        if node.op_type == "Add":
            return source, (ones, n)
        if node.op_type == "Sub":
            return source, ((ones, -n) if index == 0 else (-ones, n))
        if index == 0 and n.all():
            return source, (1 / n, zeros)
    return None
