"""Writing of Q/DQ pairs and integer weights for the layout of `qdq/placement.py`.

All loops follow the order of the graph and never that of a set, so that the same layout always gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence, EvidenceKey
from onnxpress.measure.ranges import Histogram, collect_histograms, collect_histograms_by_part
from onnxpress.model import edit, read
from onnxpress.passes.int8.damped_grams import damped_grams
from onnxpress.passes.int8.qdq import placement
from onnxpress.passes.int8.weight_quantization import (
    QuantizedWeight,
    output_axis,
    quantize_weight,
    round_output_aware,
    scales_are_significant,
)

HISTOGRAMS: EvidenceKey[dict[str, Histogram]] = EvidenceKey("histograms of quantizable tensors")
_ROUNDED: EvidenceKey[dict[tuple[str, bytes, bytes], QuantizedWeight]] = EvidenceKey("weights rounded output-aware")


@dataclass(frozen=True)
class QuantizationGrid:
    """Asymmetric quantization of a tensor in 8 or 16 unsigned bits: real = scale * (code - zero_point)."""

    scale: np.float32
    zero_point: int
    bits: int = 8

    @property
    def max_code(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The integer type of the codes."""
        return np.uint8 if self.bits == 8 else np.uint16

    def quantize(self, real: np.ndarray) -> np.ndarray:
        """The codes of real values, in the float type of the input."""
        return np.asarray(np.clip(np.rint(real / self.scale) + self.zero_point, 0, self.max_code))


def quantization_grid(low: float, high: float, bits: int = 8) -> QuantizationGrid:
    """Compute the grid of a range.

    Args:
        low, high: the range; it is extended to contain 0, which is represented exactly.
        bits: 8 or 16.
    """
    low, high, top = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = np.float32(max((high - low) / top, 1e-8 * 255 / top))
    return QuantizationGrid(scale, int(np.clip(np.rint(-low / float(scale)), 0, top)), bits)


def histograms_for(evidence: Evidence) -> dict[str, Histogram]:
    """Histograms of every tensor that can be quantized, observed once per evidence.

    Both halves of the samples are observed in one pass, so that each half has statistics of its own for
    cross-validation.
    """
    known = evidence.get(HISTOGRAMS)
    if known is None:
        tensors, axes = (
            placement.qdq_layout(evidence.model, _all_eligible(evidence)).tensors,
            channel_axes(evidence.model),
        )
        floors = placement.nonnegative_values(evidence.model).intersection(tensors)
        if evidence.halves is None:
            known = collect_histograms(evidence, tensors, axes, floors)
        else:
            both = collect_histograms_by_part(
                evidence, tensors, axes, [half.samples() for half in evidence.halves], floors
            )
            for half, found in zip(evidence.halves, both, strict=True):
                half.put(HISTOGRAMS, found)
            known = {name: both[0][name] + both[1][name] for name in tensors}
        evidence.put(HISTOGRAMS, known)
    return known


def channel_axes(model: ir.Model) -> dict[str, int]:
    """The axis of each tensor's channels: where layers with weights read it, or a convolution writes it."""
    written = {n.outputs[0].name or "": 1 for n in model.graph if n.op_type in ("Conv", "ConvTranspose")}
    return written | {
        n.inputs[0].name or "": 1 if n.op_type == "Conv" else -1
        for n in model.graph
        if n.op_type in placement.COMPUTE and n.inputs[0] is not None
    }


def _all_eligible(evidence: Evidence) -> frozenset[str]:
    """Names of all nodes that can run in int8."""
    return frozenset(n.name or "" for n in evidence.model.graph if placement.refusal_reason(n, evidence.trace) is None)


@dataclass(frozen=True)
class _QdqPair:
    """One value that gets a Q and a DQ.

    Attributes:
        value: the value.
        grid: its quantization.
        readers: (node, input index) of all readers.
        from_integer: whether an integer node produces it; then all readers read the DQ, otherwise only integer nodes.
        shape: shape of the value, for DQs with a scale per channel.
    """

    value: ir.Value
    grid: QuantizationGrid
    readers: Sequence[tuple[ir.Node, int]]
    from_integer: bool
    shape: tuple[int, ...] | None


def write_qdq(
    work: ir.Model,
    layout: placement.QdqLayout,
    grids: Mapping[str, QuantizationGrid],
    evidence: Evidence,
    exact_products: bool,
    output_aware: bool = False,
) -> int:
    """Insert Q/DQ pairs and integer weights in place.

    Args:
        work: the model to change.
        layout: the nodes and tensors to quantize.
        grids: the grid of each tensor of the layout.
        evidence: the float model and its samples.
        exact_products: whether the CPU adds products of u8 and s8 without saturation.
        output_aware: whether weights are rounded to preserve the layer's output; otherwise to nearest.

    Returns:
        The number of output channels whose weights have a reduced range.
    """
    values: dict[str, ir.Value] = {v.name: v for v in work.graph.inputs if v.name}
    values.update({v.name: v for n in work.graph for v in n.outputs if v.name})
    chosen = [n for n in work.graph if n.name in layout.nodes]  # in graph order
    integer_values = {v.name for n in chosen for v in placement.final_outputs(n)}
    readers = {name: [(u.node, u.idx) for u in values[name].uses()] for name in layout.tensors}
    quantized_weights = _integer_weights(chosen, grids, evidence, exact_products)
    if output_aware:
        quantized_weights = _round_output_aware(evidence, quantized_weights)
    for node, quantized in quantized_weights:
        _write_weight(work, node, quantized)
        bias = read.constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None and node.inputs[0] is not None:
            _write_bias(work, node, bias, grids[node.inputs[0].name or ""], quantized)
    for name in layout.tensors:
        pair = _QdqPair(values[name], grids[name], readers[name], name in integer_values, evidence.trace.shape(name))
        _insert_pair(work, pair, layout)
    for node in chosen:
        if (
            node.op_type in placement.INTEGER_MOVEMENT and grids[node.outputs[0].name or ""].bits == 8
        ):  # Pad does not support 16 bits
            _move_integers(work, node, grids[node.outputs[0].name or ""])
    return sum(int(quantized.reduced_range.sum()) for _, quantized in quantized_weights)


def _insert_pair(work: ir.Model, pair: _QdqPair, layout: placement.QdqLayout) -> None:
    """Insert the pair of one value and connect its readers."""
    value, params = pair.value, pair.grid
    name = value.name or "tensor"
    scale = edit.add_constant(work, np.asarray(params.scale, np.float32), f"{name}_scale")
    zero = edit.add_constant(work, np.asarray(params.zero_point, params.dtype), f"{name}_zero")
    domain = _domain(work, params)
    producer, first = value.producer(), next(iter(work.graph))
    was_output = value.is_graph_output() and pair.from_integer
    if producer is None:
        q = edit.insert_before(work, first, "QuantizeLinear", [value, scale, zero], f"{name}_q", domain=domain)
        dequantized = edit.insert_before(work, first, "DequantizeLinear", [q, scale, zero], f"{name}_dq", domain=domain)
    else:
        q = edit.insert_after(work, producer, "QuantizeLinear", [value, scale, zero], f"{name}_q", domain=domain)
        dequantized = edit.insert_after(
            work, _producer(q), "DequantizeLinear", [q, scale, zero], f"{name}_dq", domain=domain
        )
    per_channel: ir.Value | None = None
    for node, index in pair.readers:
        if node.name in layout.nodes or (pair.from_integer and not _quantized_at_load(node)):
            node.replace_input_with(index, dequantized)
        elif pair.from_integer:
            per_channel = per_channel or _per_channel_dequantize(work, pair, q)
            node.replace_input_with(index, per_channel)
    if was_output:
        edit.replace_output(work, value, dequantized)


def _move_integers(work: ir.Model, node: ir.Node, params: QuantizationGrid) -> None:
    """Turn Q-DQ-Pad-Q-DQ into Q-Pad-DQ, which gives the same numbers, since both sides share their grid.

    If the Pad's input comes from a float node, its Q stays.
    """
    dequantized = node.inputs[0]
    assert dequantized is not None
    output = node.outputs[0]
    behind = [u.node for u in output.uses()]
    if _producer(dequantized).op_type != "DequantizeLinear" or [n.op_type for n in behind] != ["QuantizeLinear"]:
        return
    node.replace_input_with(0, _producer(dequantized).inputs[0])
    if read.fills_constant(node):
        edit.set_input(work, node, 2, np.asarray(params.zero_point, np.uint8), f"{node.name}_fill")
    edit.bypass(work, behind[0], output)
    output.type = ir.TensorType(ir.DataType.UINT8)  # a new object: clones share the old one


def _quantized_at_load(node: ir.Node) -> bool:
    """Whether onnxruntime would quantize a float node per tensor at load if it stood between a DQ and a Q.

    (WeightBiasQuantization, level 1. A DQ with a scale per channel does not match its pattern and means the same.)
    """
    return node.op_type in ("Conv", "ConvTranspose", "Gemm")


def _per_channel_dequantize(work: ir.Model, pair: _QdqPair, q: ir.Value) -> ir.Value:
    """A DQ with the scale of the tensor repeated for each position of axis 1."""
    name = pair.value.name or "tensor"
    size = pair.shape[1] if pair.shape is not None and len(pair.shape) > 1 else 1
    scale = edit.add_constant(work, np.full(size, pair.grid.scale, np.float32), f"{name}_scales")
    zero = edit.add_constant(work, np.full(size, pair.grid.zero_point, pair.grid.dtype), f"{name}_zeros")
    domain = _domain(work, pair.grid)
    return edit.insert_after(
        work, _producer(q), "DequantizeLinear", [q, scale, zero], f"{name}_dqs", {"axis": 1}, domain
    )


def _domain(work: ir.Model, params: QuantizationGrid) -> str:
    """Domain of the pairs: for 16 bits the standard one from operator set 21 on, else that of onnxruntime."""
    if params.bits == 8 or read.opset(work) >= 21:
        return ""
    work.graph.opset_imports.setdefault("com.microsoft", 1)
    return "com.microsoft"


def _producer(value: ir.Value) -> ir.Node:
    """The node that produces a value."""
    node = value.producer()
    assert node is not None
    return node


def _integer_weights(
    chosen: Sequence[ir.Node], grids: Mapping[str, QuantizationGrid], evidence: Evidence, exact_products: bool
) -> list[tuple[ir.Node, QuantizedWeight]]:
    """The weights of the compute nodes, rounded to nearest."""
    histograms = histograms_for(evidence)
    found: list[tuple[ir.Node, QuantizedWeight]] = []
    weighted_nodes = [
        (n, w) for n in chosen if n.op_type in placement.COMPUTE and (w := read.constant(n.inputs[1])) is not None
    ]
    share_scales = scales_are_significant(weighted_nodes)
    for node, weight in weighted_nodes:
        if node.inputs[0] is None:
            continue
        source = node.inputs[0].name or ""
        no_saturation = exact_products or read.is_depthwise(node)
        input_peaks = None if no_saturation else _peak_codes(grids[source], histograms[source])
        found.append(
            (
                node,
                quantize_weight(
                    node, weight, input_peaks, _min_weight_scale(node, weight, grids[source]), share_scales
                ),
            )
        )
    return found


def _min_weight_scale(node: ir.Node, weight: np.ndarray, source: QuantizationGrid) -> np.ndarray:
    """Lower bound of each output channel's weight scale, so that its bias fits int32 at the product of the scales."""
    channels = weight.shape[output_axis(node)]
    bias = None if node.op_type == "MatMul" else read.column_bias(node, channels)
    return np.zeros(channels) if bias is None else np.abs(bias.astype(np.float64)) / (float(source.scale) * 2.0**30)


def _round_output_aware(
    evidence: Evidence, quantized_weights: Sequence[tuple[ir.Node, QuantizedWeight]]
) -> list[tuple[ir.Node, QuantizedWeight]]:
    """Round the weights so that the layer's output is preserved.

    Results are kept with the evidence, so that the same weights are rounded once.
    """
    refined = evidence.derive(_ROUNDED, dict)
    keys = {n.name or "": (n.name or "", c.scale.tobytes(), c.max_codes.tobytes()) for n, c in quantized_weights}
    nearest_weights = {n.name or "": c for n, c in quantized_weights}
    missing = [n for n in evidence.model.graph if n.name in keys and keys[n.name] not in refined]
    nodes = {n.name: n for n in missing}
    for name, gram in damped_grams(evidence, missing):
        refined[keys[name]] = round_output_aware(nodes[name], nearest_weights[name], gram)
    return [(n, refined.get(keys[n.name or ""], c)) for n, c in quantized_weights]


def _peak_codes(source: QuantizationGrid, histogram: Histogram) -> np.ndarray:
    """The largest code of each input channel on the samples, at least the zero point, which padding adds."""
    high = histogram.channel_high if histogram.channel_high is not None else np.array([histogram.high])
    return np.asarray(np.maximum(source.quantize(high), source.zero_point))


def _write_weight(work: ir.Model, node: ir.Node, quantized: QuantizedWeight) -> None:
    """Replace a weight by its integers and a DQ."""
    values = edit.add_constant(work, quantized.values, f"{node.name}_weight_q")
    node.replace_input_with(1, _insert_dequantize(work, node, values, quantized.scale, "weight", quantized.axis))


def _write_bias(
    work: ir.Model, node: ir.Node, bias: np.ndarray, source: QuantizationGrid, quantized: QuantizedWeight
) -> None:
    """Replace a bias by int32 at the product of the scales."""
    scale = (np.float64(source.scale) * quantized.scale.astype(np.float64)).astype(np.float32)
    scale = np.maximum(scale, np.float32(1e-30))
    limit = 2.0**31 - 1024
    integers = np.clip(np.rint(bias.ravel().astype(np.float64) / scale), -limit, limit).astype(np.int32)
    values = edit.add_constant(work, integers, f"{node.name}_bias_q")
    node.replace_input_with(2, _insert_dequantize(work, node, values, scale, "bias", 0))


def _insert_dequantize(
    work: ir.Model, node: ir.Node, values: ir.Value, scale: np.ndarray, what: str, axis: int
) -> ir.Value:
    """A DQ of an integer constant, with a single scale where all are equal.

    A zero point of zero is left out, except for Gemm, which onnxruntime does not fuse without it.
    """
    one_scale = len(scale) > 1 and bool((scale == scale[0]).all())
    inputs = [values, edit.add_constant(work, scale[0] if one_scale else scale, f"{node.name}_{what}_scale")]
    if node.op_type == "Gemm":
        integer_type = values.dtype.numpy() if values.dtype is not None else np.int8
        inputs.append(
            edit.add_constant(work, np.zeros(() if one_scale else len(scale), integer_type), f"{node.name}_{what}_zero")
        )
    return edit.insert_before(
        work, node, "DequantizeLinear", inputs, f"{node.name}_{what}_dq", {} if one_scale else {"axis": axis}
    )
