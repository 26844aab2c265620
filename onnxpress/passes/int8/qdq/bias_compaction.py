"""Compact encoding of int8 biases for very small models, where two scales and a bias per channel dominate the file.

The scale of a bias is the product of the scales of input and weight. It is stored as a Mul of these where that gives
exactly the same numbers. Most integer biases fit int16; a Cast restores the int32 that the kernels require.
onnxruntime folds both at load, before it fuses nodes
(tests/passes/int8/qdq/test_bias_compaction.py compares the optimized graphs).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.passes.int8.qdq import placement
from onnxpress.passes.int8.weight_quantization import scales_are_significant

_MIN_CHANNELS = 32  # channels from which the saved bytes exceed those of a node and its names
_INT16 = np.iinfo(np.int16)


def compact_biases(model: ir.Model) -> int:
    """Encode the biases of integer layers compactly, in place.

    Models whose scales take only a small part of the file are not changed.

    Returns:
        The number of layers with a compact bias.
    """
    layers_with_bias = [
        n for n in model.graph if n.op_type in placement.COMPUTE and len(n.inputs) > 2 and n.op_type != "Gemm"
    ]
    weights = [
        (n, weight)
        for n in model.graph
        if n.op_type in placement.COMPUTE and (weight := _quantized_constant(n.inputs[1])) is not None
    ]
    if not weights or not scales_are_significant(weights):
        return 0
    count = sum(_compact_bias(model, node) for node in layers_with_bias)
    edit.drop_dead(model)
    return count


def _compact_bias(model: ir.Model, node: ir.Node) -> bool:
    """Encode the bias of one layer compactly; whether its form allowed it."""
    source, weight, bias = (_dequantizer(v) for v in node.inputs[:3])
    integers = _quantized_constant(node.inputs[2])
    if (
        source is None
        or weight is None
        or bias is None
        or integers is None
        or integers.dtype != np.int32
        or integers.size < _MIN_CHANNELS
    ):
        return False
    if _INT16.min <= integers.min() and integers.max() <= _INT16.max:
        int16_value = edit.add_constant(model, integers.astype(np.int16), "bias")
        bias.replace_input_with(
            0, edit.insert_before(model, bias, "Cast", [int16_value], "bias_q", {"to": ir.DataType.INT32.value})
        )
    input_scale, weight_scale, bias_scale = (read.constant(d.inputs[1]) for d in (source, weight, bias))
    if (
        input_scale is not None
        and weight_scale is not None
        and bias_scale is not None
        and bias_scale.size >= _MIN_CHANNELS
        and _equal(input_scale * weight_scale, bias_scale)
    ):
        bias.replace_input_with(
            1, edit.insert_before(model, bias, "Mul", [source.inputs[1], weight.inputs[1]], "bias_scale")
        )
    return True


def _equal(product: np.ndarray, bias_scale: np.ndarray) -> bool:
    """Whether two arrays have equal types, shapes and values."""
    return (
        product.dtype == bias_scale.dtype and product.shape == bias_scale.shape and bool((product == bias_scale).all())
    )


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that produces a value, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _quantized_constant(value: ir.Value | None) -> np.ndarray | None:
    """The integer constant behind a DequantizeLinear, or None."""
    node = _dequantizer(value)
    return None if node is None else read.constant(node.inputs[0])
