"""What onnxruntime's blocked layout needs to know about a value: whether it lies between float convolutions.

A float Conv with constant weights computes in blocks of channels. What stands between two of them stays in blocks if
onnxruntime has a blocked kernel for it, else the tensor is brought back to its plain order, and blocked again behind.

Source: onnxruntime core/optimizer/nchwc_transformer.cc, and graphs that release 1.32 saved.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.trace import Trace

WIDEST_BLOCK = 16  # channels
_FAR = 8  # nodes that are looked at
_THROUGH = frozenset(
    """Add Sum Mul Sub Div Relu Clip LeakyRelu PRelu Sigmoid HardSigmoid HardSwish Tanh Elu Gelu Mish Softplus Erf Min
    Max Neg Pow Abs BatchNormalization MaxPool AveragePool Concat Resize Upsample Exp""".split()
)


def is_blocked(node: ir.Node) -> bool:
    """Whether a node is a convolution of pictures in float32 with constant weights."""
    if node.op_type != "Conv" or not read.standard(node):
        return False
    weight = read.constant_tensor(node.inputs[1])
    return weight is not None and weight.dtype == ir.DataType.FLOAT and len(weight.shape) == 4


def between_convolutions(node: ir.Node) -> bool:
    """Whether a convolution lies in front of a node, and one behind it, with nothing that needs the plain order."""
    ahead = [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
    return _reaches(ahead, forward=False) and reaches_convolution(node)


def reaches_convolution(node: ir.Node) -> bool:
    """Whether a convolution lies behind a node, with nothing between them that needs the plain order."""
    return _reaches([use.node for v in node.outputs for use in v.uses()], forward=True)


def _reaches(start: list[ir.Node], forward: bool) -> bool:
    waiting, seen = list(start), 0
    while waiting and seen < _FAR:
        node = waiting.pop(0)
        seen += 1
        if is_blocked(node):
            return True
        if node.op_type not in _THROUGH:
            continue
        if forward:
            waiting += [use.node for v in node.outputs for use in v.uses()]
        else:
            waiting += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
    return False


def channels_of(value: ir.Value | None, sizes: Trace) -> int | None:
    """The number of channels of a tensor [N, C, H, W]; None where it has another rank."""
    shape = sizes.shape(value.name) if value is not None else None
    return shape[1] if shape is not None and len(shape) == 4 else None


def per_channel(value: ir.Value | None, channels: int) -> np.ndarray | None:
    """A constant operand of a tensor [N, C, H, W] as one number for each channel [C]; None where it is not that."""
    array = read.constant(value)
    if array is None or array.dtype != np.float32 or array.ndim > 4:
        return None
    full = (1,) * (4 - array.ndim) + array.shape
    if full[0] != 1 or full[2:] != (1, 1) or full[1] not in (1, channels):
        return None
    return np.broadcast_to(array.ravel(), (channels,)).copy()
