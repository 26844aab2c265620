"""Placement of Q/DQ pairs: only where onnxruntime's CPU kernels fuse them.

The rules follow onnxruntime's QDQ selectors (core/optimizer/qdq_transformer). A Conv runs in integers if its input
comes from a DequantizeLinear (DQ) and its output, behind at most one Relu or Clip that nothing else reads, goes to a
QuantizeLinear (Q); a MatMul or Gemm also without the Q. Operators that only move data need the same scale on both
sides. A pair around an operator that is not fused only costs time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.trace import Trace
from onnxpress.passes.int8.qdq.layout_forms import is_identity_convolution

COMPUTE = frozenset(("Conv", "Gemm", "MatMul"))
COMBINE = frozenset(("Add", "Mul", "Concat"))
POOL = frozenset(("AveragePool", "GlobalAveragePool"))
DATA_MOVEMENT = frozenset(
    """MaxPool Reshape Flatten Transpose Squeeze Unsqueeze Slice DepthToSpace Pad Resize Split Gather""".split()
)
INTEGER_MOVEMENT = frozenset(("Pad",))  # onnxruntime does not remove pairs around these: they are written on integers
UNARY = frozenset(("Sigmoid", "LeakyRelu"))
FUSED_ACTIVATIONS = frozenset(("Relu", "Clip"))
_NONNEGATIVE = frozenset(("Relu", "Sigmoid", "HardSigmoid", "Softmax"))  # operators with outputs >= 0
_RANGE_PRESERVING = (POOL | DATA_MOVEMENT) - {
    "Pad",
    "Resize",
}  # outputs within the range of the input
_MAY_OUTPUT_FLOAT = frozenset(("Gemm", "MatMul"))  # also fused without a QuantizeLinear behind them


@dataclass(frozen=True)
class QdqLayout:
    """Where a model is quantized.

    Attributes:
        nodes: names of the nodes that run in int8.
        tensors: names of the values that get a Q/DQ pair.
        shared_scales: sets of tensors that must have the same scale.
        absorbed: maps an activation node to the integer node in front of it that absorbs it.
    """

    nodes: frozenset[str]
    tensors: tuple[str, ...]
    shared_scales: tuple[frozenset[str], ...]
    absorbed: dict[str, str] = field(default_factory=dict)


def refusal_reason(node: ir.Node, trace: Trace) -> str | None:
    """Why a node cannot run in int8 on the CPU; None where it can."""
    if not read.standard(node) or read.has_subgraph(node):
        return "not an operator with an integer kernel"
    shape = trace.shape(node.outputs[0].name)
    if shape is None:
        return "its shape is unknown"
    if node.op_type in COMPUTE:
        return _compute_refusal_reason(node)
    computed_inputs = [v for v in node.inputs if v is not None and read.constant(v) is None]
    if any(v.is_initializer() for v in computed_inputs):
        return "reads an input with a default, which may have any range"
    if node.op_type in COMBINE:
        if len(computed_inputs) != len([v for v in node.inputs if v is not None]):
            return "has a constant operand"
        return None if all(_is_float(v) for v in computed_inputs) else "not float32"
    if node.op_type in POOL | UNARY | DATA_MOVEMENT:
        if node.op_type in ("MaxPool",) and len([v for v in node.outputs if v.name]) > 1:
            return "also returns indices"
        if node.op_type == "AveragePool" and read.int_attribute(node, "ceil_mode", 0):
            return "uses ceil_mode"
        if node.op_type == "Pad" and not _pads_with_zero(node):
            return "pads with something other than zero"
        if node.op_type == "Resize" and read.attribute(node, "mode", b"nearest") not in (b"nearest", "nearest"):
            return "interpolates: integers would be truncated"
        if node.op_type == "Gather" and read.constant(node.inputs[0]) is not None:
            return "its table is a constant"
        return None if node.inputs[0] is not None and _is_float(node.inputs[0]) else "not float32"
    return f"{node.op_type} has no fused integer kernel"


def _is_float(value: ir.Value) -> bool:
    """Whether a value is float32 or of unknown type."""
    return value.dtype in (None, ir.DataType.FLOAT)


def _compute_refusal_reason(node: ir.Node) -> str | None:
    """Why a Conv, Gemm or MatMul cannot run in int8; None where it can."""
    weight = read.constant(node.inputs[1])
    if weight is None or node.inputs[0] is None or read.constant(node.inputs[0]) is not None:
        return read.why_not_constant(node.inputs[1]) if weight is None else "its input is a constant"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype.name}"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return "its weight is not a matrix"
    if read.node_opset(node) < 13:
        return "quantization per channel needs operator set 13"
    if node.op_type == "Gemm":
        has_factors = any(read.float_attribute(node, n, 1.0) != 1.0 for n in ("alpha", "beta"))
        if read.int_attribute(node, "transA", 0) or has_factors:
            return "its alpha, beta or transA have no integer kernel"
    axis = 0 if node.op_type == "Conv" or read.int_attribute(node, "transB", 0) else 1
    if node.op_type != "MatMul" and read.column_bias(node, weight.shape[axis]) is None:
        return "its bias is not one constant per column"
    return None


def _pads_with_zero(node: ir.Node) -> bool:
    """Whether a Pad (operator set 13 on) fills with zeros or copies of its input."""
    if read.node_opset(node) < 13:
        return False
    if not read.fills_constant(node):
        return True
    fill = read.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    return fill is not None and not fill.any()


def following_activation(node: ir.Node) -> ir.Node | None:
    """The Relu or Clip with constant bounds that alone reads the output of a node; None where there is none."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return None
    activation = uses[0].node
    if activation.op_type not in FUSED_ACTIVATIONS or not read.standard(activation):
        return None
    if any(v is not None and read.constant(v) is None for v in activation.inputs[1:]):
        return None
    return activation


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """(minimum, maximum) of the output of a Clip."""
    found = [-np.inf, np.inf]
    for i, name in enumerate(("min", "max")):
        array = (
            read.constant(node.inputs[i + 1]) if len(node.inputs) > i + 1 and node.inputs[i + 1] is not None else None
        )
        found[i] = float(array.item()) if array is not None else read.float_attribute(node, name, found[i])
    return found[0], found[1]


def nonnegative_values(model: ir.Model) -> frozenset[str]:
    """Names of the values that are never negative, whatever the input."""
    found: set[str] = set()
    for node in model.graph:
        source = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
        if not read.standard(node):
            continue
        if (
            node.op_type in _NONNEGATIVE
            or (node.op_type == "Clip" and clip_bounds(node)[0] >= 0)
            or (node.op_type in _RANGE_PRESERVING and source in found)
        ):
            found.update(v.name or "" for v in node.outputs)
    return frozenset(found)


def final_output(node: ir.Node) -> ir.Value:
    """The value that a node's Q reads: its output, or that of the activation it absorbs."""
    activation = following_activation(node)
    return node.outputs[0] if activation is None else activation.outputs[0]


def final_outputs(node: ir.Node) -> list[ir.Value]:
    """The values that the Qs of a node with several outputs read; outputs without readers are left out."""
    if len(node.outputs) == 1 or node.op_type not in DATA_MOVEMENT:
        return [final_output(node)]
    return [v for v in node.outputs if v.name and (list(v.uses()) or v.is_graph_output())]


def default_nodes(model: ir.Model, trace: Trace, exclude: Iterable[str] = ()) -> frozenset[str]:
    """Select the nodes to run in int8 without timing: all compute nodes and what connects them.

    Args:
        model: the model.
        trace: shapes of its values.
        exclude: names of nodes that stay in float.

    Returns:
        Node names.
    """
    excluded = set(exclude)
    chosen: set[str] = set()
    integer_values: set[str] = set()  # values that integer nodes produce
    nodes = [n for n in model.graph if n.name not in excluded and refusal_reason(n, trace) is None]
    nodes = [n for n in nodes if not is_identity_convolution(n)]
    for node in nodes:
        computed_inputs = [v.name for v in node.inputs if v is not None and read.constant(v) is None]
        # One integer operand suffices for an Add: in float it would keep the whole residual stream in float.
        has_integer_input = any(
            name in integer_values for name in computed_inputs[: None if node.op_type in COMBINE else 1]
        )
        if node.op_type in COMPUTE or has_integer_input:
            chosen.add(node.name or "")
            integer_values.update(v.name or "" for v in final_outputs(node))
    return drop_unprofitable(model, frozenset(chosen))


def drop_unprofitable(model: ir.Model, chosen: frozenset[str]) -> frozenset[str]:
    """Remove from a selection data movement and combining nodes without an integer node in front or behind.

    A pair around such a node only costs time.

    Args:
        model: the model.
        chosen: names of nodes to run in int8.

    Returns:
        The names that remain.
    """
    keep = set(chosen)
    nodes = {n.name: n for n in model.graph}
    changed = True
    while changed:
        changed = False
        for name in sorted(keep):
            node = nodes[name]
            if node.op_type in COMPUTE | POOL:
                continue
            readers = [u.node.name for v in final_outputs(node) for u in v.uses()]
            producers = [
                p for v in node.inputs if v is not None and read.constant(v) is None and (p := v.producer()) is not None
            ]
            starts_chain = node.op_type in DATA_MOVEMENT and not any(_produces_integers(p, keep) for p in producers)
            if not any(r in keep for r in readers) or (starts_chain and not producers):
                keep.discard(name)
                changed = True
    return frozenset(keep)


def _produces_integers(producer: ir.Node, keep: set[str]) -> bool:
    """Whether a node, or the node whose activation it is, runs in int8."""
    if producer.name in keep:
        return True
    source = (
        producer.inputs[0].producer()
        if producer.op_type in FUSED_ACTIVATIONS and producer.inputs[0] is not None
        else None
    )
    return source is not None and source.name in keep


def qdq_layout(model: ir.Model, chosen: frozenset[str]) -> QdqLayout:
    """Determine which tensors need a Q/DQ pair for the chosen nodes to run in int8, and which must share a scale."""
    nodes = {n.name: n for n in model.graph}
    tensors: dict[str, None] = {}
    tied_tensors: list[set[str]] = []
    absorbed: dict[str, str] = {}
    for node in model.graph:
        if node.name not in chosen:
            continue
        inputs = [v.name or "" for v in _quantized_inputs(node)]
        tensors.update(dict.fromkeys(inputs))
        activation = following_activation(node)
        if activation is not None and node.op_type not in DATA_MOVEMENT:
            absorbed[activation.name or ""] = node.name or ""
        outputs = final_outputs(node)
        for output in outputs:
            if node.op_type not in _MAY_OUTPUT_FLOAT or any(u.node.name in chosen for u in output.uses()):
                tensors[output.name or ""] = None
        if node.op_type in DATA_MOVEMENT:
            tied_tensors.append({inputs[0], *(output.name or "" for output in outputs)})
    assert nodes
    return QdqLayout(chosen, tuple(tensors), tuple(frozenset(t) for t in _merge_overlapping(tied_tensors)), absorbed)


def _quantized_inputs(node: ir.Node) -> list[ir.Value]:
    """The computed float inputs that an integer kernel reads as integers."""
    values = [v for v in node.inputs if v is not None and read.constant(v) is None]
    return values if node.op_type in COMBINE else values[:1]


def _merge_overlapping(tied_tensors: list[set[str]]) -> list[set[str]]:
    """The unions of sets that have elements in common."""
    merged: list[set[str]] = []
    for tied in tied_tensors:
        touching = [m for m in merged if m & tied]
        for m in touching:
            merged.remove(m)
            tied = tied | m
        merged.append(tied)
    return merged
