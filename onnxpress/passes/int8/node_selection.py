"""Selection of the nodes that run in int8, by latency or by accuracy, measured on the whole model.

Integer kernels are not always faster (depthwise convolutions, few channels, layout conversions), and latencies of
layers do not add up. Latency is therefore not predicted: a window of neighbouring nodes is moved back to float, and the
whole model is timed side by side with the best one so far. Windows go from large to small.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.score import Score, Scorer
from onnxpress.passes.core.bisection import largest_allowed
from onnxpress.passes.int8.qdq import placement
from onnxpress.passes.int8.quantization_recipe import QuantizationRecipe
from onnxpress.passes.int8.static_int8 import quantize
from onnxpress.runtime.latency import Effort, compare_latency

NodeNames = frozenset[str]


@dataclass
class SelectionStats:
    """Number of windows tried, and of those that were moved back to float."""

    tried: int = 0
    reverted: int = 0


def build_int8(
    evidence: Evidence,
    chosen: NodeNames,
    recipe: QuantizationRecipe,
    correct: bool = False,
    looked_up: Sequence[str] = (),
) -> ir.Model:
    """Build the model with the chosen nodes and the tables of the given look-ups in int8.

    Args:
        evidence: the float model and its samples.
        chosen: names of the nodes.
        recipe: the quantization recipe.
        correct: whether to correct biases; without, building takes a fraction of a second.
        looked_up: names of the look-ups.
    """
    return quantize(
        evidence,
        placement.drop_unprofitable(evidence.model, chosen),
        recipe,
        correct,
        evidence.machine.int8_exact,
        looked_up,
    ).model


def select_int8_by_latency(
    evidence: Evidence,
    feeds: Sequence[Mapping[str, np.ndarray]],
    start: NodeNames,
    more_time: Callable[[], bool],
    recipe: QuantizationRecipe,
    seconds: float = 0.35,
) -> tuple[NodeNames, SelectionStats]:
    """Move windows of nodes back to float where that makes the model faster.

    Args:
        evidence: the float model and its samples.
        feeds: inputs to time with.
        start: names of the nodes that run in int8.
        more_time: asked before every window; once it is false, no more are tried.
        recipe: the quantization recipe.
        seconds: duration of one side-by-side timing, in seconds.

    Returns:
        The nodes that remain in int8, and the number of windows tried.
    """
    best, stats = start, SelectionStats()
    current = build_int8(evidence, best, recipe)
    for window in windows(evidence.model, start):
        if not more_time():
            break
        trial = placement.drop_unprofitable(evidence.model, best - window)
        if trial == best or not has_compute_node(evidence.model, trial):
            continue
        candidate = build_int8(evidence, trial, recipe)
        stats.tried += 1
        # As many windows are tried, a gain must be confirmed by a second, longer measurement.
        if all(_is_faster(current, candidate, feeds, seconds * factor) for factor in (1, 3)):
            best, current = trial, candidate
            stats.reverted += 1
    return best, stats


def _is_faster(
    current: ir.Model, candidate: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]], seconds: float
) -> bool:
    """Whether the candidate is faster than the current model with statistical confidence."""
    effort = Effort(seconds=seconds, precision=0.004, rebuilds=1, resamples=200)
    return compare_latency({"best": current, "trial": candidate}, feeds, effort).ratios[0].low > 1.002


def windows(model: ir.Model, chosen: NodeNames) -> Iterator[NodeNames]:
    """Yield runs of neighbouring compute nodes with the nodes between them.

    Prefixes and suffixes come first, then halves, quarters and so on, down to single compute nodes.
    """
    order = [n for n in model.graph if n.name in chosen]
    compute = [i for i, n in enumerate(order) if n.op_type in placement.COMPUTE]
    names = [n.name or "" for n in order]
    count = len(compute)
    seen: set[NodeNames] = set()

    def window(first: int, last: int) -> NodeNames:
        end = compute[last] if last < count else len(order)
        return frozenset(names[compute[first] : end])

    spans = []
    for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
        if size < count:
            spans += [(0, size), (count - size, count)]
    size = count // 2
    while size >= 1:
        spans += [(i, min(i + size, count)) for i in range(0, count, size)]
        size //= 2
    for first, last in spans:
        found = window(first, last)
        if found and found not in seen:
            seen.add(found)
            yield found


def has_compute_node(model: ir.Model, chosen: NodeNames) -> bool:
    """Whether a selection contains a Conv, Gemm or MatMul."""
    return any(n.op_type in placement.COMPUTE for n in model.graph if n.name in chosen)


def select_int8_by_accuracy(
    evidence: Evidence,
    scorer: Scorer,
    start: NodeNames,
    max_drop: float,
    more_time: Callable[[], bool],
    recipe: QuantizationRecipe,
) -> tuple[NodeNames, Score]:
    """Move layers back to float until the accuracy drop is allowed.

    Layers are ranked by leave-one-out loss: the relative squared error of the outputs when only this layer leaves the
    int8 model. `fewest_float_layers` then selects among them.

    Args:
        evidence: the float model and its samples.
        scorer: scores models against the float model.
        start: names of the nodes that run in int8.
        max_drop: allowed drop, as measured by `scorer`.
        more_time: asked before every measurement; once it is false, no more are made.
        recipe: the quantization recipe.

    Returns:
        The nodes that remain in int8 and their score. If the drop is allowed for none of the measured sets that contain
        a compute node, the set with the smallest drop.
    """
    scores = {start: scorer.score(build_int8(evidence, start, recipe, correct=True), intervals=False)}
    if scores[start].equivalent_drop <= max_drop:
        return start, scores[start]
    losses: dict[str, float] = {}
    for node in evidence.model.graph:
        if node.name in start and node.op_type in placement.COMPUTE:
            if not more_time():
                break
            losses[node.name] = scorer.nmse(build_int8(evidence, start - {node.name}, recipe))

    def remaining(floats: Collection[str]) -> NodeNames:
        return placement.drop_unprofitable(evidence.model, start.difference(floats))

    def keeps_drop(floats: Collection[str]) -> bool:
        chosen = remaining(floats)
        if not has_compute_node(evidence.model, chosen):
            return True
        if chosen not in scores:
            if not more_time():
                return False
            scores[chosen] = scorer.score(build_int8(evidence, chosen, recipe, correct=True), intervals=False)
        return scores[chosen].equivalent_drop <= max_drop

    chosen = remaining(fewest_float_layers(sorted(losses, key=lambda name: (losses[name], name)), keeps_drop))
    if chosen not in scores or scores[chosen].equivalent_drop > max_drop:
        chosen = min(scores, key=lambda nodes: scores[nodes].equivalent_drop)
    return chosen, scores[chosen]


def fewest_float_layers(ranked: Sequence[str], keeps_drop: Callable[[Collection[str]], bool]) -> list[str]:
    """Find the fewest layers that must stay in float for an allowed accuracy drop.

    The length of the ranking's prefix is found by bisection, since more layers in float rarely increase the drop. Then
    each of its layers but the last, least harmful first, is tried in int8 again.

    Args:
        ranked: layer names, most harmful first; all of them in float are assumed to keep the drop.
        keeps_drop: whether the model with the given layers in float keeps the drop.

    Returns:
        Names of the layers that stay in float, in the order of the ranking.
    """
    too_few = largest_allowed(0, len(ranked) - 1, lambda count: not keeps_drop(ranked[:count]))
    floats = list(ranked[: too_few + 1])
    for name in reversed(floats[:-1]):
        fewer = [other for other in floats if other != name]
        if keeps_drop(fewer):
            floats = fewer
    return floats
