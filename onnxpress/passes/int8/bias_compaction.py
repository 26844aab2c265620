"""Biases of integer layers said shortly, for models so small that two scales and a bias a channel are much of them.

A bias's scale is its input's times its weight's: a Mul says so in place of a number a channel, where it gives the very same numbers.
Its integers mostly fit 16 bits, from which a Cast makes the 32 that kernels want.  onnxruntime folds both when it loads the file,
before it looks for what fuses (tests/passes/int8/test_bias_compaction.py compares what it runs).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.passes.int8 import qdq
from onnxpress.passes.int8.weight_quantization import scales_are_much

_LEAST = 32  # channels from which a node and its names take less than it saves
_SHORT = np.iinfo(np.int16)


def compact(model: ir.Model) -> int:
    """Say biases shortly, in place; of how many layers.  Models whose scales are little of them are left as they are."""
    layers = [n for n in model.graph if n.op_type in qdq.COMPUTE and len(n.inputs) > 2 and n.op_type != "Gemm"]
    weights = [
        (n, codes) for n in model.graph if n.op_type in qdq.COMPUTE and (codes := _integers(n.inputs[1])) is not None
    ]
    if not weights or not scales_are_much(weights):
        return 0
    done = sum(_shorten(model, node) for node in layers)
    edit.drop_dead(model)
    return done


def _shorten(model: ir.Model, node: ir.Node) -> bool:
    source, weight, bias = (_dequantizer(v) for v in node.inputs[:3])
    whole = _integers(node.inputs[2])
    if (
        source is None
        or weight is None
        or bias is None
        or whole is None
        or whole.dtype != np.int32
        or whole.size < _LEAST
    ):
        return False
    if _SHORT.min <= whole.min() and whole.max() <= _SHORT.max:
        short = edit.add_constant(model, whole.astype(np.int16), "bias")
        bias.replace_input_with(
            0, edit.insert_before(model, bias, "Cast", [short], "bias_q", {"to": ir.DataType.INT32.value})
        )
    one, other, wanted = (read.constant(d.inputs[1]) for d in (source, weight, bias))
    if (
        one is not None
        and other is not None
        and wanted is not None
        and wanted.size >= _LEAST
        and _same(one * other, wanted)
    ):
        bias.replace_input_with(
            1, edit.insert_before(model, bias, "Mul", [source.inputs[1], weight.inputs[1]], "bias_scale")
        )
    return True


def _same(found: np.ndarray, wanted: np.ndarray) -> bool:
    return found.dtype == wanted.dtype and found.shape == wanted.shape and bool((found == wanted).all())


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _integers(value: ir.Value | None) -> np.ndarray | None:
    """The integers behind a DequantizeLinear."""
    node = _dequantizer(value)
    return None if node is None else read.constant(node.inputs[0])
