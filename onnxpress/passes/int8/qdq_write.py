"""Q/DQ pairs and integer weights written into a graph, for a layout that `qdq.py` drew.

Every choice of order follows the graph, never a set: the same plan gives the same bytes in every process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.gram import input_moments
from onnxpress.measure.ranges import Histogram, collect_histograms, collect_histograms_by_part
from onnxpress.model import edit, read
from onnxpress.passes.core.rounding import minded
from onnxpress.passes.int8 import qdq
from onnxpress.passes.int8.weight_quantization import Codes, output_axis, quantize_weight, refine, scales_are_much


@dataclass(frozen=True)
class Grid:
    """Unsigned quantization of one tensor, in 8 or 16 bits: real = scale * (code - zero)."""

    scale: np.float32
    zero: int
    bits: int = 8

    @property
    def top(self) -> int:
        return int(2**self.bits - 1)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        return np.uint8 if self.bits == 8 else np.uint16

    def codes(self, real: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip(np.rint(real / self.scale) + self.zero, 0, self.top))


def grid(low: float, high: float, bits: int = 8) -> Grid:
    """The grid of a range that holds 0; zero is exactly representable."""
    low, high, top = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = np.float32(max((high - low) / top, 1e-8 * 255 / top))
    return Grid(scale, int(np.clip(np.rint(-low / float(scale)), 0, top)), bits)


def histograms_for(evidence: Evidence) -> dict[str, Histogram]:
    """Spreads of every tensor that could be quantized, observed once per evidence.

    In one pass by halves of the samples, of which each is then known, too, for what is tried on the one and judged on the other.
    """
    if "histograms" not in evidence.kept:
        tensors, axes = qdq.layout(evidence.model, _all_eligible(evidence)).tensors, channel_axes(evidence.model)
        floors = qdq.floors(evidence.model).intersection(tensors)
        if evidence.halves is None:
            evidence.kept["histograms"] = collect_histograms(evidence, tensors, axes, floors)
        else:
            both = collect_histograms_by_part(
                evidence, tensors, axes, [half.samples() for half in evidence.halves], floors
            )
            for half, found in zip(evidence.halves, both, strict=True):
                half.kept["histograms"] = found
            evidence.kept["histograms"] = {name: both[0][name] + both[1][name] for name in tensors}
    known: dict[str, Histogram] = evidence.kept["histograms"]
    return known


def channel_axes(model: ir.Model) -> dict[str, int]:
    """The axis along which layers with weights read each tensor's channels, or a convolution writes them."""
    written = {n.outputs[0].name or "": 1 for n in model.graph if n.op_type in ("Conv", "ConvTranspose")}
    return written | {
        n.inputs[0].name or "": 1 if n.op_type == "Conv" else -1
        for n in model.graph
        if n.op_type in qdq.COMPUTE and n.inputs[0] is not None
    }


def _all_eligible(evidence: Evidence) -> frozenset[str]:
    return frozenset(n.name or "" for n in evidence.model.graph if qdq.eligible(n, evidence.trace) is None)


@dataclass(frozen=True)
class _Pair:
    """One value that gets a Q and a DQ.  readers: (node, operand) of everybody who reads it.

    made_here: an integer node makes it, so that everybody must read the DQ; elsewhere only integer nodes do.
    shape: of the value, for DQs with a scale a channel.
    """

    value: ir.Value
    grid: Grid
    readers: Sequence[tuple[ir.Node, int]]
    made_here: bool
    shape: tuple[int, ...] | None


def rewrite(
    work: ir.Model,
    plan: qdq.Layout,
    grids: Mapping[str, Grid],
    evidence: Evidence,
    exact: bool,
    keep_outputs: bool = False,
) -> int:
    """Insert the pairs and the integer weights in place; how many output channels got fewer levels than 8 bits have.

    keep_outputs: round all weights with the inputs in view, not just those of fewer levels.
    """
    values: dict[str, ir.Value] = {v.name: v for v in work.graph.inputs if v.name}
    values.update({v.name: v for n in work.graph for v in n.outputs if v.name})
    chosen = [n for n in work.graph if n.name in plan.nodes]  # in the graph's order: the same bytes every time
    made = {v.name for n in chosen for v in qdq.final_outputs(n)}
    readers = {name: [(u.node, u.idx) for u in values[name].uses()] for name in plan.tensors}
    weights = _integer_weights(chosen, grids, evidence, exact)
    weights = _with_inputs_in_view(evidence, weights, keep_outputs)
    for node, codes in weights:
        _put_weight(work, node, codes)
        bias = read.constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None and node.inputs[0] is not None:
            _put_bias(work, node, bias, grids[node.inputs[0].name or ""], codes)
    for name in plan.tensors:
        pair = _Pair(values[name], grids[name], readers[name], name in made, evidence.trace.shape(name))
        _insert(work, pair, plan)
    for node in chosen:
        if node.op_type in qdq.ON_CODES and grids[node.outputs[0].name or ""].bits == 8:  # a Pad knows no 16 bits
            _on_codes(work, node, grids[node.outputs[0].name or ""])
    return sum(int(codes.narrow.sum()) for _, codes in weights)


def _insert(work: ir.Model, pair: _Pair, plan: qdq.Layout) -> None:
    value, params = pair.value, pair.grid
    stem = value.name or "tensor"
    scale = edit.add_constant(work, np.asarray(params.scale, np.float32), f"{stem}_scale")
    zero = edit.add_constant(work, np.asarray(params.zero, params.dtype), f"{stem}_zero")
    domain = _domain(work, params)
    producer, first = value.producer(), next(iter(work.graph))
    was_output = value.is_graph_output() and pair.made_here
    if producer is None:
        q = edit.insert_before(work, first, "QuantizeLinear", [value, scale, zero], f"{stem}_q", domain=domain)
        back = edit.insert_before(work, first, "DequantizeLinear", [q, scale, zero], f"{stem}_dq", domain=domain)
    else:
        q = edit.insert_after(work, producer, "QuantizeLinear", [value, scale, zero], f"{stem}_q", domain=domain)
        back = edit.insert_after(work, _producer(q), "DequantizeLinear", [q, scale, zero], f"{stem}_dq", domain=domain)
    wide: ir.Value | None = None
    for node, index in pair.readers:
        if node.name in plan.nodes or (pair.made_here and not _tempting(node)):
            node.replace_input_with(index, back)
        elif pair.made_here:
            wide = wide or _channel_dq(work, pair, q)
            node.replace_input_with(index, wide)
    if was_output:
        edit.replace_output(work, value, back)


def _on_codes(work: ir.Model, node: ir.Node, params: Grid) -> None:
    """Q-DQ-Pad-Q-DQ becomes Q-Pad-DQ: the same numbers, since both sides share their grid.

    Where the Pad's input comes from a float node, the Q there stays; only the round trip through float goes.
    """
    back = node.inputs[0]
    assert back is not None
    output = node.outputs[0]
    behind = [u.node for u in output.uses()]
    if _producer(back).op_type != "DequantizeLinear" or [n.op_type for n in behind] != ["QuantizeLinear"]:
        return
    node.replace_input_with(0, _producer(back).inputs[0])
    if read.fills_constant(node):
        edit.set_input(work, node, 2, np.asarray(params.zero, np.uint8), f"{node.name}_fill")
    edit.bypass(work, behind[0], output)
    output.type = ir.TensorType(ir.DataType.UINT8)  # a new one: clones share the old


def _tempting(node: ir.Node) -> bool:
    """A float node that onnxruntime would quantize at load, per tensor, if it found it between DQ and Q.

    (WeightBiasQuantization, level 1; a DQ with a scale a channel does not fit its pattern, and means the same.)
    """
    return node.op_type in ("Conv", "ConvTranspose", "Gemm")


def _channel_dq(work: ir.Model, pair: _Pair, q: ir.Value) -> ir.Value:
    """A DQ of the same numbers whose scale is spelled out for each position of axis 1."""
    stem = pair.value.name or "tensor"
    size = pair.shape[1] if pair.shape is not None and len(pair.shape) > 1 else 1
    scale = edit.add_constant(work, np.full(size, pair.grid.scale, np.float32), f"{stem}_scales")
    zero = edit.add_constant(work, np.full(size, pair.grid.zero, pair.grid.dtype), f"{stem}_zeros")
    domain = _domain(work, pair.grid)
    return edit.insert_after(
        work, _producer(q), "DequantizeLinear", [q, scale, zero], f"{stem}_dqs", {"axis": 1}, domain
    )


def _domain(work: ir.Model, params: Grid) -> str:
    """Whose operators write the pairs: the standard's know 16 bits from operator set 21 on, onnxruntime's at any."""
    if params.bits == 8 or read.opset(work) >= 21:
        return ""
    work.graph.opset_imports.setdefault("com.microsoft", 1)
    return "com.microsoft"


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _integer_weights(
    chosen: Sequence[ir.Node], grids: Mapping[str, Grid], evidence: Evidence, exact: bool
) -> list[tuple[ir.Node, Codes]]:
    """Integer weights of the compute nodes, each to the nearest."""
    histograms = histograms_for(evidence)
    found: list[tuple[ir.Node, Codes]] = []
    held = [(n, w) for n in chosen if n.op_type in qdq.COMPUTE and (w := read.constant(n.inputs[1])) is not None]
    small = scales_are_much(held)
    for node, weight in held:
        if node.inputs[0] is None:
            continue
        source = node.inputs[0].name or ""
        safe = exact or read.is_depthwise(node)
        peaks = None if safe else _peak_codes(grids[source], histograms[source])
        found.append((node, quantize_weight(node, weight, peaks, _least_scale(node, weight, grids[source]), small)))
    return found


def _least_scale(node: ir.Node, weight: np.ndarray, source: Grid) -> np.ndarray:
    """A floor for each output channel's weight scale, so that its bias fits 32 bits at input scale x weight scale."""
    columns = weight.shape[output_axis(node)]
    bias = None if node.op_type == "MatMul" else read.column_bias(node, columns)
    return np.zeros(columns) if bias is None else np.abs(bias.astype(np.float64)) / (float(source.scale) * 2.0**30)


def _with_inputs_in_view(
    evidence: Evidence, weights: Sequence[tuple[ir.Node, Codes]], every: bool
) -> list[tuple[ir.Node, Codes]]:
    """The same, those of fewer levels (or every) rounded so that the layer's outputs are kept; the same integers are found once."""
    known: dict[tuple[str, bytes, bytes], Codes] = evidence.kept.setdefault("rounded", {})
    keys = {
        n.name or "": (n.name or "", c.scale.tobytes(), c.levels.tobytes() + bytes([every]))
        for n, c in weights
        if every or c.narrow.any()
    }
    nearest = {n.name or "": c for n, c in weights}
    missing = [n for n in evidence.model.graph if n.name in keys and keys[n.name] not in known]
    nodes = {n.name: n for n in missing}
    for name, layer, moments in input_moments(evidence, missing):
        known[keys[name]] = refine(
            nodes[name], nearest[name], minded(moments, layer.weight, layer.bias is not None), every
        )
    return [(n, known.get(keys[n.name or ""], c) if n.name in keys else c) for n, c in weights]


def _peak_codes(source: Grid, histogram: Histogram) -> np.ndarray:
    """Largest code of each input channel on the samples; padding adds the zero point's code."""
    high = histogram.channel_high if histogram.channel_high is not None else np.array([histogram.high])
    return np.asarray(np.maximum(source.codes(high), source.zero))


def _put_weight(work: ir.Model, node: ir.Node, codes: Codes) -> None:
    values = edit.add_constant(work, codes.values, f"{node.name}_weight_q")
    node.replace_input_with(1, _dequantized(work, node, values, codes.scale, "weight", codes.axis))


def _put_bias(work: ir.Model, node: ir.Node, bias: np.ndarray, source: Grid, codes: Codes) -> None:
    scale = (np.float64(source.scale) * codes.scale.astype(np.float64)).astype(np.float32)
    scale = np.maximum(scale, np.float32(1e-30))
    limit = 2.0**31 - 1024
    whole = np.clip(np.rint(bias.ravel().astype(np.float64) / scale), -limit, limit).astype(np.int32)
    values = edit.add_constant(work, whole, f"{node.name}_bias_q")
    node.replace_input_with(2, _dequantized(work, node, values, scale, "bias", 0))


def _dequantized(work: ir.Model, node: ir.Node, values: ir.Value, scale: np.ndarray, what: str, axis: int) -> ir.Value:
    """Integers of a node as numbers: with one scale where all are the same.

    Zero points that are zero need not be said, save for Gemm, which onnxruntime leaves in float without them.
    """
    same = len(scale) > 1 and bool((scale == scale[0]).all())
    inputs = [values, edit.add_constant(work, scale[0] if same else scale, f"{node.name}_{what}_scale")]
    if node.op_type == "Gemm":
        kind = values.dtype.numpy() if values.dtype is not None else np.int8
        inputs.append(edit.add_constant(work, np.zeros(() if same else len(scale), kind), f"{node.name}_{what}_zero"))
    return edit.insert_before(
        work, node, "DequantizeLinear", inputs, f"{node.name}_{what}_dq", {} if same else {"axis": axis}
    )
