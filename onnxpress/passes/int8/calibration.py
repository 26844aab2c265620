"""Which part of its range each tensor's 256 levels cover.

By one rule for all (`measure.ranges`: extremes, their mean, percentile, entropy, squared error), as a file says, or "weighted": for
each tensor the one of those that harms its readers least,

    sum over channels c of  |W_c|^2 var(x_c - Q(x_c)),

W_c being all that a reader multiplies channel c with: the Gram matrix of its weights without what lies off the diagonal.  The
variance, since bias correction takes the mean error back.  Readers without weights (an Add) mind all channels alike.

"wide" leaves room beyond the extremes, since samples not seen yet go further than the few that were; how far a tensor can go at all
(what a Clip or Sigmoid gives; of inputs, what was seen: pictures are integers already, and one step for each is exact) ends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.ranges import METHODS, Histogram, clip_range
from onnxpress.measure.tensor_summary import sample_rows
from onnxpress.model import read
from onnxpress.passes.int8 import qdq
from onnxpress.passes.int8.qdq_write import Grid, grid, histograms_for

Range = tuple[float, float]
Rule = str | Mapping[str, Sequence[float]]  # a method, or [low, high] by tensor

RULES = (*METHODS, "weighted", "wide")
_TRIED = ("minmax", "percentile", "mse", "entropy")
_SAMPLES = 32
_VALUES = 8192  # of a tensor that are looked at in each
_ROOM = 1.4  # what "wide" leaves beyond the extremes seen, for samples that go further
_SHARES = frozenset(("Sigmoid", "HardSigmoid", "Softmax"))  # operators that give from 0 to 1


def check(rule: Rule) -> None:
    """Raises InputProblem for what is no rule."""
    if isinstance(rule, str):
        if rule not in RULES:
            raise InputProblem("unknown range method", rule, "", f"one of {', '.join(RULES)}")
        return
    for name, ends in rule.items():
        numbers = isinstance(ends, Sequence) and len(ends) == 2 and all(isinstance(e, int | float) for e in ends)
        if not numbers or not np.isfinite(ends).all() or ends[0] > ends[1]:
            raise InputProblem("not a range", name, f"got {ends}", "give [low, high], two finite numbers in order")


def ranges(evidence: Evidence, rule: Rule, tensors: Sequence[str]) -> dict[str, Range]:
    """(low, high) of each named tensor; where a file says nothing of one, as squared error would have it."""
    histograms = histograms_for(evidence)
    if not isinstance(rule, str):
        return {n: _ends(rule[n]) if n in rule else clip_range(histograms[n], "mse") for n in tensors}
    if rule == "weighted":
        known = _weighted(evidence)
        return {n: known[n] for n in tensors}
    if rule == "wide":
        ends = _furthest(evidence)
        return {n: _wide(histograms[n], ends.get(n)) for n in tensors}
    return {n: clip_range(histograms[n], rule) for n in tensors}


def grids(evidence: Evidence, rule: Rule, plan: qdq.Layout, bits: int = 8) -> dict[str, Grid]:
    """A grid a tensor; tensors that must share take the widest range among them."""
    found = ranges(evidence, rule, plan.tensors)
    for tie in plan.same:
        members = [m for m in tie if m in found]
        if members:
            shared = (min(found[m][0] for m in members), max(found[m][1] for m in members))
            found.update(dict.fromkeys(members, shared))
    return {name: grid(low, high, bits) for name, (low, high) in found.items()}


def _ends(given: Sequence[float]) -> Range:
    low, high = given
    return float(low), float(high)


def _wide(histogram: Histogram, ends: Range | None) -> Range:
    low, high = clip_range(histogram, "minmax")
    least, most = ends or (-np.inf, np.inf)
    return min(low, max(_ROOM * low, least)), max(high, min(_ROOM * high, most))


def _furthest(evidence: Evidence) -> dict[str, Range]:
    """How far tensors go on any sample, where that is known."""
    histograms = histograms_for(evidence)
    ends: dict[str, Range] = {v.name or "": (0.0, 0.0) for v in evidence.model.graph.inputs}  # as far as was seen
    for node in evidence.model.graph:
        source = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
        if node.op_type in qdq.MOVE and source in ends:
            ends.update({v.name or "": ends[source] for v in node.outputs})
        elif node.op_type in _SHARES:
            ends[node.outputs[0].name or ""] = 0.0, 1.0
        elif node.op_type == "Clip":
            ends[node.outputs[0].name or ""] = qdq.clip_bounds(node)
    return {n: e for n, e in ends.items() if n in histograms}


def _weighted(evidence: Evidence) -> dict[str, Range]:
    """Of every tensor that could be quantized, measured once."""
    known: dict[str, Range] | None = evidence.kept.get("weighted")
    if known is None:
        histograms = histograms_for(evidence)
        offers = {n: list(dict.fromkeys(clip_range(s, m) for m in _TRIED)) for n, s in histograms.items() if s.finite}
        minded = _minded(evidence)
        errors = _errors(evidence, {n: o for n, o in offers.items() if len(o) > 1}, minded)
        known = {n: o[int(np.argmin(errors[n]))] if n in errors else o[0] for n, o in offers.items()}
        known |= {n: clip_range(s, "minmax") for n, s in histograms.items() if not s.finite}
        evidence.kept["weighted"] = known
    return known


def _minded(evidence: Evidence) -> dict[str, tuple[int, np.ndarray | None]]:
    """For every tensor its channels' axis and how much its readers mind each: all alike (None) where no weights read it."""
    found: dict[str, tuple[int, np.ndarray | None]] = {}
    for node in evidence.model.graph:
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in qdq.COMPUTE or source is None or qdq.eligible(node, evidence.trace) is not None:
            continue
        weight = read.constant(node.inputs[1])
        if weight is None:
            continue
        axis, power = (1 if node.op_type == "Conv" else -1), _power(node, weight)
        before = found.get(source.name or "", (axis, None))[1]
        agree = before is not None and before.shape == power.shape
        found[source.name or ""] = axis, power + before if agree and before is not None else power
    return found


def _power(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """Sum of squares of what each input channel is multiplied with."""
    squares = weight.astype(np.float64) ** 2
    if node.op_type == "Conv":
        groups = read.int_attribute(node, "group", 1)
        rows, columns = weight.shape[:2]
        return np.asarray(squares.reshape(groups, rows // groups, columns, -1).sum(axis=(1, 3)).ravel())
    return np.asarray(squares.sum(axis=0 if node.op_type == "Gemm" and read.int_attribute(node, "transB", 0) else 1))


def _errors(
    evidence: Evidence, offers: Mapping[str, Sequence[Range]], minded: Mapping[str, tuple[int, np.ndarray | None]]
) -> dict[str, np.ndarray]:
    """The readers' harm of each of a tensor's ranges, on some of its values."""
    if not offers:
        return {}
    sums: dict[str, np.ndarray] = {}  # [ranges, 2, channels]: errors and their squares
    counts = dict.fromkeys(offers, 0)
    axes = {name: axis for name, (axis, weights) in minded.items() if weights is not None}
    for values in sample_rows(evidence, list(offers), axes, _SAMPLES, _VALUES):
        for name, rows in values.items():
            ranged = offers[name]
            if name not in sums:
                sums[name] = np.zeros((len(ranged), 2, rows.shape[1]))
            if rows.shape[1] != sums[name].shape[2]:  # a width that varies from sample to sample
                continue
            counts[name] += len(rows)
            for into, (low, high) in zip(sums[name], ranged, strict=True):
                ends = grid(low, high)
                error = (ends.codes(rows) - ends.zero) * ends.scale - rows
                into += error.sum(axis=0, dtype=np.float64), np.einsum("rc,rc->c", error, error, dtype=np.float64)
    harms = {}
    for name, found in sums.items():
        weights = minded.get(name, (-1, None))[1]
        mean, square = found[:, 0] / max(counts[name], 1), found[:, 1] / max(counts[name], 1)
        linear = weights is not None and len(weights) == found.shape[2]
        harms[name] = (square - mean**2) @ weights if linear and weights is not None else square.sum(axis=1)
    return harms


def histogram_of(evidence: Evidence, name: str) -> Histogram:
    """What was seen of a tensor; nothing where it was not looked at."""
    return histograms_for(evidence).get(name, Histogram())
