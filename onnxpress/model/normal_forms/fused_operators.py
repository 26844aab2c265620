"""Operators that onnxruntime's optimizer makes of several, in files that it saved, as the several again.

Passes know the standard operators: a FusedConv would keep its channels and its float weights. onnxruntime fuses them
again when it loads the result. Fused attention and embeddings stay: they have no short standard form.

FusedConv                       Conv, Add of the fourth input, activation
FusedGemm                       Gemm, activation
FusedMatMul, TransposeMatMul    Transpose of each side, MatMul, Mul by alpha
SkipLayerNormalization          Add, Add of the bias, LayerNormalization
SkipSimplifiedLayerNormalization  the same with SimplifiedLayerNormalization

Source: onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read

_DOMAIN = "com.microsoft"
_CLIP_WITH_INPUTS = 11  # operator set from which on the bounds of Clip are inputs
_ACTIVATION_PARAMETERS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max")}
_PLAIN = {"Relu", "Sigmoid", "Tanh"}  # activations without parameters that FusedConv knows
_SUM = 3  # output of SkipLayerNormalization that holds what is normalized


def unfuse(model: ir.Model) -> None:
    """Write the fused operators of the main graph out, in place; those that cannot be stay."""
    for node in list(model.graph):
        if node.domain == _DOMAIN and node.op_type in _FORMS:
            _FORMS[node.op_type](model, node)


def _fused_conv(model: ir.Model, node: ir.Node) -> None:
    kind = _text(node, "activation")
    given = node.attributes.get("activation_params")
    numbers = [float(v) for v in given.as_floats()] if given is not None else []
    names = _ACTIVATION_PARAMETERS.get(kind, ())
    if (kind not in _ACTIVATION_PARAMETERS and kind not in _PLAIN and kind) or len(names) != len(numbers):
        return
    own = {k: a for k, a in node.attributes.items() if not k.startswith("activation")}
    value = _made(model, node, "Conv", node.inputs[:3], own)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        value = _made(model, node, "Add", [value, node.inputs[3]])
    if kind:
        value = _activated(model, node, value, kind, dict(zip(names, numbers, strict=True)))
    _replace(model, node, value)


def _fused_gemm(model: ir.Model, node: ir.Node) -> None:
    kind, prefix = _text(node, "activation"), "activation_"
    own = {k: a for k, a in node.attributes.items() if not k.startswith("activation")}
    value = _made(model, node, "Gemm", node.inputs, own)
    if kind:
        parameters = {
            k.removeprefix(prefix): float(a.value) for k, a in node.attributes.items() if k.startswith(prefix)
        }
        value = _activated(model, node, value, kind, parameters)
    _replace(model, node, value)


def _fused_matmul(model: ir.Model, node: ir.Node) -> None:
    if any(read.int_attribute(node, name, 0) for name in ("transBatchA", "transBatchB")):
        return
    sides: list[ir.Value | None] = []
    for value, name in zip(node.inputs, ("transA", "transB"), strict=True):
        if not read.int_attribute(node, name, 0):
            sides.append(value)
            continue
        rank = None if value is None or value.shape is None else len(value.shape)
        if rank is None or rank < 2:
            return
        order = [*range(rank - 2), rank - 1, rank - 2]
        turned = _made(model, node, "Transpose", [value], {"perm": order})
        if value is not None and value.shape is not None:
            turned.shape, turned.type = ir.Shape([value.shape[a] for a in order]), value.type
        sides.append(turned)
    product = _made(model, node, "MatMul", sides)
    alpha = read.float_attribute(node, "alpha", 1.0)
    if alpha != 1:
        kind = (node.outputs[0].dtype or ir.DataType.FLOAT).numpy()
        product = _made(model, node, "Mul", [product, edit.add_constant(model, np.array(alpha, kind), "alpha")])
    _replace(model, node, product)


def _skip_norm(model: ir.Model, node: ir.Node) -> None:
    """Inputs: x, skip, scale, shift (not of the simplified one), bias. Outputs: y, mean, 1 / deviation, x + skip."""
    if any(v.name and (v.uses() or v.is_graph_output()) for v in node.outputs[1:_SUM]):
        return
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    inputs = [*node.inputs, *[None] * (5 - len(node.inputs))]
    first, second, scale = inputs[:3]
    shift, bias = (None, inputs[3]) if simplified else (inputs[3], inputs[4])
    if bias is not None:
        maker = second.producer() if second is not None else None
        if maker is not None and maker.op_type in read.WEIGHTED:  # a bias belongs to the product that it follows
            first, second = second, first
        first = _made(model, node, "Add", [first, bias])
    total = _made(model, node, "Add", [first, second])
    total.type, total.shape = node.outputs[0].type, node.outputs[0].shape
    attributes: dict[str, object] = {"axis": -1, "epsilon": read.float_attribute(node, "epsilon", 1e-12)}
    kind = "SimplifiedLayerNormalization" if simplified else "LayerNormalization"
    given = [total, scale] if shift is None else [total, scale, shift]
    value = _made(model, node, kind, given, attributes)
    if len(node.outputs) > _SUM and node.outputs[_SUM].name:
        edit.reroute(model, node.outputs[_SUM], total)
    _replace(model, node, value)


def _activated(model: ir.Model, node: ir.Node, value: ir.Value, kind: str, parameters: Mapping[str, float]) -> ir.Value:
    if kind == "Clip" and read.opset(model) >= _CLIP_WITH_INPUTS:
        dtype = (node.outputs[0].dtype or ir.DataType.FLOAT).numpy()
        bounds = [edit.add_constant(model, np.array(parameters[name], dtype), name) for name in ("min", "max")]
        return _made(model, node, kind, [value, *bounds])
    return _made(model, node, kind, [value], dict(parameters))


def _made(
    model: ir.Model,
    node: ir.Node,
    kind: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, object] | None = None,
) -> ir.Value:
    """The output of a new standard node before a fused one."""
    return edit.insert_before(model, node, kind, inputs, f"{read.node_label(node)}_{kind}", attributes)


def _replace(model: ir.Model, node: ir.Node, value: ir.Value) -> None:
    value.type, value.shape = node.outputs[0].type, node.outputs[0].shape
    edit.bypass(model, node, value)


def _text(node: ir.Node, name: str) -> str:
    found = read.attribute(node, name, "")
    return found.decode() if isinstance(found, bytes) else str(found)


_FORMS: dict[str, Callable[[ir.Model, ir.Node], None]] = {
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
}
