"""Foldings: rewrite rules by which a layer's weights absorb a neighbouring operator.

Each rule is exact for every input up to the order of additions, and requires that nothing else reads the value between
the two operators. onnxruntime does some of this at load; in the file it also saves bytes, and pruning and quantization
work on the final weights. Each rule takes (model, node, trace), changes the model in place, and returns whether it
applied.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.exact.bounds import fold_relu
from onnxpress.passes.exact.fold_linear import fold_linear
from onnxpress.passes.rewriting.products.layer_norm import feeds_normalization


def _foldable_producer(value: ir.Value | None) -> ir.Node | None:
    """The layer that produces a value, if its weight is constant and nothing else reads the value; else None."""
    node = value.producer() if value is not None else None
    if node is None or not read.standard(node) or node.op_type not in read.WEIGHTED:
        return None
    if read.constant(node.inputs[1]) is None or read.only_user(node.outputs[0]) is None:
        return None
    if node.op_type == "Gemm" and (
        read.float_attribute(node, "alpha", 1.0) != 1.0 or read.float_attribute(node, "beta", 1.0) != 1.0
    ):
        return None
    axis = _output_axis(node)
    weight = read.constant(node.inputs[1])
    if axis < 0 or weight is None or (node.op_type != "MatMul" and read.column_bias(node, weight.shape[axis]) is None):
        return None
    return node


def _output_axis(node: ir.Node) -> int:
    """The output channel axis of a weight; -1 where there is none (grouped ConvTranspose, batched MatMul)."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if read.int_attribute(node, "group", 1) == 1 else -1
    if node.op_type == "Gemm":
        return 0 if read.int_attribute(node, "transB", 0) else 1
    weight = read.constant(node.inputs[1])
    return 1 if weight is not None and weight.ndim == 2 else -1


def _scale_and_shift(model: ir.Model, node: ir.Node, scale: np.ndarray, shift: np.ndarray) -> bool:
    """Make a layer compute scale * y + shift per output channel; False where its form cannot express that."""
    weight = read.constant(node.inputs[1])
    axis = _output_axis(node)
    if weight is None or axis < 0 or weight.shape[axis] != len(scale) or weight.dtype != np.float32:
        return False
    if node.op_type == "MatMul" and shift.any():
        return False
    shape = [1] * weight.ndim
    shape[axis] = len(scale)
    bias = np.zeros(1) if node.op_type == "MatMul" else read.column_bias(node, len(scale))
    if bias is None:
        return False
    new = weight.astype(np.float64) * scale.reshape(shape)
    edit.set_input(model, node, 1, new.astype(np.float32), f"{node.name}_weight")
    if node.op_type != "MatMul":
        total = shift + scale * bias.astype(np.float64)
        edit.set_input(model, node, 2, np.broadcast_to(total, scale.shape).astype(np.float32), f"{node.name}_bias")
    return True


def fold_batchnorm(model: ir.Model, node: ir.Node, trace: Trace) -> bool:
    """Fold BatchNormalization behind a Conv, ConvTranspose or Gemm: y = (x - mean) * gamma / sqrt(var + eps) + beta."""
    if node.op_type != "BatchNormalization" or len([v for v in node.outputs if v.name]) != 1:
        return False
    maker = _foldable_producer(node.inputs[0])
    parts = [read.constant(v) for v in node.inputs[1:5]]
    if maker is None or maker.op_type == "MatMul" or any(p is None for p in parts):
        return False
    gamma, beta, mean, variance = (p.astype(np.float64) for p in parts if p is not None)
    scale = gamma / np.sqrt(variance + read.float_attribute(node, "epsilon", 1e-5))
    if not _scale_and_shift(model, maker, scale, beta - mean * scale):
        return False
    edit.bypass(model, node, maker.outputs[0])
    return True


def fold_affine(model: ir.Model, node: ir.Node, trace: Trace) -> bool:
    """Fold Mul, Div, Add or Sub by one constant per channel behind a Conv, ConvTranspose, Gemm or (Mul, Div) MatMul."""
    if node.op_type not in ("Mul", "Div", "Add", "Sub"):
        return False
    for index in (0, 1):
        array = read.constant(node.inputs[1 - index])
        maker = _foldable_producer(node.inputs[index])
        if array is None or maker is None or array.dtype != np.float32:
            continue
        if node.op_type in ("Div", "Sub") and index == 1:
            continue
        vector = _per_channel(array, trace.shape(maker.outputs[0].name), maker)
        if vector is None:
            continue
        ones, zeros = np.ones_like(vector), np.zeros_like(vector)
        scale, shift = {
            "Mul": (vector, zeros),
            "Div": (1 / np.where(vector == 0, np.nan, vector), zeros),
            "Add": (ones, vector),
            "Sub": (ones, -vector),
        }[node.op_type]
        if not np.isfinite(scale).all() or not _scale_and_shift(model, maker, scale, shift):
            continue
        edit.bypass(model, node, maker.outputs[0])
        return True
    return False


def _per_channel(array: np.ndarray, shape: tuple[int, ...] | None, maker: ir.Node) -> np.ndarray | None:
    """The constant as one number per output channel; None where it is not, or would broadcast the tensor."""
    if shape is None or array.ndim > len(shape):
        return None
    axis = 1 if maker.op_type in ("Conv", "ConvTranspose") else len(shape) - 1
    full = (1,) * (len(shape) - array.ndim) + array.shape
    if any(size != 1 for a, size in enumerate(full) if a != axis) or full[axis] not in (1, shape[axis]):
        return None
    return np.broadcast_to(array.astype(np.float64).ravel(), (shape[axis],)).copy()


def fold_matmul_add(model: ir.Model, node: ir.Node, trace: Trace) -> bool:
    """Fold a MatMul of two matrices and the Add of a bias into a Gemm."""
    if node.op_type != "Add":
        return False
    for index in (0, 1):
        product = node.inputs[index]
        matmul = product.producer() if product is not None else None
        bias = read.constant(node.inputs[1 - index])
        if matmul is None or matmul.op_type != "MatMul" or bias is None or read.only_user(matmul.outputs[0]) is None:
            continue
        weight = read.constant(matmul.inputs[1])
        shape = trace.shape(matmul.inputs[0].name if matmul.inputs[0] is not None else None)
        if weight is None or weight.ndim != 2 or shape is None or len(shape) != 2 or weight.dtype != np.float32:
            continue
        if bias.shape not in ((weight.shape[1],), (1, weight.shape[1])):
            continue
        vector = edit.add_constant(model, bias.reshape(-1), f"{matmul.name}_bias")
        product = edit.insert_before(
            model, node, "Gemm", [matmul.inputs[0], matmul.inputs[1], vector], f"{matmul.name}_gemm"
        )
        gemm = product.producer()
        edit.bypass(model, node, product)
        model.graph.remove(matmul, safe=True)
        assert gemm is not None
        gemm.name = matmul.name  # plans refer to the layer by its name
        return True
    return False


def fold_pad(model: ir.Model, node: ir.Node, trace: Trace) -> bool:
    """Fold a zero Pad of spatial axes into the pads of a Conv, or of an AveragePool that counts its padding."""
    if node.op_type != "Pad" or not read.fills_constant(node):
        return False
    reader = read.only_user(node.outputs[0])
    pads = read.constant(node.inputs[1]) if len(node.inputs) > 1 else np.array(read.ints_attribute(node, "pads"))
    fill = read.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if fill is None and len(node.inputs) > 2 and node.inputs[2] is not None:
        return False
    if reader is None or pads is None or (fill is not None and fill.any()) or read.float_attribute(node, "value", 0.0):
        return False
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return False
    counts = reader.op_type == "AveragePool" and (
        read.int_attribute(reader, "count_include_pad", 0) and not read.int_attribute(reader, "ceil_mode", 0)
    )
    if not (reader.op_type == "Conv" or counts) or reader.inputs[0] is not node.outputs[0]:
        return False
    if read.attribute(reader, "auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET"):
        return False
    rank = len(pads) // 2
    if pads.min() < 0 or pads[:2].any() or pads[rank : rank + 2].any():
        return False
    extra = np.concatenate([pads[2:rank], pads[rank + 2 :]])
    total = extra + np.array(read.ints_attribute(reader, "pads") or [0] * len(extra))
    kernel = read.ints_attribute(reader, "kernel_shape")
    if counts and (not kernel or (total >= np.tile(kernel, 2)).any()):
        return False  # onnxruntime requires a pool's pads to be smaller than its kernel
    edit.set_ints(reader, "pads", total.tolist())
    assert node.inputs[0] is not None
    edit.bypass(model, node, node.inputs[0])
    return True


def fold_neutral(model: ir.Model, node: ir.Node, trace: Trace) -> bool:
    """Remove x + 0, x - 0, x * 1 and x / 1 with constants that do not broadcast x, and Dropout in inference."""
    if node.op_type == "Dropout" and len([v for v in node.outputs if v.name and list(v.uses())]) <= 1:
        training = read.constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if (len(node.inputs) > 2 and node.inputs[2] is not None and training is None) or (
            training is not None and bool(training)
        ):
            return False
        if node.inputs[0] is None or any(v.is_graph_output() for v in node.outputs[1:]):
            return False
        edit.bypass(model, node, node.inputs[0])
        return True
    neutral = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}.get(node.op_type)
    if neutral is None:
        return False
    for index in (0, 1):
        array, value = read.constant(node.inputs[1 - index]), node.inputs[index]
        if (
            array is None
            or value is None
            or read.constant(value) is not None
            or (index == 1 and node.op_type in ("Sub", "Div"))
        ):
            continue
        shape = trace.shape(value.name)
        # Single numbers only: a longer constant could broadcast the value at another size of a dynamic axis.
        if array.size != 1 or array.ravel()[0] != neutral or shape is None or array.ndim > len(shape):
            continue
        edit.bypass(model, node, value)
        return True
    return False


def fold_sum(model: ir.Model, node: ir.Node, trace: Trace) -> bool:
    """Replace a Sum of two inputs by Add, which has fused and integer kernels.

    Not in front of a LayerNormalization: what onnxruntime fuses there is slower (`passes/rewriting/layer_norm.py`).
    """
    if node.op_type != "Sum" or len(node.inputs) != 2 or feeds_normalization(node.outputs[0]):
        return False
    output = edit.insert_before(model, node, "Add", list(node.inputs), f"{node.name}_add")
    output.type = node.outputs[0].type
    edit.bypass(model, node, output)
    return True


FOLDINGS: dict[str, Callable[[ir.Model, ir.Node, Trace], bool]] = {
    "batchnorm": fold_batchnorm,
    "affine": fold_affine,
    "pad": fold_pad,
    "matmul-add": fold_matmul_add,
    "relu": fold_relu,
    "neutral": fold_neutral,
    "linear": fold_linear,
    "sum": fold_sum,
}


def fold(model: ir.Model, trace: Trace, kinds: set[str] | None = None) -> dict[str, int]:
    """Apply foldings in place until none applies.

    Args:
        model: the model to change.
        trace: shapes of its values.
        kinds: names of the foldings to apply (keys of `FOLDINGS`); None for all.

    Returns:
        The number of applications of each folding.
    """
    done: dict[str, int] = {}
    changed = True
    while changed:
        changed = False
        for node in list(model.graph):
            for kind, rule in FOLDINGS.items():
                if (
                    (kinds is None or kind in kinds)
                    and node.graph is not None
                    and read.standard(node)
                    and rule(model, node, trace)
                ):
                    done[kind] = done.get(kind, 0) + 1
                    changed = True
                    break
    edit.drop_dead(model)
    return done
