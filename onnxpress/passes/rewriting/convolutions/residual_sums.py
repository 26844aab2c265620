"""Sums of a blocked and a plain tensor, brought back into the layout of convolutions.

before -> after

    Add(Conv(...), Pad(Slice(x))) -> Add(Conv(...), Conv(Pad(Slice(x)), 1)), depthwise 1x1

Why: where one operand of a sum is in the plain order the result is, too, and so are all sums of a chain of residual
blocks behind it: each convolution of the chain is brought to the plain order, and its input back. One convolution that
multiplies by one, at the first of them, keeps the others in blocks, where the sums become part of the convolutions.

Conditions: float32 tensors [N, C, H, W] of equal sizes; a convolution reads the result, behind nothing that needs the
plain order; and only the first sum of a chain is changed.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.convolutions.blocked_layout import WIDEST_BLOCK, is_blocked, reaches_convolution
from onnxpress.passes.rewriting.elementwise.activations import FLOAT32, Builder, float_type

_UNARY = frozenset(
    "Relu Clip LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Gelu Mish Softplus Erf BatchNormalization Dropout".split()
)
_POOLS = frozenset("MaxPool AveragePool".split())
_FAR = 200  # operators that are looked back over


def keep_sum_blocked(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Change one sum, in place; whether it was the first of a chain with one plain operand."""
    if node.op_type not in ("Add", "Sum") or not read.standard(node) or len(node.inputs) != 2:
        return False
    shapes = [sizes.shape(v.name) if v is not None else None for v in node.inputs]
    if shapes[0] is None or len(shapes[0]) != 4 or shapes[0] != shapes[1]:
        return False
    if float_type(node.outputs[0], sizes) != FLOAT32 or not reaches_convolution(node):
        return False
    plain = [_is_plain(v, sizes, _FAR) for v in node.inputs]
    if plain[0] == plain[1]:
        return False
    index = plain.index(True)
    channels = shapes[0][1]
    weight = edit.add_constant(model, np.ones((channels, 1, 1, 1), np.float32), f"{read.node_label(node)}_one")
    blocked = Builder(model, node)("Conv", [node.inputs[index], weight], group=channels, kernel_shape=[1, 1])
    node.replace_input_with(index, blocked)
    return True


def _is_plain(value: ir.Value | None, sizes: Trace, far: int) -> bool:
    """Whether a value is in the plain order; a sum with one plain operand is not, since it is brought back itself."""
    maker = value.producer() if value is not None else None
    if value is None or maker is None or not read.standard(maker) or not far:
        return True
    if is_blocked(maker):
        return False
    shape = sizes.shape(value.name)
    whole_blocks = shape is not None and len(shape) == 4 and shape[1] % WIDEST_BLOCK == 0
    inputs = [v for v in maker.inputs if v is not None and read.constant_tensor(v) is None]
    if maker.op_type in ("Add", "Sum", "Mul"):
        same = len({sizes.shape(v.name) for v in inputs}) == 1
        plain = [_is_plain(v, sizes, far - 1) for v in inputs]
        return not same or len(inputs) < 2 or (all(plain) if maker.op_type != "Mul" else any(plain))
    if maker.op_type == "Concat":
        parts = [sizes.shape(v.name) for v in inputs]
        aligned = all(p is not None and len(p) == 4 and p[1] % WIDEST_BLOCK == 0 for p in parts)
        return not aligned or any(_is_plain(v, sizes, far - 1) for v in inputs)
    if maker.op_type in _UNARY or (maker.op_type in _POOLS and whole_blocks):
        return _is_plain(maker.inputs[0], sizes, far - 1)
    return True
