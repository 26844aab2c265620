"""Sensitivity of each layer to int8, and the fewest layers in float with which a model keeps an allowed drop.

Losses are measured on the whole model in two ways, which differ, since errors add up and cancel: one-at-a-time (only
this layer in int8) and leave-one-out (only this layer in float). Layers are moved back to float in the order of the
leave-one-out loss.
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
from onnxpress.passes.int8 import calibration, node_selection
from onnxpress.passes.int8.calibration import histogram_of
from onnxpress.passes.int8.embedding_tables import quantizable_lookups
from onnxpress.passes.int8.qdq import placement
from onnxpress.passes.int8.qdq.write import quantization_grid
from onnxpress.passes.int8.quantization_recipe import QuantizationRecipe, RecipeOptions, equalized_evidence
from onnxpress.passes.int8.static_int8 import quantizable, recipe_for

_EVALUATION_SAMPLES = 128
_HISTOGRAM_BINS = 48  # of `LayerSensitivity.density`

NodeNames = frozenset[str]


@dataclass(frozen=True)
class LayerSensitivity:
    """One node with an integer kernel. Losses are relative squared errors of the outputs (nmse).

    Attributes:
        node, op: name and operator type.
        int8: whether it runs in int8 in the result.
        types: types of its input, weight and output in the result.
        low, high: range of its output on the samples.
        input_sqnr, output_sqnr: signal-to-quantization-noise ratio of its input and output, in dB.
        clipped: share of the output's values outside the quantization range.
        one_at_a_time: loss of the model with only this layer in int8.
        leave_one_out: loss of the int8 model with only this layer in float.
        reason: why it is in float.
        density: shares of the output's values in equal bins from low to high.
        seconds_before, seconds_after: time per run in its kernel, in the given model and in the result; None where not
            measured.
    """

    node: str
    op: str
    int8: bool
    types: str
    low: float
    high: float
    input_sqnr: float
    output_sqnr: float
    clipped: float
    one_at_a_time: float
    leave_one_out: float
    reason: str = ""
    density: tuple[float, ...] = ()
    seconds_before: float | None = None
    seconds_after: float | None = None


@dataclass
class SensitivityResult:
    """Sensitivity of all layers, and the selected nodes.

    Attributes:
        chosen: names of the nodes that run in int8; empty if only the float model keeps the drop.
        looked_up: names of the look-ups whose tables are stored in int8.
        layers: all compute nodes, the most harmful first.
        loss: relative squared error of the outputs with all candidates in int8.
        drop: accuracy drop of the result on the samples.
    """

    chosen: NodeNames
    looked_up: list[str]
    layers: list[LayerSensitivity]
    loss: float
    drop: float


class _Int8Evaluator:
    """Scores of the model with different nodes in int8; each is measured once."""

    def __init__(
        self, evidence: Evidence, chosen: NodeNames, looked_up: Sequence[str], recipe: QuantizationRecipe
    ) -> None:
        self.evidence, self.chosen, self.looked_up, self.recipe = evidence, chosen, list(looked_up), recipe
        samples = evidence.samples().take(_EVALUATION_SAMPLES)
        self.scorer = Scorer(evidence.model, samples, quality=evidence.quality)
        self.compute = [n for n in evidence.model.graph if (n.name or "") in chosen and n.op_type in placement.COMPUTE]
        self._known: dict[NodeNames, tuple[float, float]] = {}

    def score(self, nodes: NodeNames, correct: bool = False) -> tuple[float, float]:
        """(drop, nmse); correct: with bias correction and tables in int8, as in the result."""
        wanted = placement.drop_unprofitable(self.evidence.model, nodes)
        looked_up = self.looked_up if correct else []
        if not wanted and not looked_up:
            return 0.0, 0.0
        if correct or wanted not in self._known:
            made = node_selection.build_int8(self.evidence, wanted, self.recipe, correct, looked_up)
            score = self.scorer.score(made, intervals=False)
            if correct:
                return score.equivalent_drop, score.nmse
            self._known[wanted] = score.equivalent_drop, score.nmse
        return self._known[wanted]

    def without(self, names: set[str]) -> NodeNames:
        """The nodes that remain in int8 without the given ones; none if no compute node remains."""
        left = placement.drop_unprofitable(self.evidence.model, self.chosen - names)
        return left if node_selection.has_compute_node(self.evidence.model, left) else frozenset()


def layer_sensitivity(
    evidence: Evidence,
    chosen: NodeNames,
    max_drop: float | None = None,
    options: RecipeOptions | None = None,
    looked_up: Sequence[str] = (),
) -> SensitivityResult:
    """Measure the sensitivity of each layer, and select the nodes for an allowed drop.

    Args:
        evidence: the float model and its samples.
        chosen: names of the nodes to run in int8.
        max_drop: allowed accuracy drop on the samples; None for no limit. Tables stay in float, too, if necessary.
        options: options of the quantization recipe.
        looked_up: names of the look-ups whose tables are to be stored in int8.

    Raises:
        InputProblem: if `max_drop` is not in [0, 1).
    """
    if max_drop is not None and not 0 <= max_drop < 1:
        raise InputProblem("the drop must lie between 0 and 1", "`max_drop`", f"got {max_drop:g}", "give 0.01")
    recipe = recipe_for(evidence, chosen, options or RecipeOptions())[1] if chosen else QuantizationRecipe()
    evaluator = _Int8Evaluator(evidence, chosen, looked_up, recipe)
    loss = evaluator.score(chosen)[1]
    losses = {}
    for node in evaluator.compute:
        name = node.name or ""
        losses[name] = (
            evaluator.score(placement.drop_unprofitable(evidence.model, frozenset({name})))[1],
            evaluator.score(evaluator.without({name}))[1],
        )
    order = sorted(losses, key=lambda n: (losses[n][1], -losses[n][0]))
    kept, drop = chosen, evaluator.score(chosen, True)[0]
    if max_drop is not None and drop > max_drop:
        if evaluator.score(frozenset(), True)[0] > max_drop:
            evaluator.looked_up = []
        limit = max_drop
        floats = node_selection.fewest_float_layers(
            order, lambda names: evaluator.score(evaluator.without(set(names)), True)[0] <= limit
        )
        kept = evaluator.without(set(floats))
        drop = evaluator.score(kept, True)[0]
    quantized_tensors = frozenset(placement.qdq_layout(evidence.model, kept).tensors)
    by_name = {n.name or "": n for n in evaluator.compute}
    equalized = equalized_evidence(evidence, recipe)  # the tensors are quantized after equalization
    layers = [
        _describe_layer(equalized, recipe, by_name[name], name in kept, quantized_tensors, losses[name])
        for name in order
    ]
    return SensitivityResult(kept, evaluator.looked_up, layers, loss, drop)


def _describe_layer(
    evidence: Evidence,
    recipe: QuantizationRecipe,
    node: ir.Node,
    int8: bool,
    quantized_tensors: NodeNames,
    losses: tuple[float, float],
) -> LayerSensitivity:
    """The sensitivity of one layer with statistics of its input and output."""
    source, target = (
        (node.inputs[0].name if node.inputs[0] is not None else "") or "",
        placement.final_output(node).name or "",
    )
    output_histogram = histogram_of(evidence, target)
    activation_type = f"u{recipe.bits}"
    types = f"{activation_type} x s8 -> {activation_type if target in quantized_tensors else 'f32'}" if int8 else "f32"
    (input_sqnr, _), (output_sqnr, clipped) = (_rounding_error(evidence, recipe, tensor) for tensor in (source, target))
    reason = "" if int8 else "in float to keep the drop"
    name = node.name or ""
    return LayerSensitivity(
        name,
        node.op_type,
        int8,
        types,
        output_histogram.low,
        output_histogram.high,
        input_sqnr,
        output_sqnr,
        clipped,
        *losses,
        reason,
        _density(output_histogram),
    )


def _density(histogram: Histogram) -> tuple[float, ...]:
    """Shares of a histogram in equal bins; empty where nothing was observed."""
    total = float(histogram.counts.sum())
    if not (histogram.finite and histogram.high > histogram.low and total > 0):
        return ()
    density, _ = np.histogram(
        histogram.bin_centers, _HISTOGRAM_BINS, (histogram.low, histogram.high), weights=histogram.counts / total
    )
    return tuple(float(f"{share:.3g}") for share in density)


def _rounding_error(evidence: Evidence, recipe: QuantizationRecipe, tensor: str) -> tuple[float, float]:
    """(SQNR in dB, share of clipped values) of a tensor on its quantization grid, from its histogram.

    Rounding errors are assumed to be uniform within a step.
    """
    histogram = histogram_of(evidence, tensor)
    power, total = float((histogram.counts * histogram.bin_centers**2).sum()), float(histogram.counts.sum())
    if power <= 0 or not histogram.finite:
        return float("inf"), 0.0
    grid = quantization_grid(*calibration.activation_ranges(evidence, recipe.ranges, [tensor])[tensor], recipe.bits)
    step = float(grid.scale)
    lowest, highest = -float(grid.zero_point) * step, (grid.max_code - float(grid.zero_point)) * step
    beyond = histogram.bin_centers - np.clip(histogram.bin_centers, lowest, highest)
    noise = float((histogram.counts * (step**2 / 12 + beyond**2)).sum())
    return sqnr_db(power, noise), float(histogram.counts[np.abs(beyond) > step].sum()) / total


def match_nodes(names: list[str], ops: list[str], patterns: tuple[str, ...], option: str) -> set[str]:
    """Find the nodes that match any of the patterns.

    Args:
        names, ops: names and operator types of all nodes.
        patterns: node names, operator types, or regular expressions for whole names.
        option: name of the argument, for messages.

    Raises:
        InputProblem: if a pattern matches nothing or is not a valid regular expression.
    """
    found: set[str] = set()
    for pattern in patterns:
        matches = {n for n, op in zip(names, ops, strict=True) if pattern in (n, op)}
        if not matches:
            try:
                matches = {n for n in names if re.fullmatch(pattern, n)}
            except re.error as error:
                raise InputProblem(
                    "neither a node, an operator nor a regular expression", option, pattern, str(error)
                ) from error
        if not matches:
            raise InputProblem("the pattern matches no node", option, pattern, "write .*part.* for a part of a name")
        found |= matches
    return found


def int8_candidates(
    evidence: Evidence, include: tuple[str, ...], exclude: tuple[str, ...]
) -> tuple[NodeNames, list[str]]:
    """Select the nodes to run in int8 and the look-ups whose tables to store in int8.

    Args:
        evidence: the float model and its samples.
        include: patterns of the nodes to quantize; empty for all.
        exclude: patterns of the nodes that stay in float.

    Returns:
        (node names, look-up names).
    """
    nodes = list(evidence.model.graph)
    names, ops = [n.name or "" for n in nodes], [n.op_type for n in nodes]
    excluded = match_nodes(names, ops, exclude, "`exclude`")
    if include:
        included = match_nodes(names, ops, include, "`include`")
        excluded |= {n.name or "" for n in nodes if n.op_type in (*placement.COMPUTE, "Gather")} - included
    return quantizable(evidence, excluded), quantizable_lookups(evidence.model, excluded)
