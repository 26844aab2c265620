"""Read access to graphs: constants, attributes, and families of operators.

Nothing here changes a model.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
import onnx
import onnx_ir as ir

import_module("ml_dtypes")  # registers bfloat16 and the float8 types with numpy

# Elementwise operators: channel j of each input is combined into channel j of the output.
ELEMENTWISE = frozenset(
    """Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor Gelu HardSigmoid
    HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh
    Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Add Sub Mul Div Pow Min Max Mean Sum Mod PRelu And Or
    Xor Equal Greater GreaterOrEqual Less LessOrEqual Where QuickGelu FastGelu BiasGelu""".split()
)
# Pooling operators: they reduce the spatial axes, and keep axes 0 and 1.
POOLING = frozenset("""AveragePool MaxPool GlobalAveragePool GlobalMaxPool LpPool GlobalLpPool""".split())
# Operators whose number of rows depends on values.
_FINDERS = frozenset("NonZero NonMaxSuppression Compress Unique Loop SequenceMap".split())
WEIGHTED = frozenset("Conv ConvTranspose Gemm MatMul".split())
COMPUTED = "its weight is computed from the inputs"
RECURRENT = frozenset("LSTM GRU RNN".split())


def element_bytes(data_type: int) -> float | None:
    """Bytes per element of an ONNX tensor type in raw form; None for strings and unknown types."""
    try:
        dtype = ir.DataType(data_type)
        return None if dtype == ir.DataType.STRING else float(dtype.itemsize)
    except (ValueError, TypeError, KeyError):
        return None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array that a value always holds: an initializer that no caller can override, or a Constant node's value."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of `constant`, its data not read yet: enough for type and shape."""
    if value is None:
        return None
    if value.is_initializer() and not value.is_graph_input() and value.const_value is not None:
        return value.const_value
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and producer.domain in ("", "ai.onnx"):
        return ir.convenience.get_const_tensor(value)
    return None


def why_not_constant(value: ir.Value | None) -> str:
    """Why `constant` is None for a weight, for messages.

    It is computed from constants (exporters leave such chains), or from inputs.
    """
    waiting, seen = [value], set()
    while waiting:
        current = waiting.pop()
        if current is None or constant(current) is not None or id(current) in seen:
            continue
        seen.add(id(current))
        producer = current.producer()
        if producer is None or has_subgraph(producer):
            return COMPUTED
        waiting += list(producer.inputs)
    return "its weight is computed from constants: run simplify first"


def attribute(node: ir.Node, name: str, default: object = None) -> object:
    """The plain Python value of an attribute, or the default where it is absent."""
    found = node.attributes.get(name)
    return default if found is None or found.value is None else found.value


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    value = attribute(node, name, default)
    return int(value)  # type: ignore[call-overload, no-any-return]


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    value = attribute(node, name, default)
    return float(value)  # type: ignore[arg-type]


def ints_attribute(node: ir.Node, name: str, default: list[int] | None = None) -> list[int]:
    value = attribute(node, name, default)
    return [] if value is None else [int(v) for v in value]  # type: ignore[attr-defined]


def fills_constant(pad: ir.Node) -> bool:
    """Whether a Pad fills with a constant, and not with copies of its input."""
    return attribute(pad, "mode", "constant") in ("constant", b"constant")


def standard(node: ir.Node) -> bool:
    """Whether the node belongs to the standard operator set."""
    return node.domain in ("", "ai.onnx")


def only_user(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value; None where there are several or the value is a graph output."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0].node


def is_depthwise(node: ir.Node) -> bool:
    """Whether the node is a Conv with one input channel per group."""
    if node.op_type != "Conv" or not standard(node):
        return False
    weight = constant_tensor(node.inputs[1])  # shape only: the data may not be loaded yet
    return weight is not None and weight.shape[1] == 1 and int_attribute(node, "group", 1) > 1


def captured(node: ir.Node) -> set[str]:
    """Names of the outer values that the node's sub-graphs read."""
    names: set[str] = set()
    for attr in node.attributes.values():
        graphs = (
            [attr.value]
            if attr.type == ir.AttributeType.GRAPH
            else (list(attr.value) if attr.type == ir.AttributeType.GRAPHS else [])
        )
        for graph in graphs:
            for inner in graph.all_nodes():
                names.update(v.name for v in inner.inputs if v is not None and v.name)
            names.update(v.name for v in graph.outputs if v.name)
    return names


def has_subgraph(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def sizes_depend_on_values(model: ir.Model) -> bool:
    """Whether an operator makes as many rows as it finds in its input."""
    return any(node.op_type in _FINDERS for node in ir.traversal.RecursiveGraphIterator(model.graph))


def opset(model: ir.Model) -> int:
    """The model's version of the standard operator set."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", onnx.defs.onnx_opset_version()))


def node_opset(node: ir.Node) -> int:
    """The version of the standard operator set that applies to a node."""
    imports = node.graph.opset_imports if node.graph is not None else {}
    return imports.get("", imports.get("ai.onnx", onnx.defs.onnx_opset_version()))


def column_bias(node: ir.Node, columns: int) -> np.ndarray | None:
    """The bias of a Conv, ConvTranspose or Gemm as one number per output column [columns], beta applied.

    Zeros without a bias; None where it is computed, or not one number per column (Gemm's C may be a matrix).
    """
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(columns, np.float32)
    array = constant(value)
    if array is None or array.shape not in ((), (1,), (columns,), (1, 1), (1, columns)):
        return None
    beta = float_attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
    return np.asarray(np.broadcast_to(array.ravel(), (columns,)) * np.asarray(beta, array.dtype))


def node_label(node: ir.Node) -> str:
    """The name of a node, else that of its first output: for messages and references."""
    return node.name or next((v.name for v in node.outputs if v.name), node.op_type)
