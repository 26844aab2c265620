"""Integer operators in place of Q/DQ pairs: QLinearConv, QLinearMatMul and onnxruntime's own QGemm, QLinearAdd, ...

For runtimes and tools that do not fuse pairs, and to see in the file itself what runs in integers.  Each node is taken over where
all it needs is there (its inputs behind a DQ, its output, with a Relu or Clip that the output's range implies, in front of a Q); what
cannot be said so keeps its pairs, so that a file may hold both.  Shapes and attributes follow onnxruntime's contrib operators and the
standard's QLinearConv (10) and QLinearMatMul (10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.passes.int8 import qdq

_MICROSOFT = "com.microsoft"
_BINARY = {"Add": "QLinearAdd", "Mul": "QLinearMul"}
_UNARY = {
    "AveragePool": "QLinearAveragePool", "GlobalAveragePool": "QLinearGlobalAveragePool",
    "Sigmoid": "QLinearSigmoid", "LeakyRelu": "QLinearLeakyRelu",
}  # fmt: skip
_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


@dataclass(frozen=True)
class _Whole:
    """A tensor in integers: codes, scale and zero point, as a DequantizeLinear or a QuantizeLinear has them."""

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value

    @property
    def all(self) -> list[ir.Value]:
        return [self.codes, self.scale, self.zero]


def to_operators(model: ir.Model, nodes: frozenset[str]) -> int:
    """Take over the named nodes in place; how many were."""
    count = 0
    for node in list(model.graph):
        if node.name in nodes and (_moves(model, node) if node.op_type in qdq.MOVE else _computes(model, node)):
            count += 1
    edit.drop_dead(model)
    if any(n.domain == _MICROSOFT for n in model.graph):
        model.graph.opset_imports.setdefault(_MICROSOFT, 1)
    return count


def _computes(model: ir.Model, node: ir.Node) -> bool:
    given = [_read(model, v) for v in node.inputs]
    behind = _quantized(node)
    if any(g is None and v is not None for g, v in zip(given, node.inputs, strict=True)):
        return False
    whole = [g for g in given if g is not None]
    made = _operator(node, whole, behind)
    if made is None:
        return False
    kind, inputs, attributes, domain = made
    if behind is None:
        output = edit.insert_before(model, node, kind, inputs, f"{node.name}_q", attributes, domain)
        edit.replace_value(model, node.outputs[0], output)
        return True
    output = edit.insert_before(model, node, kind, inputs, f"{node.name}_q", attributes, domain)
    output.type = ir.TensorType(ir.DataType.from_numpy(_dtype(behind.outputs[0], behind)))
    edit.replace_value(model, behind.outputs[0], output)
    return True


def _operator(
    node: ir.Node, given: Sequence[_Whole], behind: ir.Node | None
) -> tuple[str, list[ir.Value | None], dict[str, object], str] | None:
    """(operator, inputs, attributes, domain) of a node whose output goes to the Q `behind` (None: stays float)."""
    after: list[ir.Value | None] = [] if behind is None else [behind.inputs[1], behind.inputs[2]]
    own = {name: attribute.value for name, attribute in node.attributes.items()}
    if node.op_type == "Conv" and behind is not None:
        bias = [given[2].codes] if len(given) > 2 else []
        return (
            "QLinearConv",
            [*given[0].all, *given[1].all, *after, *bias],
            {k: v for k, v in own.items() if k in _CONV},
            "",
        )
    if node.op_type == "MatMul" and behind is not None:
        return "QLinearMatMul", [*given[0].all, *given[1].all, *after], {}, ""
    if node.op_type == "MatMul":
        (a, a_scale, a_zero), (b, b_scale, b_zero) = given[0].all, given[1].all
        return "MatMulIntegerToFloat", [a, b, a_scale, b_scale, a_zero, b_zero], {}, _MICROSOFT
    if node.op_type == "Gemm":
        inputs: list[ir.Value | None] = [v for g in given[:2] for v in (g.codes, g.scale, g.zero)]
        bias_codes = given[2].codes if len(given) > 2 else None
        flags = {k: v for k, v in own.items() if k in ("transA", "transB", "alpha")}
        return "QGemm", [*inputs, *([bias_codes, *after] if after or bias_codes is not None else [])], flags, _MICROSOFT
    if behind is None:
        return None
    if node.op_type in _BINARY:
        return _BINARY[node.op_type], [*given[0].all, *given[1].all, *after], {}, _MICROSOFT
    if node.op_type in _UNARY:
        return _UNARY[node.op_type], [*given[0].all, *after], own, _MICROSOFT
    if node.op_type == "Concat":
        return "QLinearConcat", [*after, *(v for g in given for v in g.all)], own, _MICROSOFT
    return None


def _moves(model: ir.Model, node: ir.Node) -> bool:
    """A node that only moves values does so with integers, where the Q behind it is the DQ in front turned round."""
    source = _read(model, node.inputs[0])
    behind = [_only_q(v) for v in qdq.final_outputs(node)]
    if (
        source is None
        or not behind
        or any(q is None or q.inputs[0] not in node.outputs or not _same(q, source) for q in behind)
    ):
        return False  # (an activation between a mover and its Q is computed in float)
    node.replace_input_with(0, source.codes)
    for q in behind:
        assert q is not None and q.inputs[0] is not None
        q.inputs[0].type = ir.TensorType(ir.DataType.from_numpy(_dtype(source.codes, q)))
        edit.bypass(model, q, q.inputs[0])
    return True


def _read(model: ir.Model, value: ir.Value | None) -> _Whole | None:
    """What a value is in integers; None where no DQ makes it."""
    dq = value.producer() if value is not None else None
    if dq is None or dq.op_type != "DequantizeLinear" or dq.inputs[0] is None or dq.inputs[1] is None:
        return None
    zero = dq.inputs[2] if len(dq.inputs) > 2 else None
    if zero is None:
        scale = read.constant(dq.inputs[1])
        if scale is None:
            return None
        zero = edit.add_constant(model, np.zeros(scale.shape, _dtype(dq.inputs[0], dq)), f"{dq.name}_zero")
    return _Whole(dq.inputs[0], dq.inputs[1], zero)


def _dtype(codes: ir.Value, node: ir.Node) -> np.dtype[np.generic]:
    """The integers' type: of a constant, else of the zero point beside it."""
    held = read.constant(codes)
    if held is None and len(node.inputs) > 2:
        held = read.constant(node.inputs[2])
    return np.dtype(np.uint8) if held is None else held.dtype


def _quantized(node: ir.Node) -> ir.Node | None:
    """The Q that a node's output goes to, behind a Relu or Clip that its range implies."""
    follower = qdq.activation_behind(node)
    if follower is not None:
        q = _only_q(follower.outputs[0])
        return q if q is not None and _implied(follower, q) else None
    return _only_q(node.outputs[0])


def _only_q(value: ir.Value) -> ir.Node | None:
    q = read.only_user(value)
    return (
        q if q is not None and q.op_type == "QuantizeLinear" and len(q.inputs) > 2 and q.inputs[2] is not None else None
    )


def _implied(activation: ir.Node, q: ir.Node) -> bool:
    """Whether no code of the Q stands for a number that the Relu or Clip would have changed."""
    scale, zero = read.constant(q.inputs[1]), read.constant(q.inputs[2])
    if scale is None or zero is None:
        return False
    ends = np.iinfo(zero.dtype)
    low, high = (float(((end - zero.astype(np.int64)) * scale).item()) for end in (ends.min, ends.max))
    least, most = (0.0, np.inf) if activation.op_type == "Relu" else qdq.clip_bounds(activation)
    half = float(scale.item()) / 2
    return low >= least - half and high <= most + half


def _same(q: ir.Node, source: _Whole) -> bool:
    pairs = [(q.inputs[1], source.scale), (q.inputs[2], source.zero)]
    return all(
        a is b or ((x := read.constant(a)) is not None and (y := read.constant(b)) is not None and np.array_equal(x, y))
        for a, b in pairs
    )
