"""Channels between convolutions, padded to a number that the blocked kernels take.

before -> after

    Conv, activations, depthwise Conv, ..., Conv that reads 58 channels -> the same with 60, two of them zeros
    Gather of 58 channels, Conv                                        -> Gather of 60 channels, weights of zero for two

Why: onnxruntime brings a convolution into its blocked layout only if the number of channels that it reads is a multiple
of four (or less than a block). Others go through im2col in the plain order, and all between them with it.

Conditions: constant float32 weights; nothing else reads what lies between the two ends. Zeros multiply finite values.

Source: onnxruntime core/optimizer/nchwc_transformer.cc (convolutions).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.convolutions.blocked_layout import is_blocked

_MULTIPLE, _LEAST = 4, 16  # of channels; a widest block: fewer channels than that are read in the plain order
_UNARY = frozenset("Relu LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Elu Gelu Mish Softplus Clip".split())
_FAR = 16  # operators between two convolutions


def pad_channels(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Pad the channels that a convolution reads, in place; whether that was possible and of use."""
    weight = read.constant(node.inputs[1]) if _plain_convolution(node) else None
    missing = -weight.shape[1] % _MULTIPLE if weight is not None else 0
    if weight is None or not missing or weight.shape[1] < _LEAST:
        return False
    path = _path(node, weight.shape[1])
    if path is None:
        return False
    edit.set_input(model, node, 1, _padded(weight, missing, 1), f"{node.name}_weight")
    for maker in path:
        if maker.op_type == "Gather":
            chosen = read.constant(maker.inputs[1])
            assert chosen is not None
            edit.set_input(model, maker, 1, np.concatenate([chosen, chosen[:missing]]), f"{maker.name}_channels")
        elif maker.op_type == "Conv":
            _widen(model, maker, missing)
    return True


def _plain_convolution(node: ir.Node) -> bool:
    return is_blocked(node) and read.int_attribute(node, "group", 1) == 1


def _path(node: ir.Node, channels: int) -> list[ir.Node] | None:
    """What makes the channels that a node reads, up to where they begin; None where something else reads them."""
    found: list[ir.Node] = []
    while len(found) < _FAR:
        value = node.inputs[0]
        maker = value.producer() if value is not None else None
        if value is None or maker is None or read.only_user(value) is not node or not read.standard(maker):
            return None
        found.append(maker)
        if maker.op_type == "Gather":
            chosen = read.constant(maker.inputs[1])
            whole = chosen is not None and chosen.shape == (channels,) and read.int_attribute(maker, "axis", 0) == 1
            return found if whole else None
        if maker.op_type in _UNARY:
            if any(v is not None and read.constant_tensor(v) is None for v in maker.inputs[1:]):
                return None
        elif not is_blocked(maker) or read.column_bias(maker, channels) is None:
            return None
        elif read.int_attribute(maker, "group", 1) == 1:
            return found
        elif not _one_to_one(maker, channels):
            return None
        node = maker
    return None


def _one_to_one(node: ir.Node, channels: int) -> bool:
    """Whether a convolution makes each channel of the same one."""
    weight = read.constant(node.inputs[1])
    return weight is not None and weight.shape[:2] == (channels, 1) and read.int_attribute(node, "group", 1) == channels


def _widen(model: ir.Model, node: ir.Node, missing: int) -> None:
    """Give a convolution more channels of zeros."""
    weight = read.constant(node.inputs[1])
    assert weight is not None
    bias = read.column_bias(node, len(weight))
    edit.set_input(model, node, 1, _padded(weight, missing, 0), f"{node.name}_weight")
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is not None:
        edit.set_input(model, node, 2, _padded(bias.astype(np.float32), missing, 0), f"{node.name}_bias")
    groups = read.int_attribute(node, "group", 1)
    if groups > 1:
        edit.set_int(node, "group", groups + missing)


def _padded(array: np.ndarray, missing: int, axis: int) -> np.ndarray:
    return np.pad(array, [(0, missing if a == axis else 0) for a in range(array.ndim)])
