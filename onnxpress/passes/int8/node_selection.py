"""Which nodes run in int8: found by the clock and by the harm, on the whole model.

Integer kernels are not always faster (depthwise, few channels, seams between layouts), and times do not add up over
layers, so nothing is predicted: a window of neighbouring nodes is put back to float and the whole model is timed
against the best so far, side by side.  Windows go from large to small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.score import Score, Scorer
from onnxpress.passes.int8 import qdq
from onnxpress.passes.int8.quantization_recipe import Recipe
from onnxpress.passes.int8.static_int8 import quantize
from onnxpress.runtime.latency import Effort, compare_latency

Chosen = frozenset[str]


@dataclass
class Tried:
    """Windows tried so far: how many, and how many were put back to float."""

    count: int = 0
    kept: int = 0


def build(
    evidence: Evidence, chosen: Chosen, recipe: Recipe, correct: bool = False, looked_up: Sequence[str] = ()
) -> ir.Model:
    """The model with the chosen nodes in int8, and the tables of these look-ups; without bias correction it takes a fraction of a
    second."""
    return quantize(
        evidence,
        qdq.trim(evidence.model, chosen),
        recipe,
        correct,
        evidence.machine.int8_exact,
        looked_up,
    ).model


def fastest(
    evidence: Evidence,
    feeds: Sequence[Mapping[str, np.ndarray]],
    start: Chosen,
    more_time: Callable[[], bool],
    recipe: Recipe,
    seconds: float = 0.35,
) -> tuple[Chosen, Tried]:
    """A subset of `start` that runs at least as fast: windows that are faster in float are put back to float.

    more_time: asked before every trial.  Each trial is one side-by-side timing of about `seconds`.
    """
    best, tried = start, Tried()
    current = build(evidence, best, recipe)
    for window in windows(evidence.model, start):
        if not more_time():
            break
        trial = qdq.trim(evidence.model, best - window)
        if trial == best or not any_compute(evidence.model, trial):
            continue
        candidate = build(evidence, trial, recipe)
        tried.count += 1
        # Many windows are tried, so a first impression is not enough: a gain must show twice.
        if all(_gains(current, candidate, feeds, seconds * longer) for longer in (1, 3)):
            best, current = trial, candidate
            tried.kept += 1
    return best, tried


def _gains(current: ir.Model, candidate: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]], seconds: float) -> bool:
    effort = Effort(seconds=seconds, precision=0.004, rebuilds=1, resamples=200)
    return compare_latency({"best": current, "trial": candidate}, feeds, effort).ratios[0].low > 1.002


def windows(model: ir.Model, chosen: Chosen) -> Iterator[Chosen]:
    """Runs of neighbouring compute nodes with what lies between: prefixes and suffixes first, then halves, quarters, … one.

    Depthwise nodes alone are tried as one window too, since they are the usual losers.
    """
    order = [n for n in model.graph if n.name in chosen]
    compute = [i for i, n in enumerate(order) if n.op_type in qdq.COMPUTE]
    names = [n.name or "" for n in order]
    count = len(compute)
    seen: set[Chosen] = set()

    def window(first: int, last: int) -> Chosen:
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


def any_compute(model: ir.Model, chosen: Chosen) -> bool:
    return any(n.op_type in qdq.COMPUTE for n in model.graph if n.name in chosen)


def safest(
    evidence: Evidence, judge: Scorer, start: Chosen, allowed: float, more_time: Callable[[], bool], recipe: Recipe
) -> tuple[Chosen, Score]:
    """Put the nodes that harm most back to float until the drop is allowed: the smallest set found, and its score.

    Harm is the fall of the output's nmse when one node leaves the full int8 model; several leave between scorings.
    """
    best = start
    score = judge.score(build(evidence, best, recipe, correct=True))
    if score.drop <= allowed:
        return best, score
    ranked: list[tuple[float, str]] = []
    for node in evidence.model.graph:
        if node.name in start and node.op_type in qdq.COMPUTE:
            if not more_time():
                break
            without = judge.score(build(evidence, start - {node.name}, recipe))
            ranked.append((without.nmse, node.name))
    ranked.sort()
    out: set[str] = set()
    step = max(1, len(ranked) // 12)
    for first in range(0, len(ranked), step):
        out |= {name for _, name in ranked[first : first + step]}
        trial = qdq.trim(evidence.model, start - out)
        if not any_compute(evidence.model, trial) or not more_time():
            break
        found = judge.score(build(evidence, trial, recipe, correct=True))
        if found.drop < score.drop:
            best, score = trial, found
        if score.drop <= allowed:
            break
    return best, score
