"""PRelu, which onnxruntime has no blocked kernel for.

before -> after

    PRelu(x, equal slopes a)          -> LeakyRelu(x, a)
    PRelu(x, slope of each channel)   -> Relu(x) + Conv(Relu(Conv(x, -1)), -slope), depthwise 1x1

Why: between two convolutions PRelu brings the tensor to its plain order and back. LeakyRelu becomes part of the
convolution in front; the depthwise convolutions stay in blocks, take the Relu with them, and the sum is theirs, too.

Conditions: constant slopes of one number or one for each channel; the second form between convolutions only. Both parts
are exact: above zero the second is 0, below zero the first. An infinite input with a slope of 0 gives NaN as before.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.convolutions.blocked_layout import between_convolutions, channels_of, per_channel
from onnxpress.passes.rewriting.elementwise.activations import FLOAT32, Builder, float_type


def fast_prelu(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Replace one PRelu, in place; whether it was one that can be."""
    if node.op_type != "PRelu" or not read.standard(node) or float_type(node.outputs[0], sizes) != FLOAT32:
        return False
    x, slope = node.inputs[0], read.constant(node.inputs[1])
    shape = sizes.shape(x.name) if x is not None else None
    if x is None or slope is None or slope.size == 0 or shape is None or slope.ndim > len(shape):
        return False
    make = Builder(model, node)
    if np.all(slope == slope.ravel()[0]) and _spreads_nothing(slope, shape):
        edit.bypass(model, node, make("LeakyRelu", [x], alpha=float(slope.ravel()[0])))
        return True
    channels = channels_of(x, sizes)
    slopes = per_channel(node.inputs[1], channels) if channels is not None else None
    if channels is None or slopes is None or not between_convolutions(node):
        return False

    def times(value: ir.Value, numbers: np.ndarray) -> ir.Value:
        weight = edit.add_constant(model, numbers.reshape(-1, 1, 1, 1).astype(np.float32), "slope")
        return make("Conv", [value, weight], group=channels, kernel_shape=[1, 1])

    below = times(make("Relu", [times(x, -np.ones(channels))]), -slopes)
    edit.bypass(model, node, make("Add", [below, make("Relu", [x])]))
    return True


def _spreads_nothing(slope: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether slopes have at most the size of the tensor on every axis that could be of size one."""
    full = (1,) * (len(shape) - slope.ndim) + slope.shape
    return all(a in (1, b) for a, b in zip(full, shape, strict=True))
