"""What every layer's int8 harms, and the fewest layers in float with which a model keeps within a drop.

Harm is measured on the whole model, both ways: with this layer alone in int8, and with this layer alone back in float in the int8
model; they differ, since errors add up and cancel.  Layers go back to float by the second, the worst first, as many as are
needed (found by halving, since more in float is rarely worse); then each is tried in int8 once more, the least harmful first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.ranges import Histogram
from onnxpress.measure.score import Scorer
from onnxpress.measure.sqnr import sqnr_db
from onnxpress.passes.int8 import calibration, node_selection, qdq
from onnxpress.passes.int8.calibration import histogram_of
from onnxpress.passes.int8.embedding_tables import tables
from onnxpress.passes.int8.qdq_write import grid
from onnxpress.passes.int8.quantization_recipe import Recipe, Wish, equalized
from onnxpress.passes.int8.static_int8 import quantizable, recipe_for

_JUDGED = 128  # samples
_STEPS = 48  # of the histogram that is told

Chosen = frozenset[str]


@dataclass(frozen=True)
class Layer:
    """One node with an integer kernel.

    types:         of its input, weight and output as it runs in the end
    low, high:     its output's range on the samples
    density:       shares of the output's values in equal steps from low to high
    sqnr_in, sqnr: of rounding its input and its output, in dB
    cut:           share of the output's values that lie beyond the range it is rounded in
    alone, back:   nmse of the model with only this layer in int8, and of the int8 model with this layer in float
    before, after: seconds of a run in the kernel that computes it, in the model as given and in the result; None: not measured
    """

    node: str
    op: str
    int8: bool
    types: str
    low: float
    high: float
    sqnr_in: float
    sqnr: float
    cut: float
    alone: float
    back: float
    why: str = ""
    density: tuple[float, ...] = ()
    before: float | None = None
    after: float | None = None


@dataclass
class Found:
    """chosen: nodes that run in int8 (none, where only float keeps the drop); looked_up: look-ups whose tables are kept so; layers:
    all compute nodes, the worst first; whole: nmse with all of them in int8; drop: of the result, on the samples."""

    chosen: Chosen
    looked_up: list[str]
    layers: list[Layer]
    whole: float
    drop: float


class _Model:
    """Scores of the model with different nodes in int8, each taken once."""

    def __init__(self, evidence: Evidence, chosen: Chosen, looked_up: Sequence[str], recipe: Recipe) -> None:
        self.evidence, self.chosen, self.looked_up, self.recipe = evidence, chosen, list(looked_up), recipe
        self.judge = Scorer(evidence.model, evidence.samples().take(_JUDGED))
        self.compute = [n for n in evidence.model.graph if (n.name or "") in chosen and n.op_type in qdq.COMPUTE]
        self._known: dict[Chosen, tuple[float, float]] = {}

    def score(self, nodes: Chosen, correct: bool = False) -> tuple[float, float]:
        """(drop, nmse); correct: with the bias corrected and tables in int8, as in the end."""
        wanted = qdq.trim(self.evidence.model, nodes)
        looked_up = self.looked_up if correct else []
        if not wanted and not looked_up:
            return 0.0, 0.0
        if correct or wanted not in self._known:
            score = self.judge.score(node_selection.build(self.evidence, wanted, self.recipe, correct, looked_up))
            if correct:
                return score.drop, score.nmse
            self._known[wanted] = score.drop, score.nmse
        return self._known[wanted]

    def without(self, names: set[str]) -> Chosen:
        """What is left in int8 without these; nothing, where no layer is, since what lies between would only be rounded."""
        left = qdq.trim(self.evidence.model, self.chosen - names)
        return left if node_selection.any_compute(self.evidence.model, left) else frozenset()


def sensitivity(
    evidence: Evidence,
    chosen: Chosen,
    max_drop: float | None = None,
    wish: Wish | None = None,
    looked_up: Sequence[str] = (),
) -> Found:
    """What each layer harms; with max_drop the fewest layers in float that keep the drop on the samples within it, and tables, too,
    if they must be.

    Raises InputProblem where max_drop is no share.
    """
    if max_drop is not None and not 0 <= max_drop < 1:
        raise InputProblem("the drop must lie between 0 and 1", "--max-drop", f"got {max_drop:g}", "try 0.01")
    recipe = recipe_for(evidence, chosen, wish or Wish())[1] if chosen else Recipe()
    model = _Model(evidence, chosen, looked_up, recipe)
    whole = model.score(chosen)[1]
    harms = {}
    for node in model.compute:
        name = node.name or ""
        harms[name] = model.score(qdq.trim(evidence.model, frozenset({name})))[1], model.score(model.without({name}))[1]
    order = sorted(harms, key=lambda n: (harms[n][1], -harms[n][0]))
    kept, drop = chosen, model.score(chosen, True)[0]
    if max_drop is not None and drop > max_drop:
        if model.score(frozenset(), True)[0] > max_drop:
            model.looked_up = []
        kept, drop = _fewest(model, order, max_drop)
    rounded = frozenset(qdq.layout(evidence.model, kept).tensors)
    by_name = {n.name or "": n for n in model.compute}
    scaled = equalized(evidence, recipe)  # what is told of tensors is told as they are rounded
    layers = [_layer(scaled, recipe, by_name[name], name in kept, rounded, harms[name]) for name in order]
    return Found(kept, model.looked_up, layers, whole, drop)


def _layer(
    evidence: Evidence, recipe: Recipe, node: ir.Node, int8: bool, rounded: Chosen, harm: tuple[float, float]
) -> Layer:
    source, target = (
        (node.inputs[0].name if node.inputs[0] is not None else "") or "",
        qdq.final_output(node).name or "",
    )
    leaving = histogram_of(evidence, target)
    kind = f"u{recipe.bits}"
    types = f"{kind} x s8 -> {kind if target in rounded else 'f32'}" if int8 else "f32"
    (sqnr_in, _), (sqnr, cut) = (_rounding(evidence, recipe, tensor) for tensor in (source, target))
    why = "" if int8 else "needed in float to keep the drop"
    name = node.name or ""
    return Layer(
        name, node.op_type, int8, types, leaving.low, leaving.high, sqnr_in, sqnr, cut, *harm, why, _density(leaving)
    )  # fmt: skip


def _density(histogram: Histogram) -> tuple[float, ...]:
    total = float(histogram.counts.sum())
    if not (histogram.finite and histogram.high > histogram.low and total > 0):
        return ()
    shares, _ = np.histogram(
        histogram.bin_centers, _STEPS, (histogram.low, histogram.high), weights=histogram.counts / total
    )
    return tuple(float(f"{share:.3g}") for share in shares)


def _fewest(model: _Model, order: list[str], max_drop: float) -> tuple[Chosen, float]:
    """The nodes left in int8, and the drop."""
    low, high = 0, len(order)  # so many in float are too few, are enough: with all of them nothing drops
    while high - low > 1:
        middle = (low + high) // 2
        if model.score(model.without(set(order[:middle])), True)[0] <= max_drop:
            high = middle
        else:
            low = middle
    floats = order[:high]
    for name in reversed(floats[:-1]):
        fewer = [n for n in floats if n != name]
        if model.score(model.without(set(fewer)), True)[0] <= max_drop:
            floats = fewer
    kept = model.without(set(floats))
    return kept, model.score(kept, True)[0]


def _rounding(evidence: Evidence, recipe: Recipe, tensor: str) -> tuple[float, float]:
    """Of a tensor put on its grid, from its histogram: SQNR in dB (rounding is uniform in a step, what lies beyond is cut), and
    the share that is cut."""
    histogram = histogram_of(evidence, tensor)
    power, total = float((histogram.counts * histogram.bin_centers**2).sum()), float(histogram.counts.sum())
    if power <= 0 or not histogram.finite:
        return float("inf"), 0.0
    ends = grid(*calibration.ranges(evidence, recipe.ranges, [tensor])[tensor], recipe.bits)
    step = float(ends.scale)
    bottom, top = -float(ends.zero) * step, (ends.top - float(ends.zero)) * step
    beyond = histogram.bin_centers - np.clip(histogram.bin_centers, bottom, top)
    noise = float((histogram.counts * (step**2 / 12 + beyond**2)).sum())
    return sqnr_db(power, noise), float(histogram.counts[np.abs(beyond) > step].sum()) / total


def matching(names: list[str], ops: list[str], patterns: tuple[str, ...], option: str) -> set[str]:
    """The nodes that any of the patterns means: a node's name, an operator, or a regular expression for whole names.

    Raises InputProblem for a pattern that means none, or is no expression."""
    found: set[str] = set()
    for pattern in patterns:
        exact = {n for n, op in zip(names, ops, strict=True) if pattern in (n, op)}
        if not exact:
            try:
                exact = {n for n in names if re.fullmatch(pattern, n)}
            except re.error as error:
                raise InputProblem(
                    "not a node, an operator or a regular expression", option, pattern, str(error)
                ) from error
        if not exact:
            raise InputProblem(
                "no node is meant", option, pattern, "see the names with `onnxpress inspect --nodes`, or write .*part.*"
            )
        found |= exact
    return found


def candidates(evidence: Evidence, include: tuple[str, ...], exclude: tuple[str, ...]) -> tuple[Chosen, list[str]]:
    """The nodes to run in int8, and the look-ups whose tables to keep so: those worth it, of what `include` means (nothing: all)
    without what `exclude` means."""
    nodes = list(evidence.model.graph)
    names, ops = [n.name or "" for n in nodes], [n.op_type for n in nodes]
    out = matching(names, ops, exclude, "--exclude")
    if include:
        wanted = matching(names, ops, include, "--include")
        out |= {n.name or "" for n in nodes if n.op_type in (*qdq.COMPUTE, "Gather")} - wanted
    return quantizable(evidence, out), tables(evidence.model, out)
