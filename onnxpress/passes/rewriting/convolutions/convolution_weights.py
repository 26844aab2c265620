"""Convolutions whose weights can be written in a form that onnxruntime has a faster kernel for.

before -> after

    Conv, groups of g channels, g less than a block  -> fewer, wider groups, zeros between the old ones
    Conv, depthwise with several outputs a channel   -> one depthwise Conv for each, Concat; readers' weights reordered
    Add of two Conv of one input (RepVGG)            -> one Conv, the smaller kernel padded with zeros

Why: the blocked kernels take groups of whole blocks, and depthwise groups of one channel to one; others go through
im2col in the plain order. Two convolutions of one input compute and write the same places twice.

Conditions: float32 constants. Groups are merged while a merged group is no wider than a block; zeros multiply finite
values only. Depthwise outputs are read by convolutions of one group, behind nothing but activations. Sums are of
convolutions with the same strides, dilations and groups, whose kernels are centred alike, and which nothing else reads.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.elementwise.activations import Builder

_BLOCKS = (8, 16)  # channels of a block, of CPUs with 256 and 512 bit vectors
_UNARY = frozenset("Relu Clip LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Elu Gelu Softplus Mish".split())


def merge_groups(block: int, model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Make the groups of one Conv as wide as a block, in place; whether they were narrower.  block: channels."""
    weight = _weight(node)
    groups = read.int_attribute(node, "group", 1)
    if weight is None or groups == 1:
        return False
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    narrow = min(inputs, outputs)
    if narrow < 2 or narrow >= block:
        return False
    together = min(block // narrow, groups)
    while groups % together:
        together -= 1
    if together == 1:
        return False
    wide = np.zeros((weight.shape[0], inputs * together, *weight.shape[2:]), np.float32)
    for row in range(weight.shape[0]):
        place = row // outputs % together * inputs
        wide[row, place : place + inputs] = weight[row]
    edit.set_input(model, node, 1, wide, f"{node.name}_weight")
    edit.set_int(node, "group", groups // together)
    return True


def split_depth_multiplier(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Write one depthwise Conv with several outputs a channel as several, in place; whether it was one."""
    weight = _weight(node)
    groups = read.int_attribute(node, "group", 1)
    if weight is None or groups == 1 or weight.shape[1] != 1 or weight.shape[0] == groups:
        return False
    readers = _readers(node)
    if readers is None:
        return False
    times = weight.shape[0] // groups
    bias = read.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return False
    order = np.arange(weight.shape[0]).reshape(groups, times).T.ravel()
    make = Builder(model, node)
    parts = []
    for k in range(times):
        inputs = [node.inputs[0], edit.add_constant(model, weight[k::times], f"{node.name}_weight")]
        if bias is not None:
            inputs.append(edit.add_constant(model, bias[k::times], f"{node.name}_bias"))
        parts.append(make("Conv", inputs, **{name: attr.value for name, attr in node.attributes.items()}))
    edit.bypass(model, node, make("Concat", parts, axis=1))
    for reader in readers:
        own = read.constant(reader.inputs[1])
        assert own is not None
        edit.set_input(model, reader, 1, own[:, order], f"{reader.name}_weight")
    return True


def _readers(node: ir.Node) -> list[ir.Node] | None:
    """The convolutions of one group that read a node's channels; None where anything else does."""
    found, waiting = [], [node.outputs[0]]
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            return None
        for use in value.uses():
            reader = use.node
            if reader.op_type in _UNARY and use.idx == 0 and read.standard(reader):
                waiting.append(reader.outputs[0])
            elif use.idx == 0 and _weight(reader) is not None and read.int_attribute(reader, "group", 1) == 1:
                found.append(reader)
            else:
                return None
    return found


def merge_parallel(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Make one Conv of an Add of two of the same input, in place; whether it was one."""
    if node.op_type not in ("Add", "Sum") or not read.standard(node) or len(node.inputs) != 2:
        return False
    pair = [v.producer() if v is not None else None for v in node.inputs]
    if pair[0] is None or pair[1] is None or pair[0] is pair[1]:
        return False
    weights = [_weight(n) for n in pair if n is not None]
    if any(w is None for w in weights) or any(read.only_user(n.outputs[0]) is None for n in pair if n is not None):
        return False
    first, second = sorted((n for n in pair if n is not None), key=lambda n: -_area(n))
    large, small = _weight(first), _weight(second)
    assert large is not None and small is not None
    if first.inputs[0] is not second.inputs[0] or not _aligned(first, second, large, small):
        return False
    whole = large.astype(np.float64)
    offset = [(a - b) // 2 for a, b in zip(large.shape[2:], small.shape[2:], strict=True)]
    window = tuple(slice(o, o + n) for o, n in zip(offset, small.shape[2:], strict=True))
    whole[(slice(None), slice(None), *window)] += small
    total = sum(_bias(n, len(large)) for n in (first, second))
    inputs = [first.inputs[0], edit.add_constant(model, whole.astype(np.float32), f"{first.name}_weight")]
    inputs.append(edit.add_constant(model, np.asarray(total, np.float32), f"{first.name}_bias"))
    attributes = {name: attr.value for name, attr in first.attributes.items()}
    merged = Builder(model, node)("Conv", inputs, **{**attributes, "kernel_shape": list(large.shape[2:])})
    edit.bypass(model, node, merged)
    return True


def _area(node: ir.Node) -> int:
    weight = _weight(node)
    return 0 if weight is None else int(np.prod(weight.shape[2:]))


def _bias(node: ir.Node, channels: int) -> np.ndarray:
    found = read.column_bias(node, channels)
    return np.zeros(channels) if found is None else found.astype(np.float64)


def _aligned(first: ir.Node, second: ir.Node, large: np.ndarray, small: np.ndarray) -> bool:
    """Whether two convolutions look at the same places: the smaller kernel lies in the middle of the larger."""
    if large.shape[:2] != small.shape[:2]:
        return False
    rank = large.ndim - 2
    for node, weight in ((first, large), (second, small)):
        if read.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET"):
            return False
        if any(d != 1 for d in read.ints_attribute(node, "dilations")):
            return False
        if len(node.inputs) > 2 and node.inputs[2] is not None and read.column_bias(node, len(weight)) is None:
            return False
    same = all(
        (read.ints_attribute(first, name) or default) == (read.ints_attribute(second, name) or default)
        for name, default in (("strides", [1] * rank),)
    ) and read.int_attribute(first, "group", 1) == read.int_attribute(second, "group", 1)
    pads = [read.ints_attribute(n, "pads") or [0] * (2 * rank) for n in (first, second)]
    ring = [a - b for a, b in zip(large.shape[2:], small.shape[2:], strict=True)]
    if not same or any(r < 0 or r % 2 for r in ring):
        return False
    return all(p - q == r // 2 for p, q, r in zip(*pads, [*ring, *ring], strict=True))


def _weight(node: ir.Node) -> np.ndarray | None:
    """The constant float32 weight of a Conv [out, in / group, *kernel]."""
    if node.op_type != "Conv" or not read.standard(node):
        return None
    weight = read.constant(node.inputs[1])
    return weight if weight is not None and weight.dtype == np.float32 else None
