"""The contract of a result: what must hold of a file before it is called an optimized one (design section 6)."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem, Problem
from onnxpress.measure.evidence import repeated
from onnxpress.measure.score import Score
from onnxpress.model.signature import signature
from onnxpress.runtime.latency import Ratio
from onnxpress.runtime.session import all_cores, open_session, run


@dataclass(frozen=True)
class Verdict:
    """accepted, and if not every reason why; score is on the validation samples."""

    accepted: bool
    reasons: tuple[str, ...]
    score: Score | None = None
    speedup: Ratio | None = None


def same_shape_behaviour(original: ir.Model, data: bytes, samples: Dataset) -> list[str]:
    """What of (a) fails: checker, load, signature, and every batch size and shape the original runs at."""
    try:
        onnx.checker.check_model(data)
        model: ir.Model = ir.from_proto(onnx.load_from_string(data))
        old, new = signature(original), signature(model)
        if old != new:
            return ["its signature differs from the original's"]
        before, after = open_session(original, all_cores()), open_session(data, all_cores())
    except (Problem, onnx.checker.ValidationError) as error:
        return [f"it does not load: {str(error).splitlines()[0]}"]
    feeds = next(iter(samples.batches(1))).inputs
    problems = []
    for size in (1, 2, 3):
        fed = repeated(feeds, old, size)
        try:
            wanted = [a.shape for a in run(before, fed)]
        except InputProblem:
            continue  # the original does not run at this size either
        try:
            found = [a.shape for a in run(after, fed)]
        except InputProblem as error:
            problems.append(f"it fails at batch {size}: {error.why}")
            continue
        if wanted != found:
            problems.append(f"at batch {size} its output shapes are {found}, the original's {wanted}")
    return problems


def judge(score: Score, speedup: Ratio | None, max_drop: float, goal: str, problems: list[str]) -> Verdict:
    """(b) and (c): the drop on validation samples, and the interval of the speed-up."""
    reasons = list(problems)
    if not score.drop <= max_drop + 1e-9:
        reasons.append(f"it loses {score.drop:.4f} {score.metric} on the validation samples (allowed {max_drop:g})")
    if speedup is not None and speedup.high < 1.0:
        reasons.append(f"it is slower: {speedup.speedup:.3f}x [{speedup.low:.3f}, {speedup.high:.3f}]")
    elif speedup is not None and goal == "latency" and speedup.low <= 1.0:
        reasons.append(f"it is not measurably faster: {speedup.speedup:.3f}x [{speedup.low:.3f}, {speedup.high:.3f}]")
    return Verdict(not reasons, tuple(reasons), score, speedup)
