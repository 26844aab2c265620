"""Integer operators instead of Q/DQ pairs: QLinearConv, QLinearMatMul and onnxruntime's QGemm, QLinearAdd and others.

For runtimes and tools that do not fuse pairs, and to show in the file what runs in integers. A node is converted if its
inputs are behind DQs and its output goes to a Q, directly or behind a Relu or Clip that the output's range implies.
Other nodes keep their pairs, so that a file may contain both. Signatures follow onnxruntime's contrib operators and the
standard's QLinearConv (10) and QLinearMatMul (10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.passes.int8.qdq import placement

_MICROSOFT = "com.microsoft"
_BINARY = {"Add": "QLinearAdd", "Mul": "QLinearMul"}
_UNARY = {
    "AveragePool": "QLinearAveragePool", "GlobalAveragePool": "QLinearGlobalAveragePool",
    "Sigmoid": "QLinearSigmoid", "LeakyRelu": "QLinearLeakyRelu",
}  # fmt: skip
_CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


@dataclass(frozen=True)
class _QuantizedTensor:
    """A tensor in integers: codes, scale and zero point, as inputs of a DequantizeLinear or QuantizeLinear."""

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value

    @property
    def tensors(self) -> list[ir.Value]:
        """Codes, scale and zero point, in the order of the integer operators' inputs."""
        return [self.codes, self.scale, self.zero_point]


def to_integer_operators(model: ir.Model, nodes: frozenset[str]) -> int:
    """Convert nodes between pairs into integer operators, in place.

    Args:
        model: a model with Q/DQ pairs.
        nodes: names of the nodes to convert.

    Returns:
        The number of converted nodes.
    """
    count = 0
    for node in list(model.graph):
        if node.name in nodes and (
            _convert_movement(model, node) if node.op_type in placement.DATA_MOVEMENT else _convert_compute(model, node)
        ):
            count += 1
    edit.drop_dead(model)
    if any(n.domain == _MICROSOFT for n in model.graph):
        model.graph.opset_imports.setdefault(_MICROSOFT, 1)
    return count


def _convert_compute(model: ir.Model, node: ir.Node) -> bool:
    """Convert a node that computes; whether its form allowed it."""
    operands = [_quantized_input(model, v) for v in node.inputs]
    quantize_node = _output_quantize(node)
    if any(g is None and v is not None for g, v in zip(operands, node.inputs, strict=True)):
        return False
    quantized_inputs = [g for g in operands if g is not None]
    converted = _integer_operator(node, quantized_inputs, quantize_node)
    if converted is None:
        return False
    op_type, inputs, attributes, domain = converted
    if quantize_node is None:
        output = edit.insert_before(model, node, op_type, inputs, f"{node.name}_q", attributes, domain)
        edit.replace_value(model, node.outputs[0], output)
        return True
    output = edit.insert_before(model, node, op_type, inputs, f"{node.name}_q", attributes, domain)
    output.type = ir.TensorType(ir.DataType.from_numpy(_integer_type(quantize_node.outputs[0], quantize_node)))
    edit.replace_value(model, quantize_node.outputs[0], output)
    return True


def _integer_operator(
    node: ir.Node, operands: Sequence[_QuantizedTensor], quantize_node: ir.Node | None
) -> tuple[str, list[ir.Value | None], dict[str, object], str] | None:
    """(operator type, inputs, attributes, domain) of a node; quantize_node: the Q behind it, None for float output."""
    output_parameters: list[ir.Value | None] = (
        [] if quantize_node is None else [quantize_node.inputs[1], quantize_node.inputs[2]]
    )
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if node.op_type == "Conv" and quantize_node is not None:
        bias = [operands[2].codes] if len(operands) > 2 else []
        return (
            "QLinearConv",
            [*operands[0].tensors, *operands[1].tensors, *output_parameters, *bias],
            {k: v for k, v in attributes.items() if k in _CONV_ATTRIBUTES},
            "",
        )
    if node.op_type == "MatMul" and quantize_node is not None:
        return "QLinearMatMul", [*operands[0].tensors, *operands[1].tensors, *output_parameters], {}, ""
    if node.op_type == "MatMul":
        (a, a_scale, a_zero), (b, b_scale, b_zero) = operands[0].tensors, operands[1].tensors
        return "MatMulIntegerToFloat", [a, b, a_scale, b_scale, a_zero, b_zero], {}, _MICROSOFT
    if node.op_type == "Gemm":
        inputs: list[ir.Value | None] = [v for g in operands[:2] for v in (g.codes, g.scale, g.zero_point)]
        bias_codes = operands[2].codes if len(operands) > 2 else None
        flags = {k: v for k, v in attributes.items() if k in ("transA", "transB", "alpha")}
        return (
            "QGemm",
            [*inputs, *([bias_codes, *output_parameters] if output_parameters or bias_codes is not None else [])],
            flags,
            _MICROSOFT,
        )
    if quantize_node is None:
        return None
    if node.op_type in _BINARY:
        return _BINARY[node.op_type], [*operands[0].tensors, *operands[1].tensors, *output_parameters], {}, _MICROSOFT
    if node.op_type in _UNARY:
        return _UNARY[node.op_type], [*operands[0].tensors, *output_parameters], attributes, _MICROSOFT
    if node.op_type == "Concat":
        return "QLinearConcat", [*output_parameters, *(v for g in operands for v in g.tensors)], attributes, _MICROSOFT
    return None


def _convert_movement(model: ir.Model, node: ir.Node) -> bool:
    """Let a data movement node work on integers if the DQ and Q around it have equal parameters; whether they do."""
    source = _quantized_input(model, node.inputs[0])
    quantize_nodes = [_single_quantize(v) for v in placement.final_outputs(node)]
    if (
        source is None
        or not quantize_nodes
        or any(q is None or q.inputs[0] not in node.outputs or not _same_parameters(q, source) for q in quantize_nodes)
    ):
        return False  # an activation between the node and its Q is computed in float
    node.replace_input_with(0, source.codes)
    for q in quantize_nodes:
        assert q is not None and q.inputs[0] is not None
        q.inputs[0].type = ir.TensorType(ir.DataType.from_numpy(_integer_type(source.codes, q)))
        edit.bypass(model, q, q.inputs[0])
    return True


def _quantized_input(model: ir.Model, value: ir.Value | None) -> _QuantizedTensor | None:
    """The integers of a value; None where it is not the output of a DQ."""
    dq = value.producer() if value is not None else None
    if dq is None or dq.op_type != "DequantizeLinear" or dq.inputs[0] is None or dq.inputs[1] is None:
        return None
    zero = dq.inputs[2] if len(dq.inputs) > 2 else None
    if zero is None:
        scale = read.constant(dq.inputs[1])
        if scale is None:
            return None
        zero = edit.add_constant(model, np.zeros(scale.shape, _integer_type(dq.inputs[0], dq)), f"{dq.name}_zero")
    return _QuantizedTensor(dq.inputs[0], dq.inputs[1], zero)


def _integer_type(codes: ir.Value, node: ir.Node) -> np.dtype[np.generic]:
    """The integer type: of a constant, else of the zero point of the node."""
    constant_codes = read.constant(codes)
    if constant_codes is None and len(node.inputs) > 2:
        constant_codes = read.constant(node.inputs[2])
    return np.dtype(np.uint8) if constant_codes is None else constant_codes.dtype


def _output_quantize(node: ir.Node) -> ir.Node | None:
    """The Q of a node's output, possibly behind a Relu or Clip that its range implies; None where there is none."""
    activation = placement.following_activation(node)
    if activation is not None:
        q = _single_quantize(activation.outputs[0])
        return q if q is not None and _is_implied(activation, q) else None
    return _single_quantize(node.outputs[0])


def _single_quantize(value: ir.Value) -> ir.Node | None:
    """The Q that alone reads a value; None where there is none."""
    q = read.only_user(value)
    return (
        q if q is not None and q.op_type == "QuantizeLinear" and len(q.inputs) > 2 and q.inputs[2] is not None else None
    )


def _is_implied(activation: ir.Node, q: ir.Node) -> bool:
    """Whether a Relu or Clip changes no number that the Q can represent."""
    scale, zero = read.constant(q.inputs[1]), read.constant(q.inputs[2])
    if scale is None or zero is None:
        return False
    limits = np.iinfo(zero.dtype)
    low, high = (float(((end - zero.astype(np.int64)) * scale).item()) for end in (limits.min, limits.max))
    min_value, max_value = (0.0, np.inf) if activation.op_type == "Relu" else placement.clip_bounds(activation)
    half = float(scale.item()) / 2
    return low >= min_value - half and high <= max_value + half


def _same_parameters(q: ir.Node, source: _QuantizedTensor) -> bool:
    """Whether scale and zero point of a Q equal those of a tensor."""
    pairs = [(q.inputs[1], source.scale), (q.inputs[2], source.zero_point)]
    return all(
        a is b or ((x := read.constant(a)) is not None and (y := read.constant(b)) is not None and np.array_equal(x, y))
        for a, b in pairs
    )
