"""Calibration: the quantization range of each activation tensor.

Ranges come from a method for all tensors (`measure.ranges`: min-max, moving average of extremes, percentile, entropy,
mean squared error), from a file, or from "output-error" (output-error-weighted): for each tensor the range, among
those of the other methods, with the smallest error of its readers' outputs,

    sum over channels c of  |W_c|^2 var(x_c - Q(x_c)),

where W_c are all weights that a reader multiplies with channel c. This is the diagonal of the Gram matrix of the
weights. The variance is used because bias correction removes the mean error. For readers without weights (Add) all
channels have equal weight and the squared error is used.

"headroom" is min-max with headroom for unseen samples. It is limited by the known bounds of a tensor (of a Clip or
Sigmoid; inputs of the graph are limited to the observed extremes, since images are integers already and one step per
integer is exact).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, EvidenceKey
from onnxpress.measure.ranges import METHODS, Histogram, clip_range
from onnxpress.measure.tensor_summary import sample_rows
from onnxpress.model import read
from onnxpress.passes.int8.qdq import placement
from onnxpress.passes.int8.qdq.write import QuantizationGrid, histograms_for, quantization_grid

Range = tuple[float, float]
RangeSpec = str | Mapping[str, Sequence[float]]  # a method, or [low, high] by tensor name

RANGE_METHODS = (*METHODS, "output-error", "headroom")
_CANDIDATE_METHODS = ("minmax", "percentile", "mse", "entropy")
_SAMPLES = 32
_VALUES_PER_SAMPLE = 8192
_HEADROOM = 1.4  # factor of the observed extremes for "headroom"
_UNIT_RANGE = frozenset(("Sigmoid", "HardSigmoid", "Softmax"))  # operators with outputs from 0 to 1
_WEIGHTED_RANGES: EvidenceKey[dict[str, Range]] = EvidenceKey("output-error-weighted ranges")


def check_ranges(spec: RangeSpec) -> None:
    """Raise InputProblem unless the specification is a known method or maps names to two finite numbers in order."""
    if isinstance(spec, str):
        if spec not in RANGE_METHODS:
            raise InputProblem("unknown calibration method", spec, "", f"one of {', '.join(RANGE_METHODS)}")
        return
    for name, ends in spec.items():
        numbers = isinstance(ends, Sequence) and len(ends) == 2 and all(isinstance(e, int | float) for e in ends)
        if not numbers or not np.isfinite(ends).all() or ends[0] > ends[1]:
            raise InputProblem("invalid range", name, f"got {ends}", "give [low, high], two finite numbers in order")


def activation_ranges(evidence: Evidence, spec: RangeSpec, tensors: Sequence[str]) -> dict[str, Range]:
    """Compute the quantization range of each tensor.

    Args:
        evidence: the model and its samples.
        spec: a method, or ranges by tensor name; tensors that are not listed get the range of least mean squared error.
        tensors: names of the tensors.

    Returns:
        (low, high) by tensor name, in the unit of the tensor.
    """
    histograms = histograms_for(evidence)
    if not isinstance(spec, str):
        return {n: _as_range(spec[n]) if n in spec else clip_range(histograms[n], "mse") for n in tensors}
    if spec == "output-error":
        chosen = _output_error_weighted(evidence)
        return {n: chosen[n] for n in tensors}
    if spec == "headroom":
        limits = _range_limits(evidence)
        return {n: _range_with_headroom(histograms[n], limits.get(n)) for n in tensors}
    return {n: clip_range(histograms[n], spec) for n in tensors}


def activation_grids(
    evidence: Evidence, spec: RangeSpec, layout: placement.QdqLayout, bits: int = 8
) -> dict[str, QuantizationGrid]:
    """Compute the quantization grid of each tensor of a layout.

    Args:
        evidence: the model and its samples.
        spec: as in `activation_ranges`.
        layout: the tensors; tensors that share a scale get the union of their ranges.
        bits: of the activations, 8 or 16.
    """
    found = activation_ranges(evidence, spec, layout.tensors)
    for tied in layout.shared_scales:
        members = [m for m in tied if m in found]
        if members:
            shared = (min(found[m][0] for m in members), max(found[m][1] for m in members))
            found.update(dict.fromkeys(members, shared))
    return {name: quantization_grid(low, high, bits) for name, (low, high) in found.items()}


def _as_range(ends: Sequence[float]) -> Range:
    low, high = ends
    return float(low), float(high)


def _range_with_headroom(histogram: Histogram, limits: Range | None) -> Range:
    """Min-max with headroom, within the limits of the tensor."""
    low, high = clip_range(histogram, "minmax")
    lowest, highest = limits or (-np.inf, np.inf)
    return min(low, max(_HEADROOM * low, lowest)), max(high, min(_HEADROOM * high, highest))


def _range_limits(evidence: Evidence) -> dict[str, Range]:
    """Bounds of tensors for any sample, where they are known."""
    histograms = histograms_for(evidence)
    limits: dict[str, Range] = {
        v.name or "": (0.0, 0.0) for v in evidence.model.graph.inputs
    }  # no further than observed
    for node in evidence.model.graph:
        source = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
        if node.op_type in placement.DATA_MOVEMENT and source in limits:
            limits.update({v.name or "": limits[source] for v in node.outputs})
        elif node.op_type in _UNIT_RANGE:
            limits[node.outputs[0].name or ""] = 0.0, 1.0
        elif node.op_type == "Clip":
            limits[node.outputs[0].name or ""] = placement.clip_bounds(node)
    return {n: e for n, e in limits.items() if n in histograms}


def _output_error_weighted(evidence: Evidence) -> dict[str, Range]:
    """The range of least output error of every tensor that can be quantized; computed once per evidence."""
    known = evidence.get(_WEIGHTED_RANGES)
    if known is None:
        histograms = histograms_for(evidence)
        candidates = {
            n: list(dict.fromkeys(clip_range(s, m) for m in _CANDIDATE_METHODS))
            for n, s in histograms.items()
            if s.finite
        }
        channel_weights = _channel_weights(evidence)
        errors = _candidate_errors(evidence, {n: o for n, o in candidates.items() if len(o) > 1}, channel_weights)
        known = {n: o[int(np.argmin(errors[n]))] if n in errors else o[0] for n, o in candidates.items()}
        known |= {n: clip_range(s, "minmax") for n, s in histograms.items() if not s.finite}
        evidence.put(_WEIGHTED_RANGES, known)
    return known


def _channel_weights(evidence: Evidence) -> dict[str, tuple[int, np.ndarray | None]]:
    """For every tensor its channel axis, and the weight of each channel's error (None: all channels equal)."""
    found: dict[str, tuple[int, np.ndarray | None]] = {}
    for node in evidence.model.graph:
        source = node.inputs[0] if node.inputs else None
        if (
            node.op_type not in placement.COMPUTE
            or source is None
            or placement.refusal_reason(node, evidence.trace) is not None
        ):
            continue
        weight = read.constant(node.inputs[1])
        if weight is None:
            continue
        axis, squared = (1 if node.op_type == "Conv" else -1), _squared_weights(node, weight)
        before = found.get(source.name or "", (axis, None))[1]
        agree = before is not None and before.shape == squared.shape
        found[source.name or ""] = axis, squared + before if agree and before is not None else squared
    return found


def _squared_weights(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """Sum of the squared weights of each input channel, [channels]."""
    squares = weight.astype(np.float64) ** 2
    if node.op_type == "Conv":
        groups = read.int_attribute(node, "group", 1)
        rows, columns = weight.shape[:2]
        return np.asarray(squares.reshape(groups, rows // groups, columns, -1).sum(axis=(1, 3)).ravel())
    return np.asarray(squares.sum(axis=0 if node.op_type == "Gemm" and read.int_attribute(node, "transB", 0) else 1))


def _candidate_errors(
    evidence: Evidence,
    candidates: Mapping[str, Sequence[Range]],
    channel_weights: Mapping[str, tuple[int, np.ndarray | None]],
) -> dict[str, np.ndarray]:
    """The output error of each candidate range of a tensor, on a sample of its values."""
    if not candidates:
        return {}
    sums: dict[str, np.ndarray] = {}  # [ranges, 2, channels]: errors and their squares
    counts = dict.fromkeys(candidates, 0)
    axes = {name: axis for name, (axis, weights) in channel_weights.items() if weights is not None}
    for values in sample_rows(evidence, list(candidates), axes, _SAMPLES, _VALUES_PER_SAMPLE):
        for name, rows in values.items():
            tensor_ranges = candidates[name]
            if name not in sums:
                sums[name] = np.zeros((len(tensor_ranges), 2, rows.shape[1]))
            if rows.shape[1] != sums[name].shape[2]:  # the number of channels varies between samples
                continue
            counts[name] += len(rows)
            for range_sums, (low, high) in zip(sums[name], tensor_ranges, strict=True):
                grid = quantization_grid(low, high)
                error = (grid.quantize(rows) - grid.zero_point) * grid.scale - rows
                range_sums += error.sum(axis=0, dtype=np.float64), np.einsum("rc,rc->c", error, error, dtype=np.float64)
    errors = {}
    for name, found in sums.items():
        weights = channel_weights.get(name, (-1, None))[1]
        mean_error, mean_square = found[:, 0] / max(counts[name], 1), found[:, 1] / max(counts[name], 1)
        weighted = weights is not None and len(weights) == found.shape[2]
        errors[name] = (
            (mean_square - mean_error**2) @ weights if weighted and weights is not None else mean_square.sum(axis=1)
        )
    return errors


def histogram_of(evidence: Evidence, name: str) -> Histogram:
    """The histogram of a tensor; empty where it was not observed."""
    return histograms_for(evidence).get(name, Histogram())
