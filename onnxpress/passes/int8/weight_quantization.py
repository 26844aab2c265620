"""Weights as signed 8-bit integers per output channel, in fewer levels just where a CPU would saturate (`runtime.pairs`).

Whether it would is decided per output channel from the largest activation codes seen on each input channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxpress.measure.sqnr import sqnr_db
from onnxpress.model import read
from onnxpress.passes.core.rounding import damped, descend, feedback, grid
from onnxpress.runtime import vpmaddubsw_saturation
from onnxpress.runtime.vpmaddubsw_saturation import MAX_WEIGHT

_MUCH = 0.15  # of the integer weights' bytes, from which on two scales a channel are much
_FINE = 40.0  # dB that one scale for all channels must keep: as much as rounding the activations leaves


@dataclass(frozen=True)
class Codes:
    """Integer weights in the node's own layout, their scale along `axis`, and the largest that each output can have.

    peaks: where pairs of products may saturate, the largest u8 code that each column meets, in the kernels' order; else None.
    """

    values: np.ndarray
    scale: np.ndarray
    axis: int
    levels: np.ndarray
    peaks: np.ndarray | None = None

    @property
    def narrow(self) -> np.ndarray:
        """Outputs of fewer levels than 8 bits have."""
        return np.asarray(self.levels < MAX_WEIGHT)


def output_axis(node: ir.Node) -> int:
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and read.int_attribute(node, "transB", 0) else 1


def quantize_weight(
    node: ir.Node,
    weight: np.ndarray,
    input_codes: np.ndarray | None,
    least_scale: np.ndarray | None = None,
    may_share: bool = False,
) -> Codes:
    """Round to nearest, symmetric, per output channel.

    input_codes: largest u8 code of each input channel where products may saturate, else None (full range)
    least_scale: [M], a floor for each scale (a channel of tiny weights must still hold its bias)
    may_share: one scale for all channels, where they lose next to nothing by it
    """
    axis = output_axis(node)
    moved = np.moveaxis(weight, axis, 0)
    flat = moved.reshape(len(moved), -1).astype(np.float64)
    top = np.abs(flat).max(axis=1)
    top = np.maximum(top, 1e-12 if least_scale is None else np.maximum(1e-12, least_scale * MAX_WEIGHT))
    if may_share and input_codes is None and _sqnr(flat, float(top.max()) / MAX_WEIGHT) >= _FINE:
        top = np.full(len(top), top.max())
    levels, peaks = np.full(len(top), float(MAX_WEIGHT)), None
    if input_codes is not None:
        peaks = _kernel_codes(node, input_codes, moved.shape)
        levels = vpmaddubsw_saturation.max_weight_codes(
            np.rint(flat / (top / MAX_WEIGHT)[:, None])[:, vpmaddubsw_saturation.kernel_order(moved.shape)], peaks
        )
    scale = (top / levels).astype(np.float32)
    codes = np.clip(np.rint(flat / scale[:, None]), -levels[:, None], levels[:, None])
    codes = _relieved(codes, moved.shape, peaks).astype(np.int8)
    return Codes(np.ascontiguousarray(np.moveaxis(codes.reshape(moved.shape), 0, axis)), scale, axis, levels, peaks)


def _relieved(rows: np.ndarray, shape: tuple[int, ...], peaks: np.ndarray | None) -> np.ndarray:
    """Rows [M, K] of weights of that shape, so that no pair saturates."""
    if peaks is None:
        return rows
    order, made = vpmaddubsw_saturation.kernel_order(shape), rows.copy()
    made[:, order] = vpmaddubsw_saturation.clamp_pairs(rows[:, order], peaks)
    return made


def scales_are_much(nodes: Sequence[tuple[ir.Node, np.ndarray]]) -> bool:
    """Whether a model is so small that a weight's and a bias's scale a channel are much of it.  nodes: with their weights."""
    return bool(8 * sum(w.shape[output_axis(n)] for n, w in nodes) > _MUCH * sum(w.size for _, w in nodes))


def _sqnr(weights: np.ndarray, scale: float) -> float:
    """In dB, of weights rounded to multiples of one scale."""
    noise = float(np.square(weights - np.rint(weights / scale) * scale).sum())
    return sqnr_db(float(np.square(weights).sum()), noise)


def refine(node: ir.Node, codes: Codes, gram: np.ndarray, every: bool = False) -> Codes:
    """The rows of fewer levels (or every row) rounded anew so that they keep the output on inputs of this Gram matrix [K, K].

    The rounding errors of a row are let cancel each other.
    """
    moved = np.moveaxis(codes.values, codes.axis, 0)
    rows = moved.reshape(len(moved), -1)
    weight = read.constant(node.inputs[1])
    pick = np.arange(len(rows)) if every else np.flatnonzero(codes.narrow)
    if (
        weight is None or rows.shape[1] != len(gram) or not pick.size or not np.diag(gram).any()
    ):  # nothing, or what never changes, comes in
        return codes
    flat = np.moveaxis(weight, codes.axis, 0).reshape(rows.shape).astype(np.float64)[pick]
    scale, levels = codes.scale[pick].astype(np.float64), codes.levels[pick]
    start = np.rint(feedback(flat, damped(gram), grid(scale, levels)) / scale[:, None]) if every else rows[pick]
    better = rows.copy()
    better[pick] = _relieved(descend(flat, scale, levels, gram, start), moved.shape, codes.peaks).astype(np.int8)
    return replace(codes, values=np.ascontiguousarray(np.moveaxis(better.reshape(moved.shape), 0, codes.axis)))


def _kernel_codes(node: ir.Node, codes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Largest codes [K] of columns in the kernels' order, from those of input channels."""
    if node.op_type != "Conv":
        return np.broadcast_to(codes, (shape[1],)) if codes.size in (1, shape[1]) else np.full(shape[1], codes.max())
    per_group = shape[1]
    if codes.size != per_group:  # grouped: the worst of the groups stands for each
        codes = (
            codes.reshape(-1, per_group).max(axis=0) if codes.size % per_group == 0 else np.full(per_group, codes.max())
        )
    return np.tile(codes, int(np.prod(shape[2:])))
