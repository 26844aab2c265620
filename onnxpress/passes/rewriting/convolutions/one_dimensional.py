"""Convolutions over one axis, as convolutions of pictures of height one.

before -> after

    Conv on [N, C, L]  -> Unsqueeze, Conv on [N, C, 1, L], Squeeze
    Squeeze, f, Unsqueeze -> f on [N, C, 1, L], for elementwise operators, Concat of channels and pooling

Why: onnxruntime's blocked and depthwise kernels are for pictures; convolutions over one axis are written out as a
matrix first (im2col), depthwise ones slowly so. Between convolutions the tensors then stay in the blocked layout, too.

Conditions: constant float32 weights; the second line is applied only where it takes an Unsqueeze away.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.elementwise.activations import Builder

_AXES_AS_INPUT = 13  # operator set from which on the axes of Squeeze and Unsqueeze are an input
_ELEMENTWISE = frozenset(
    """Add Sub Mul Div Sum Max Min Relu Clip LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Elu Selu Celu Gelu Mish
    Softplus Erf Exp Neg Abs Sqrt Pow PRelu BatchNormalization Dropout""".split()
)
_POOLS = frozenset("MaxPool AveragePool GlobalAveragePool GlobalMaxPool".split())
_FAR = 16  # operators between a Squeeze and an Unsqueeze
_HEIGHT = {"kernel_shape": [1], "strides": [1], "dilations": [1]}  # what an attribute of one axis gets in front


def as_picture(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Make a convolution of pictures of one over one axis, in place; whether it was one."""
    weight = read.constant(node.inputs[1]) if node.op_type == "Conv" and read.standard(node) else None
    if weight is None or weight.ndim != 3 or weight.dtype != np.float32 or node.inputs[0] is None:
        return False
    make = Builder(model, node)
    stored = edit.add_constant(model, weight[:, :, None, :], f"{node.name}_weight")
    raised = _axis_operator(make, "Unsqueeze", node.inputs[0])
    done = make("Conv", [raised, stored, *node.inputs[2:]], **_with_height(node))
    edit.bypass(model, node, _axis_operator(make, "Squeeze", done))
    return True


def drop_axis_changes(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Take one Unsqueeze away: behind a Squeeze, or behind operators that a Squeeze can be moved over."""
    if not _changes_axis(node, "Unsqueeze") or node.inputs[0] is None:
        return False
    maker = node.inputs[0].producer()
    if maker is None:
        return False
    if not _changes_axis(maker, "Squeeze"):
        if not _behind_squeeze(maker, sizes, _FAR):
            return False
        _move_over(model, maker, sizes)
        maker = node.inputs[0].producer()
    assert maker is not None and maker.inputs[0] is not None
    edit.bypass(model, node, maker.inputs[0])
    return True


def _move_over(model: ir.Model, node: ir.Node, sizes: Trace) -> None:
    """Give an operator the axis of one, and those in front of it up to a Squeeze; a Squeeze follows it."""
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        if maker is not None and not _changes_axis(maker, "Squeeze") and _behind_squeeze(maker, sizes, _FAR):
            _move_over(model, maker, sizes)
    make = Builder(model, node)
    done = make(node.op_type, [_raised(make, v) for v in node.inputs], **_with_height(node))
    edit.bypass(model, node, _axis_operator(make, "Squeeze", done))


def _behind_squeeze(node: ir.Node, sizes: Trace, far: int) -> bool:
    """Whether an operator computes the same with an axis of one more, and a Squeeze stands in front of it: directly, or
    behind others of which the same is true."""
    if not far or not read.standard(node) or len([v for v in node.outputs if v.name]) != 1:
        return False
    plain = node.op_type in _ELEMENTWISE or (node.op_type == "Concat" and read.int_attribute(node, "axis", 0) == 1)
    shape = sizes.shape(node.outputs[0].name)
    if not (plain or node.op_type in _POOLS) or shape is None or len(shape) != 3:
        return False
    reached = False
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        if value is None or read.constant_tensor(value) is not None:
            continue
        if maker is not None and _changes_axis(maker, "Squeeze"):
            reached = True
            continue
        given = sizes.shape(value.name)
        if given is None or len(given) != 3:
            return False
        reached = reached or (maker is not None and _behind_squeeze(maker, sizes, far - 1))
    return reached


def _raised(make: Builder, value: ir.Value | None) -> ir.Value | None:
    """An operand with the axis of one."""
    array = read.constant(value)
    if value is None or (array is not None and array.ndim < 2):
        return value  # a number, parameters of channels, or the last axis
    if array is not None:
        return edit.add_constant(make.model, np.expand_dims(array, -2), f"{value.name}_raised")
    maker = value.producer()
    if maker is not None and _changes_axis(maker, "Squeeze"):
        return maker.inputs[0]
    return _axis_operator(make, "Unsqueeze", value)


def _changes_axis(node: ir.Node, kind: str) -> bool:
    """Whether a node is a Squeeze or Unsqueeze of axis 2 of pictures, as this module makes them."""
    if node.op_type != kind or not read.standard(node):
        return False
    given = read.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = read.ints_attribute(node, "axes") if given is None else given.ravel().tolist()
    return axes == [2]


def _axis_operator(make: Builder, kind: str, value: ir.Value) -> ir.Value:
    if read.opset(make.model) < _AXES_AS_INPUT:
        return make(kind, [value], axes=[2])
    return make(kind, [value, edit.add_constant(make.model, np.array([2], np.int64), "axes")])


def _with_height(node: ir.Node) -> dict[str, object]:
    """The attributes of an operator over one axis for one over two, of which the first has the size one."""
    found: dict[str, object] = {name: attribute.value for name, attribute in node.attributes.items()}
    for name, front in _HEIGHT.items():
        if name in found:
            found[name] = [*front, *read.ints_attribute(node, name)]
    if "pads" in found:
        first, last = read.ints_attribute(node, "pads")
        found["pads"] = [0, first, 0, last]
    return found
