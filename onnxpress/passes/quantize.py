"""quantize: static int8 in QDQ form, as onnxruntime's CPU kernels want it.

Activations are u8 with a zero point (0 behind a Relu, so that the Relu fuses), weights s8 per output channel, biases
int32.  Ranges come from streamed histograms; which way of clipping them harms the output least is measured.  The mean
error that rounding leaves on each output channel is taken back through the bias.  Where pairs stand: `qdq.py`; how they
are written: `qdq_write.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.score import Judge
from onnxpress.model import edit, read
from onnxpress.passes import inner8, qdq, ranges8, tables8
from onnxpress.passes.base import Applied, Decision, Option, Refused, Saving
from onnxpress.passes.bias import correct_bias
from onnxpress.passes.qdq_write import rewrite, spreads_for
from onnxpress.passes.ranges8 import Rule

_CANDIDATES = ("weighted", "minmax", "mse")  # what "auto" chooses from
_JUDGED = 64  # samples
_FEW = 32  # layers


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
        """decisions: [{"nodes": [names]}, …] and optionally {"tables": [names of look-ups]}, {"inner": [names of weights]},
        {"ranges": method | [low, high] by tensor}, {"correct": "bias" | "none"},
        {"products": "exact" | "saturating"} (default: what the evidence's machine does)."""
        nodes = [str(n) for d in decisions for n in d.get("nodes", [])]
        looked_up = [str(n) for d in decisions for n in d.get("tables", [])]
        inside = [str(n) for d in decisions for n in d.get("inner", [])]
        if not nodes and not looked_up and not inside:
            return Applied(model.clone())
        method = next((d["ranges"] for d in decisions if "ranges" in d), "auto")
        correct = next((d["correct"] for d in decisions if "correct" in d), "bias")
        exact = next((d["products"] == "exact" for d in decisions if "products" in d), evidence.machine.int8_exact)
        ranges8.check(method)
        return quantize(evidence, frozenset(nodes), method, correct == "bias", exact, looked_up, inside)


def quantizable(evidence: Evidence, exclude: Iterable[str] = ()) -> frozenset[str]:
    """Every node worth an integer kernel, whose values are finite on the samples and that is not excluded."""
    unfit = {name for name, spread in spreads_for(evidence).items() if not spread.finite}
    out = set(exclude)
    for node in evidence.model.graph:
        touched = {v.name for v in node.inputs if v is not None} | {v.name for v in node.outputs}
        if touched & unfit or any(v.name in unfit for v in qdq.final_outputs(node)):
            out.add(node.name or "")
    return qdq.whole(evidence.model, evidence.trace, out)


def decisions_for(
    chosen: frozenset[str], evidence: Evidence, method: Rule = "auto", correct: bool = True, looked_up: Sequence[str] = ()
) -> list[Decision]:
    """The decisions that run exactly the chosen nodes in int8, and keep the tables of these look-ups and the weights of bodies so;
    "auto" ranges are decided here, by measuring."""
    inside = inner8.inner(evidence.model)
    if not chosen and not looked_up and not inside:
        return []
    method = best_ranges(evidence, chosen) if method == "auto" and chosen else method
    return [
        {"nodes": sorted(chosen)},
        *([{"tables": list(looked_up)}] if looked_up else []),
        *([{"inner": inside}] if inside else []),
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
    ] + tables8.refusals(evidence.model)


def quantize(
    evidence: Evidence,
    chosen: frozenset[str],
    method: Rule,
    correct: bool,
    exact: bool,
    looked_up: Sequence[str] = (),
    inside: Sequence[str] = (),
) -> Applied:
    """The model with the chosen nodes in int8, the tables of these look-ups, and these weights of bodies."""
    source = evidence.model
    known = {n.name for n in source.graph}
    missing = sorted((chosen | set(looked_up)) - known)
    if missing:
        raise InputProblem(
            "the plan names nodes the model does not have",
            missing[0],
            f"{len(missing)} in all",
            "use the plan with the model it was made for",
        )
    bad: list[tuple[str | None, str]] = [(n.name, why) for n in source.graph if n.name in chosen and (why := qdq.eligible(n, evidence.trace))]
    rows = [n for n in source.graph if n.name in looked_up]
    bad += [(n.name, why or "it looks nothing up") for n in rows if (why := tables8.why_not(n)) is not None]
    if bad:
        raise InputProblem("a node cannot run in int8", bad[0][0], str(bad[0][1]), "take it out of the plan")
    plan = qdq.layout(source, chosen)
    for name in plan.tensors:
        if not spreads_for(evidence)[name].finite:
            raise InputProblem(
                "a tensor is not finite on the samples", name, "NaN or infinity", "take the node out of the plan"
            )
    grids = ranges8.grids(evidence, method, plan)
    work = source.clone()
    notes = [f"{len(chosen)} nodes in int8, {len(plan.tensors)} tensors, ranges {f'by {method}' if isinstance(method, str) else 'as given'}"]
    narrow = rewrite(work, plan, grids, evidence, exact)
    if looked_up:
        notes.append(f"{tables8.write(work, looked_up)} embedding tables in int8")
    if inside:
        notes.append(f"{inner8.write(work, inside)} weights of sub-graphs in int8, computed with in float")
    if narrow:
        notes.append(f"7-bit weights on {narrow} output channels that would saturate without VNNI")
    if correct:
        notes.append(f"bias corrected on {correct_bias(evidence, work, plan)} layers")
    edit.drop_dead(work)
    edit.forget_shapes(work)
    return Applied(work, notes, refusals(evidence))


def best_ranges(evidence: Evidence, chosen: frozenset[str]) -> str:
    """The range method with the least harm to the model's output on the calibration samples; measured once.

    With the bias corrected, as in the end, where few layers make that cheap.
    """
    known: str | None = evidence.kept.get("ranges")
    if known is None:
        judge = Judge(evidence.model, evidence.samples().take(_JUDGED))
        exact = evidence.machine.int8_exact
        few = sum(n.name in chosen and n.op_type in qdq.COMPUTE for n in evidence.model.graph) <= _FEW
        harm = {m: judge.score(quantize(evidence, chosen, m, few, exact).model).nmse for m in _CANDIDATES}
        known = evidence.kept["ranges"] = min(harm, key=lambda m: harm[m])
    return known


QUANTIZE = Quantize()
