"""Where Q/DQ pairs stand: exactly where onnxruntime's CPU kernels fuse, and nowhere else.

Rules follow onnxruntime's QDQ selectors (core/optimizer/qdq_transformer): a Conv becomes integer when its input comes
from a DQ, and its output (behind at most a Relu or Clip that nobody else reads) goes to a Q; a MatMul or Gemm also
without the Q.  Operators that only move values need the same scale on both sides.  A pair round an operator that is
not fused is pure cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.trace import Trace

COMPUTE = frozenset(("Conv", "Gemm", "MatMul"))
COMBINE = frozenset(("Add", "Mul", "Concat"))
POOL = frozenset(("AveragePool", "GlobalAveragePool"))
MOVE = frozenset(
    (
        "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "DepthToSpace", "Pad", "Resize", "Split",
        "Gather",
    )
)  # fmt: skip
ON_CODES = frozenset(("Pad",))  # onnxruntime drops no pairs round these: they are written on the integers themselves
UNARY = frozenset(("Sigmoid", "LeakyRelu"))
ABSORBED = frozenset(("Relu", "Clip"))
_FLOORED = frozenset(("Relu", "Sigmoid", "HardSigmoid", "Softmax"))  # operators that give nothing below 0
_KEEPS = (POOL | MOVE) - {"Pad", "Resize"}  # those that give nothing outside the range of what they read
_FLOAT_OUTPUT = frozenset(("Gemm", "MatMul"))  # fused without a Q behind them as well


@dataclass(frozen=True)
class Layout:
    """nodes: names that run in int8; tensors: values that get a Q/DQ pair; same: groups that must share a scale.

    absorbed: activation node -> the integer node in front that takes it in.
    """

    nodes: frozenset[str]
    tensors: tuple[str, ...]
    same: tuple[frozenset[str], ...]
    absorbed: dict[str, str] = field(default_factory=dict)


def eligible(node: ir.Node, trace: Trace) -> str | None:
    """None where the node can run in int8 on the CPU; else why not."""
    if not read.standard(node) or read.has_subgraph(node):
        return "not an operator with an integer kernel"
    shape = trace.shape(node.outputs[0].name)
    if shape is None:
        return "its shape is unknown"
    if node.op_type in COMPUTE:
        return _compute(node)
    computed = [v for v in node.inputs if v is not None and read.constant(v) is None]
    if node.op_type in COMBINE:
        if len(computed) != len([v for v in node.inputs if v is not None]):
            return "combines with a constant"
        return None if all(_is_float(v) for v in computed) else "not float32"
    if node.op_type in POOL | UNARY | MOVE:
        if node.op_type in ("MaxPool",) and len([v for v in node.outputs if v.name]) > 1:
            return "also gives indices"
        if node.op_type == "AveragePool" and read.int_attribute(node, "ceil_mode", 0):
            return "rounds its size up"
        if node.op_type == "Pad" and not _fills_zero(node):
            return "pads with something other than zero"
        if node.op_type == "Resize" and read.attribute(node, "mode", b"nearest") not in (b"nearest", "nearest"):
            return "interpolates: integers would be rounded down"
        if node.op_type == "Gather" and read.constant(node.inputs[0]) is not None:
            return "looks up in a constant"
        return None if node.inputs[0] is not None and _is_float(node.inputs[0]) else "not float32"
    return f"{node.op_type} has no fused integer kernel"


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (None, ir.DataType.FLOAT)


def _compute(node: ir.Node) -> str | None:
    weight = read.constant(node.inputs[1])
    if weight is None or node.inputs[0] is None or read.constant(node.inputs[0]) is not None:
        return read.why_not_constant(node.inputs[1]) if weight is None else "its input is a constant"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype.name}"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return "its weight is not a matrix"
    if read.node_opset(node) < 13:
        return "operator set below 13 has no integers with a scale a channel"
    if node.op_type == "Gemm":
        scaled = any(read.float_attribute(node, n, 1.0) != 1.0 for n in ("alpha", "beta"))
        if read.int_attribute(node, "transA", 0) or scaled:
            return "its Gemm flags have no integer kernel"
    axis = 0 if node.op_type == "Conv" or read.int_attribute(node, "transB", 0) else 1
    if node.op_type != "MatMul" and read.column_bias(node, weight.shape[axis]) is None:
        return "its bias is not one constant a column"
    return None


def _fills_zero(node: ir.Node) -> bool:
    """Whether a Pad (13 on: what it fills in is an input) adds zeros, or copies of what it pads."""
    if read.node_opset(node) < 13:
        return False
    if not read.fills_constant(node):
        return True
    fill = read.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    return fill is not None and not fill.any()


def activation_behind(node: ir.Node) -> ir.Node | None:
    """The Relu or Clip that alone reads a node's output, where there is one with constant bounds."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return None
    follower = uses[0].node
    if follower.op_type not in ABSORBED or not read.standard(follower):
        return None
    if any(v is not None and read.constant(v) is None for v in follower.inputs[1:]):
        return None
    return follower


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """(least, most) of what a Clip gives."""
    found = [-np.inf, np.inf]
    for i, name in enumerate(("min", "max")):
        array = (
            read.constant(node.inputs[i + 1]) if len(node.inputs) > i + 1 and node.inputs[i + 1] is not None else None
        )
        found[i] = float(array.item()) if array is not None else read.float_attribute(node, name, found[i])
    return found[0], found[1]


def floors(model: ir.Model) -> frozenset[str]:
    """Names of values that are never below 0, whatever is read: of a Relu, say, or what is moved or pooled from one."""
    found: set[str] = set()
    for node in model.graph:
        source = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
        if not read.standard(node):
            continue
        if (
            node.op_type in _FLOORED
            or (node.op_type == "Clip" and clip_bounds(node)[0] >= 0)
            or (node.op_type in _KEEPS and source in found)
        ):
            found.update(v.name or "" for v in node.outputs)
    return frozenset(found)


def final_output(node: ir.Node) -> ir.Value:
    """The value a node's Q stands behind: its own output or that of the activation it absorbs."""
    follower = activation_behind(node)
    return node.outputs[0] if follower is None else follower.outputs[0]


def final_outputs(node: ir.Node) -> list[ir.Value]:
    """All of those, of a node that gives several; what nobody reads does not count."""
    if len(node.outputs) == 1 or node.op_type not in MOVE:
        return [final_output(node)]
    return [v for v in node.outputs if v.name and (list(v.uses()) or v.is_graph_output())]


def whole(model: ir.Model, trace: Trace, exclude: Iterable[str] = ()) -> frozenset[str]:
    """Every node worth running in int8 when nothing is known of times: all compute, and what lies between."""
    out = set(exclude)
    chosen: set[str] = set()
    made: set[str] = set()  # values that integer nodes produce
    nodes = [n for n in model.graph if n.name not in out and eligible(n, trace) is None]
    for node in nodes:
        computed = [v.name for v in node.inputs if v is not None and read.constant(v) is None]
        # An Add is worth it where one side is integer: in float it would turn the whole spine behind it to float.
        inside = any(name in made for name in computed[: None if node.op_type in COMBINE else 1])
        if node.op_type in COMPUTE or inside:
            chosen.add(node.name or "")
            made.update(v.name or "" for v in final_outputs(node))
    return trim(model, frozenset(chosen))


def trim(model: ir.Model, chosen: frozenset[str]) -> frozenset[str]:
    """Drop movers and combiners that no integer node reads behind: a pair there would only cost."""
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
            feeders = [
                p for v in node.inputs if v is not None and read.constant(v) is None and (p := v.producer()) is not None
            ]
            starts = node.op_type in MOVE and not any(_makes(p, keep) for p in feeders)
            if not any(r in keep for r in readers) or (starts and not feeders):
                keep.discard(name)
                changed = True
    return frozenset(keep)


def _makes(producer: ir.Node, keep: set[str]) -> bool:
    if producer.name in keep:
        return True
    source = producer.inputs[0].producer() if producer.op_type in ABSORBED and producer.inputs[0] is not None else None
    return source is not None and source.name in keep


def layout(model: ir.Model, chosen: frozenset[str]) -> Layout:
    """Values that need a pair for the chosen nodes to run in integers, and which must share their scale."""
    nodes = {n.name: n for n in model.graph}
    tensors: dict[str, None] = {}
    ties: list[set[str]] = []
    absorbed: dict[str, str] = {}
    for node in model.graph:
        if node.name not in chosen:
            continue
        inputs = [v.name or "" for v in _activations(node)]
        tensors.update(dict.fromkeys(inputs))
        follower = activation_behind(node)
        if follower is not None and node.op_type not in MOVE:
            absorbed[follower.name or ""] = node.name or ""
        outputs = final_outputs(node)
        for output in outputs:
            if node.op_type not in _FLOAT_OUTPUT or any(u.node.name in chosen for u in output.uses()):
                tensors[output.name or ""] = None
        if node.op_type in MOVE:
            ties.append({inputs[0], *(output.name or "" for output in outputs)})
    assert nodes
    return Layout(chosen, tuple(tensors), tuple(frozenset(t) for t in _merge(ties)), absorbed)


def _activations(node: ir.Node) -> list[ir.Value]:
    """The computed float inputs that an integer kernel reads as integers."""
    values = [v for v in node.inputs if v is not None and read.constant(v) is None]
    return values if node.op_type in COMBINE else values[:1]


def _merge(ties: list[set[str]]) -> list[set[str]]:
    merged: list[set[str]] = []
    for tie in ties:
        touching = [m for m in merged if m & tie]
        for m in touching:
            merged.remove(m)
            tie = tie | m
        merged.append(tie)
    return merged
