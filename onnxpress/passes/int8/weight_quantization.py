"""Symmetric int8 weights per output channel, with a reduced range where products would saturate on the CPU.

Saturation (`runtime.vpmaddubsw_saturation`) is decided per output channel from the largest activation codes of each
input channel on the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxpress.measure.sqnr import sqnr
from onnxpress.model import read
from onnxpress.passes.core.rounding import (
    add_damping,
    gptq_error_feedback,
    integer_grid,
    refine_integers,
    symmetric_integers,
)
from onnxpress.runtime import vpmaddubsw_saturation
from onnxpress.runtime.vpmaddubsw_saturation import MAX_WEIGHT

_SIGNIFICANT_SHARE = 0.15  # scales of weights and biases per channel, relative to the bytes of the integer weights
_MIN_SQNR = 40.0  # dB; a single scale for all channels must keep as much as rounding of activations does


@dataclass(frozen=True)
class QuantizedWeight:
    """Integer weights of one node.

    Attributes:
        values: int8, in the node's own layout.
        scale: scale of each output channel, [M].
        axis: output channel axis of `values`.
        max_codes: largest absolute integer of each output channel, [M].
        input_peaks: largest u8 code of each column in the order of the kernels, [K], where pairs of products may
            saturate; else None.
    """

    values: np.ndarray
    scale: np.ndarray
    axis: int
    max_codes: np.ndarray
    input_peaks: np.ndarray | None = None

    @property
    def reduced_range(self) -> np.ndarray:
        """Whether the range of each output channel is below that of int8, [M]."""
        return np.asarray(self.max_codes < MAX_WEIGHT)


def output_axis(node: ir.Node) -> int:
    """The output channel axis of the weight of a Conv, Gemm or MatMul."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and read.int_attribute(node, "transB", 0) else 1


def quantize_weight(
    node: ir.Node,
    weight: np.ndarray,
    input_codes: np.ndarray | None,
    min_scale: np.ndarray | None = None,
    share_scales: bool = False,
) -> QuantizedWeight:
    """Round a weight to nearest, symmetrically and per output channel.

    Args:
        node: Conv, Gemm or MatMul.
        weight: its weight, in its own layout.
        input_codes: largest u8 code of each input channel where products may saturate; None for the full range.
        min_scale: lower bound of each scale, [M], so that the bias of a channel with tiny weights still fits int32.
        share_scales: whether to use a single scale for all channels if that keeps 40 dB.
    """
    axis = output_axis(node)
    rows_first = np.moveaxis(weight, axis, 0)
    matrix = rows_first.reshape(len(rows_first), -1).astype(np.float64)
    max_abs = np.abs(matrix).max(axis=1)
    max_abs = np.maximum(max_abs, 1e-12 if min_scale is None else np.maximum(1e-12, min_scale * MAX_WEIGHT))
    if (
        share_scales
        and input_codes is None
        and _single_scale_sqnr(matrix, float(max_abs.max()) / MAX_WEIGHT) >= _MIN_SQNR
    ):
        max_abs = np.full(len(max_abs), max_abs.max())
    max_codes, input_peaks = np.full(len(max_abs), float(MAX_WEIGHT)), None
    if input_codes is not None:
        input_peaks = _kernel_codes(node, input_codes, rows_first.shape)
        full_range = np.rint(matrix / (max_abs / MAX_WEIGHT)[:, None])
        order = vpmaddubsw_saturation.kernel_order(rows_first.shape)
        max_codes = vpmaddubsw_saturation.max_weight_codes(full_range[:, order], input_peaks)
    scale = (max_abs / max_codes).astype(np.float32)
    codes = symmetric_integers(matrix, scale[:, None], max_codes[:, None])
    codes = _clamp_pairs(codes, rows_first.shape, input_peaks).astype(np.int8)
    return QuantizedWeight(
        np.ascontiguousarray(np.moveaxis(codes.reshape(rows_first.shape), 0, axis)), scale, axis, max_codes, input_peaks
    )


def _clamp_pairs(rows: np.ndarray, shape: tuple[int, ...], input_peaks: np.ndarray | None) -> np.ndarray:
    """Rows [M, K] of a weight of the given shape, changed so that no pair of products saturates."""
    if input_peaks is None:
        return rows
    order, clamped = vpmaddubsw_saturation.kernel_order(shape), rows.copy()
    clamped[:, order] = vpmaddubsw_saturation.clamp_pairs(rows[:, order], input_peaks)
    return clamped


def _single_scale_sqnr(weights: np.ndarray, scale: float) -> float:
    """Signal-to-quantization-noise ratio of weights rounded to multiples of one scale, in dB."""
    return sqnr(weights, np.rint(weights / scale) * scale)


def scales_are_significant(nodes: Sequence[tuple[ir.Node, np.ndarray]]) -> bool:
    """Whether scales per channel take a significant part of a model's file.

    Args:
        nodes: the nodes to quantize and their weights.
    """
    return bool(8 * sum(w.shape[output_axis(n)] for n, w in nodes) > _SIGNIFICANT_SHARE * sum(w.size for _, w in nodes))


def round_output_aware(node: ir.Node, codes: QuantizedWeight, gram: np.ndarray) -> QuantizedWeight:
    """Round a weight again, starting from GPTQ, so that the layer's output is preserved on the samples.

    Args:
        node: Conv, Gemm or MatMul.
        codes: its weight, rounded to nearest.
        gram: Gram matrix of the inputs, [K, K].
    """
    rows_first = np.moveaxis(codes.values, codes.axis, 0)
    rows = rows_first.reshape(len(rows_first), -1)
    weight = read.constant(node.inputs[1])
    constant_input = not np.diag(gram).any()
    if weight is None or rows.shape[1] != len(gram) or constant_input:
        return codes
    matrix = np.moveaxis(weight, codes.axis, 0).reshape(rows.shape).astype(np.float64)
    scale = codes.scale.astype(np.float64)
    values = gptq_error_feedback(matrix, add_damping(gram), integer_grid(scale, codes.max_codes))
    integers = refine_integers(matrix, scale, codes.max_codes, gram, np.rint(values / scale[:, None]))
    refined = _clamp_pairs(integers, rows_first.shape, codes.input_peaks).astype(np.int8)
    return replace(codes, values=np.ascontiguousarray(np.moveaxis(refined.reshape(rows_first.shape), 0, codes.axis)))


def _kernel_codes(node: ir.Node, codes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Largest codes of the columns in the order of the kernels, [K], from those of the input channels."""
    if node.op_type != "Conv":
        return np.broadcast_to(codes, (shape[1],)) if codes.size in (1, shape[1]) else np.full(shape[1], codes.max())
    per_group = shape[1]
    if codes.size != per_group:  # grouped: the maximum over the groups
        codes = (
            codes.reshape(-1, per_group).max(axis=0) if codes.size % per_group == 0 else np.full(per_group, codes.max())
        )
    return np.tile(codes, int(np.prod(shape[2:])))
