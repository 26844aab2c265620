"""quantize: static int8 in QDQ form, as onnxruntime's CPU kernels want it.

Activations are u8 with a zero point (0 behind a Relu, so that the Relu fuses), weights s8 per output channel, biases
int32.  Ranges come from streamed histograms; the mean error that rounding leaves on each output channel is taken back
through the bias, layer by layer with the quantized prefix in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, stream
from onnxpress.measure.ranges import METHODS, Spread, clip_range, observe
from onnxpress.model import edit, read
from onnxpress.model.counts import node_macs
from onnxpress.passes import qdq
from onnxpress.passes.base import Applied, Decision, Option, Refused, Saving
from onnxpress.passes.weights8 import Codes, quantize_weight

_BIAS_SAMPLES = 32


@dataclass(frozen=True)
class Grid:
    """u8 quantization of one tensor: real = scale * (code - zero)."""

    scale: np.float32
    zero: int

    def codes(self, real: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip(np.rint(real / self.scale) + self.zero, 0, 255))


class Quantize:
    name = "quantize"
    exact = False
    needs_data = True

    def options(self, model: ir.Model, evidence: Evidence) -> list[Option]:
        """One option a node with an integer kernel: run it, and what it takes along, in int8."""
        found = []
        for node in evidence.model.graph:
            if node.op_type in qdq.COMPUTE and qdq.eligible(node, evidence.trace) is None:
                weight = read.constant(node.inputs[1])
                saving = Saving(0.0, 3.0 * weight.size if weight is not None else 0.0)
                found.append(Option(self.name, node.name or "", {"nodes": [node.name]}, saving, 0.0))
        return found

    def apply(self, model: ir.Model, decisions: Sequence[Decision], evidence: Evidence) -> Applied:
        """decisions: [{"nodes": [names]}, …] and optionally {"ranges": method}, {"correct": "bias" | "none"},
        {"products": "exact" | "saturating"} (default: what the evidence's machine does)."""
        nodes = [str(n) for d in decisions for n in d.get("nodes", [])]
        if not nodes:
            return Applied(model.clone())
        method = next((d["ranges"] for d in decisions if "ranges" in d), "auto")
        correct = next((d["correct"] for d in decisions if "correct" in d), "bias")
        exact = next((d["products"] == "exact" for d in decisions if "products" in d), evidence.machine.int8_exact)
        if method not in METHODS:
            raise InputProblem("unknown range method", method, "", f"one of {', '.join(METHODS)}")
        return quantize(evidence, frozenset(nodes), method, correct == "bias", exact)


def plan_quantization(evidence: Evidence, method: str = "auto", exclude: Iterable[str] = ()) -> list[Decision]:
    """Decisions for the whole model: every node that is worth an integer kernel."""
    chosen = qdq.whole(evidence.model, evidence.trace, exclude)
    return decisions_for(chosen, evidence, method) if chosen else []


def decisions_for(
    chosen: frozenset[str], evidence: Evidence, method: str = "auto", correct: bool = True
) -> list[Decision]:
    """The decisions that run exactly the chosen nodes in int8."""
    return [
        {"nodes": sorted(chosen)},
        {"ranges": method},
        {"correct": "bias" if correct else "none"},
        {"products": "exact" if evidence.machine.int8_exact else "saturating"},
    ]


def refusals(evidence: Evidence) -> list[Refused]:
    """Weight-bearing nodes that have no integer kernel, and why."""
    return [
        Refused(n.name or "", why)
        for n in evidence.model.graph
        if n.op_type in read.WEIGHTED and (why := qdq.eligible(n, evidence.trace)) is not None
    ]


def quantize(evidence: Evidence, chosen: frozenset[str], method: str, correct: bool, exact: bool) -> Applied:
    """The model with the chosen nodes in int8."""
    source = evidence.model
    known = {n.name for n in source.graph}
    missing = sorted(chosen - known)
    if missing:
        raise InputProblem(
            "the plan names nodes the model does not have",
            missing[0],
            f"{len(missing)} in all",
            "use the plan with the model it was made for",
        )
    bad = [(n.name, why) for n in source.graph if n.name in chosen and (why := qdq.eligible(n, evidence.trace))]
    if bad:
        raise InputProblem("a node cannot run in int8", bad[0][0], str(bad[0][1]), "take it out of the plan")
    plan = qdq.layout(source, chosen)
    spreads = spreads_for(evidence)
    grids = _grids(plan, spreads, method, source)
    work = source.clone()
    notes = [f"{len(chosen)} nodes in int8, {len(plan.tensors)} tensors, ranges by {method}"]
    narrow = _rewrite(work, plan, grids, evidence, exact)
    if narrow:
        notes.append(f"7-bit weights on {narrow} output channels that would saturate without VNNI")
    if correct:
        notes.append(f"bias corrected on {correct_bias(evidence, work, plan)} layers")
    edit.drop_dead(work)
    edit.forget_shapes(work)
    return Applied(work, notes, refusals(evidence))


def spreads_for(evidence: Evidence) -> dict[str, Spread]:
    """Spreads of every tensor that could be quantized, observed once per evidence."""
    known: dict[str, Spread] | None = evidence.__dict__.get("_spreads")
    if known is None:
        everything = qdq.layout(evidence.model, _all_eligible(evidence))
        axes = {}
        for node in evidence.model.graph:
            if node.op_type in qdq.COMPUTE and node.inputs[0] is not None:
                axes[node.inputs[0].name or ""] = 1 if node.op_type == "Conv" else -1
        known = observe(evidence, everything.tensors, axes)
        evidence.__dict__["_spreads"] = known
    return known


def _all_eligible(evidence: Evidence) -> frozenset[str]:
    return frozenset(n.name or "" for n in evidence.model.graph if qdq.eligible(n, evidence.trace) is None)


def _grids(plan: qdq.Layout, spreads: Mapping[str, Spread], method: str, model: ir.Model) -> dict[str, Grid]:
    """A grid a tensor; tensors that must share take the widest range among them."""
    ranges = {name: clip_range(spreads[name], method) for name in plan.tensors}
    for tie in plan.same:
        members = [m for m in tie if m in ranges]
        if members:
            shared = (min(ranges[m][0] for m in members), max(ranges[m][1] for m in members))
            ranges.update(dict.fromkeys(members, shared))
    return {name: grid(low, high) for name, (low, high) in ranges.items()}


def grid(low: float, high: float) -> Grid:
    """The u8 grid of a range that holds 0; zero is exactly representable."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max((high - low) / 255.0, 1e-8))
    return Grid(scale, int(np.clip(np.rint(-low / float(scale)), 0, 255)))


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


def _rewrite(work: ir.Model, plan: qdq.Layout, grids: Mapping[str, Grid], evidence: Evidence, exact: bool) -> int:
    """Insert the pairs and the integer weights in place; how many output channels got 7 bits."""
    spreads = spreads_for(evidence)
    values: dict[str, ir.Value] = {v.name: v for v in work.graph.inputs if v.name}
    values.update({v.name: v for n in work.graph for v in n.outputs if v.name})
    chosen = [n for n in work.graph if n.name in plan.nodes]  # in the graph's order: the same bytes every time
    made = {qdq.final_output(n).name for n in chosen}
    readers = {name: [(u.node, u.idx) for u in values[name].uses()] for name in plan.tensors}
    narrow = 0
    for node in chosen:
        if node.op_type in qdq.COMPUTE and node.inputs[0] is not None:
            source = node.inputs[0].name or ""
            narrow += _integer_weights(work, node, grids[source], spreads[source], exact)
    for name in plan.tensors:
        pair = _Pair(values[name], grids[name], readers[name], name in made, evidence.trace.shape(name))
        _insert(work, pair, plan)
    return narrow


def _insert(work: ir.Model, pair: _Pair, plan: qdq.Layout) -> None:
    value, params = pair.value, pair.grid
    stem = value.name or "tensor"
    scale = edit.add_constant(work, np.asarray(params.scale, np.float32), f"{stem}_scale")
    zero = edit.add_constant(work, np.asarray(params.zero, np.uint8), f"{stem}_zero")
    producer, first = value.producer(), next(iter(work.graph))
    was_output = value.is_graph_output() and pair.made_here
    if producer is None:
        q = edit.insert_before(work, first, "QuantizeLinear", [value, scale, zero], f"{stem}_q")
        back = edit.insert_before(work, first, "DequantizeLinear", [q, scale, zero], f"{stem}_dq")
    else:
        q = edit.insert_after(work, producer, "QuantizeLinear", [value, scale, zero], f"{stem}_q")
        back = edit.insert_after(work, _producer(q), "DequantizeLinear", [q, scale, zero], f"{stem}_dq")
    wide: ir.Value | None = None
    for node, index in pair.readers:
        if node.name in plan.nodes or (pair.made_here and not _tempting(node)):
            node.replace_input_with(index, back)
        elif pair.made_here:
            wide = wide or _channel_dq(work, pair, q)
            node.replace_input_with(index, wide)
    if was_output:
        _hand_over_output(work, value, back)


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
    zero = edit.add_constant(work, np.full(size, pair.grid.zero, np.uint8), f"{stem}_zeros")
    return edit.insert_after(work, _producer(q), "DequantizeLinear", [q, scale, zero], f"{stem}_dqs", {"axis": 1})


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _hand_over_output(work: ir.Model, value: ir.Value, back: ir.Value) -> None:
    """The graph output becomes the DQ's result, under the old name."""
    outputs = work.graph.outputs
    position = next(i for i, v in enumerate(outputs) if v is value)
    name, kind, shape = value.name, value.type, value.shape
    value.name = edit.fresh(work, f"{name}_float")
    back.name, back.type, back.shape = name, kind, shape
    outputs[position] = back


def _integer_weights(work: ir.Model, node: ir.Node, source: Grid, spread: Spread, exact: bool) -> int:
    """Replace a node's float weight and bias by integers behind DQs."""
    weight = read.constant(node.inputs[1])
    assert weight is not None
    codes = quantize_weight(node, weight, None if exact or read.is_depthwise(node) else _peak_codes(source, spread))
    _put_weight(work, node, codes)
    bias = read.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        _put_bias(work, node, bias, source, codes)
    return int(codes.narrow.sum())


def _peak_codes(source: Grid, spread: Spread) -> np.ndarray:
    """Largest code of each input channel on the samples; padding adds the zero point's code."""
    high = spread.channel_high if spread.channel_high is not None else np.array([spread.high])
    return np.asarray(np.maximum(source.codes(high), source.zero))


def _put_weight(work: ir.Model, node: ir.Node, codes: Codes) -> None:
    values = edit.add_constant(work, codes.values, f"{node.name}_weight_q")
    scale = edit.add_constant(work, codes.scale, f"{node.name}_weight_scale")
    zero = edit.add_constant(work, np.zeros(len(codes.scale), np.int8), f"{node.name}_weight_zero")
    back = edit.insert_before(
        work, node, "DequantizeLinear", [values, scale, zero], f"{node.name}_weight_dq", {"axis": codes.axis}
    )
    node.replace_input_with(1, back)


def _put_bias(work: ir.Model, node: ir.Node, bias: np.ndarray, source: Grid, codes: Codes) -> None:
    scale = (np.float64(source.scale) * codes.scale.astype(np.float64)).astype(np.float32)
    scale = np.maximum(scale, np.float32(1e-30))
    limit = 2.0**31 - 1024
    whole = np.clip(np.rint(bias.ravel().astype(np.float64) / scale), -limit, limit).astype(np.int32)
    values = edit.add_constant(work, whole, f"{node.name}_bias_q")
    factor = edit.add_constant(work, scale, f"{node.name}_bias_scale")
    zero = edit.add_constant(work, np.zeros(len(scale), np.int32), f"{node.name}_bias_zero")
    back = edit.insert_before(
        work, node, "DequantizeLinear", [values, factor, zero], f"{node.name}_bias_dq", {"axis": 0}
    )
    node.replace_input_with(2, back)


def correct_bias(evidence: Evidence, work: ir.Model, plan: qdq.Layout) -> int:
    """E[y_float] - E[y_int8] of each output channel goes into the bias, in topological order.

    The integer prefix is the one already corrected, so later layers see what they will see.  How many were corrected.
    """
    data = evidence.samples().take(_BIAS_SAMPLES)
    order = [
        n
        for n in list(work.graph)
        if n.name in plan.nodes and n.op_type in qdq.COMPUTE and len(n.inputs) > 2 and n.inputs[2] is not None
    ]
    if not order:
        return 0
    wished = _channel_means(evidence.model, [(n.outputs[0].name or "", n.op_type) for n in order], data, evidence)
    for node in order:
        name = node.outputs[0].name or ""
        found = _channel_means(work, [(name, node.op_type)], data, evidence)[name]
        shift = wished[name] - found
        dq = _producer(node.inputs[2]) if node.inputs[2] is not None else None
        if dq is None or dq.inputs[0] is None or not np.isfinite(shift).all():
            continue
        whole, scale = read.constant(dq.inputs[0]), read.constant(dq.inputs[1])
        if whole is None or scale is None or len(shift) != len(whole):
            continue
        moved = np.rint(whole.astype(np.float64) + shift / scale)
        edit.set_constant(dq.inputs[0], np.clip(moved, -(2.0**31 - 1024), 2.0**31 - 1024).astype(np.int32))
    return len(order)


def _channel_means(
    model: ir.Model, outputs: Sequence[tuple[str, str]], data: object, evidence: Evidence
) -> dict[str, np.ndarray]:
    names = [name for name, _ in outputs]
    sums: dict[str, np.ndarray] = {}
    counts = dict.fromkeys(names, 0)
    for values in stream(model, names, data, evidence.batch_for(names)):  # type: ignore[arg-type]
        for name, op in outputs:
            y = values[name]
            moved = np.moveaxis(y, 1, -1) if op == "Conv" else y
            rows = moved.reshape(-1, moved.shape[-1])
            sums[name] = sums.get(name, 0) + rows.sum(axis=0, dtype=np.float64)
            counts[name] += len(rows)
    return {name: sums[name] / max(counts[name], 1) for name in names}


def integer_share(evidence: Evidence, chosen: frozenset[str]) -> float:
    """Share of multiply-accumulates that the chosen nodes do."""
    costs = {n.name: node_macs(n, evidence.trace) for n in evidence.model.graph}
    total = sum(costs.values())
    return sum(costs[n] for n in chosen) / total if total else 0.0


QUANTIZE = Quantize()
