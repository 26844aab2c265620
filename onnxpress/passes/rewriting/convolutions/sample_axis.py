"""Whether the first axis of a value counts samples, and what else of its shape is fixed.

A walk from a picture [N, C, H, W] back to the inputs of the graph, over operators that treat each sample on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.trace import Trace

_RANK = 4
_FAR = 5000  # nodes
_ELEMENTWISE = frozenset(
    """Abs Add Cast Ceil Celu Clip Div Elu Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu Log Max Min Mish Mul Neg
    PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Softplus Softsign Sqrt Sub Sum Tanh ThresholdedRelu""".split()
)
_PICTURES = frozenset(
    """AveragePool BatchNormalization Conv ConvTranspose GlobalAveragePool GlobalMaxPool InstanceNormalization MaxPool
    LRN DepthToSpace SpaceToDepth Identity Dropout GroupNormalization""".split()
)


@dataclass(frozen=True)
class SampleAxis:
    """The first axis of a value: that of these inputs of the graph.

    size: a number, or the name of a free size. fixed: whether all other sizes of those inputs are numbers, so that
    those of the value are fixed as well.
    """

    size: int | str
    fixed: bool


def sample_axis(value: ir.Value | None, sizes: Trace) -> SampleAxis | None:
    """What the first axis of a value of rank 4 is; None where that cannot be told, or inputs differ in it."""
    waiting, seen, sources = [value], set[int](), list[ir.Value]()
    while waiting and len(seen) < _FAR:
        here = waiting.pop()
        if here is None or id(here) in seen:
            continue
        seen.add(id(here))
        if len(sizes.shape(here.name) or ()) != _RANK:
            return None
        if here.is_graph_input():
            sources.append(here)
            continue
        maker = here.producer()
        if maker is not None and (shuffle := channel_shuffle(maker, sizes)) is not None:
            waiting.append(shuffle.source)
            continue
        if maker is None or not _keeps_samples(maker):
            return None
        waiting += [v for v in maker.inputs if v is not None and read.constant_tensor(v) is None]
    if waiting or not sources:
        return None
    shapes = [v.shape for v in sources]
    if any(shape is None or not len(shape) for shape in shapes):
        return None
    first = {_size(shape[0]) for shape in shapes if shape is not None}
    size = first.pop()
    if first or size is None:
        return None
    return SampleAxis(size, all(isinstance(d, int) for shape in shapes if shape is not None for d in list(shape)[1:]))


@dataclass(frozen=True)
class ChannelShuffle:
    """Channels of a picture [N, groups * width, H, W] in the order of their places within groups.  source: before."""

    source: ir.Value
    groups: int
    width: int


def channel_shuffle(node: ir.Node, sizes: Trace) -> ChannelShuffle | None:
    """The shuffle that ends with a Reshape; None where it is another.

    Reshape [N, groups, width, H, W], Transpose of the groups and the width, Reshape [N, C, H, W].
    """
    swap = _behind(node, "Reshape", "Transpose")
    first = _behind(swap, "Transpose", "Reshape") if swap is not None else None
    source = first.inputs[0] if first is not None else None
    if swap is None or first is None or source is None or read.ints_attribute(swap, "perm") != [0, 2, 1, 3, 4]:
        return None
    whole, parts = sizes.shape(source.name), sizes.shape(first.outputs[0].name)
    if whole is None or parts is None or len(whole) != _RANK or sizes.shape(node.outputs[0].name) != whole:
        return None
    if (parts[0], parts[1] * parts[2], *parts[3:]) != whole or min(parts[1:3]) < 2:
        return None
    return ChannelShuffle(source, parts[1], parts[2])


def _behind(node: ir.Node, kind: str, before: str) -> ir.Node | None:
    """The operator of a kind in front of a node of another, which alone reads it."""
    if node.op_type != kind or not read.standard(node) or node.inputs[0] is None:
        return None
    maker = node.inputs[0].producer()
    if maker is None or maker.op_type != before or not read.standard(maker):
        return None
    return maker if read.only_user(maker.outputs[0]) is node else None


def _size(dimension: int | ir.SymbolicDim) -> int | str | None:
    return dimension if isinstance(dimension, int) else dimension.value


def _keeps_samples(node: ir.Node) -> bool:
    """Whether each sample of an operator's result is computed from that sample of its operands."""
    if not read.standard(node):
        return node.op_type == "QuickGelu"
    if node.op_type in _PICTURES:
        return True
    if node.op_type in _ELEMENTWISE:
        return all(_one_row(v) for v in node.inputs)
    if node.op_type in ("Concat", "Split", "Gather"):
        return read.int_attribute(node, "axis", 0) > 0
    if node.op_type == "Pad":
        pads = read.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        found = read.ints_attribute(node, "pads") if pads is None else pads.ravel().tolist()
        return len(found) == 2 * _RANK and len(node.inputs) < 4 and found[0] == found[_RANK] == 0
    if node.op_type in ("Softmax", "LayerNormalization"):
        return read.node_opset(node) >= 13 and read.int_attribute(node, "axis", -1) % _RANK > 0
    if node.op_type == "Slice":
        given = read.constant(node.inputs[3]) if len(node.inputs) > 3 else None
        return given is not None and all(a % _RANK for a in given.ravel().tolist())
    if node.op_type == "Transpose":
        return (read.ints_attribute(node, "perm") or [-1])[0] == 0
    if node.op_type in ("ReduceMean", "ReduceMax"):
        axes = _axes(node)
        return bool(axes) and all(a % _RANK for a in axes) and read.int_attribute(node, "keepdims", 1) == 1
    return node.op_type == "Resize" and _keeps_first(node)


def _one_row(value: ir.Value | None) -> bool:
    """Whether a value is computed, or a constant that is the same for all samples of a picture."""
    array = read.constant(value)
    return array is None or array.ndim < _RANK or (array.ndim == _RANK and array.shape[0] == 1)


def _axes(node: ir.Node) -> list[int]:
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        array = read.constant(node.inputs[1])
        return [] if array is None else [int(v) for v in array.ravel()]
    return read.ints_attribute(node, "axes")


def _keeps_first(node: ir.Node) -> bool:
    """Whether a Resize leaves the first axis as it is."""
    scales = read.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return scales is not None and scales.size == 4 and float(scales[0]) == 1.0
