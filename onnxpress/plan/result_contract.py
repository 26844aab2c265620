"""The contract of a result: what must hold of a file before it is called an optimized one (design section 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem, Problem
from onnxpress.measure.dynamic_shape_variants import Feeds, dynamic_shape_variants
from onnxpress.measure.score import Score
from onnxpress.model.checker import check_graph
from onnxpress.model.files import serialized
from onnxpress.model.signature import Signature, signature
from onnxpress.runtime.latency import Ratio
from onnxpress.runtime.session import all_cores, open_session, run

Shape = tuple[int | None, ...]
_SAMPLES = 3  # that are run at every size
# Times the allowed drop: of fewer samples than can show that drop, a candidate could hold it by luck. One that is close
# to the original has a narrow interval all the same.
_MAY_LOSE = 4.0


@dataclass(frozen=True)
class Verdict:
    """accepted, and if not every reason why; score is on the validation samples."""

    accepted: bool
    reasons: tuple[str, ...]
    score: Score | None = None
    speedup: Ratio | None = None


def same_shape_behaviour(original: ir.Model, result: ir.Model | bytes, samples: Dataset) -> list[str]:
    """What of (a) fails: checker, load, signature, and every batch size and free axis the original runs at."""
    if isinstance(result, bytes):
        return _failures(original, result, samples)
    with serialized(result) as data:
        return _failures(original, data, samples)


def _failures(original: ir.Model, data: bytes | Path, samples: Dataset) -> list[str]:
    try:
        check_graph(data)
        model: ir.Model = ir.load(data) if isinstance(data, Path) else ir.from_proto(onnx.load_from_string(data))
        sig = signature(original)
        if sig != signature(model):
            return ["its signature differs from the original's"]
        # One after the other: two sessions of a large model, each with the memory of its largest run, may not fit.
        wanted, found = _behaviour(original, samples, sig), _behaviour(data, samples, sig)
    except (Problem, onnx.checker.ValidationError) as error:
        return [f"it does not load: {str(error).splitlines()[0]}"]
    problems = []
    for what, shapes in wanted.items():
        now = found[what]
        if isinstance(shapes, InputProblem):
            continue  # the original does not run at this size either
        if isinstance(now, InputProblem):
            problems.append(f"it fails at {what}: {now.why}")
        elif not all(_agree(w.shape, f.shape) for w, f in zip(shapes, now, strict=True)):
            several = [s.shape for s in now], [s.shape for s in shapes]
            problems.append(f"at {what} its output shapes are {several[0]}, the original's {several[1]}")
        elif any(w.finite and not f.finite for w, f in zip(shapes, now, strict=True)):
            problems.append(f"at {what} its outputs hold NaN or infinity, the original's do not")
    return problems


@dataclass(frozen=True)
class _Output:
    """shape: with None for a size that depends on the values (as behind NonMaxSuppression). finite: whether all numbers
    are."""

    shape: Shape
    finite: bool


def _behaviour(
    model: ir.Model | bytes | Path, samples: Dataset, sig: Signature
) -> dict[str, list[_Output] | InputProblem]:
    """By size: what a model's outputs are, or why it does not run.  Raises Problem where it does not load."""
    session = open_session(model, all_cores())
    found: dict[str, list[_Output] | InputProblem] = {}
    for what, several in _varied(samples, sig):
        try:
            found[what] = _outputs(session, several)
        except InputProblem as error:
            found[what] = error
    return found


def _varied(samples: Dataset, sig: Signature) -> Iterator[tuple[str, list[Feeds]]]:
    """A few samples of one shape, at every size of `variations`."""
    first = [dict(batch.inputs) for batch in samples.take(_SAMPLES).batches(1)]
    same_shape = [f for f in first if all(f[k].shape == v.shape for k, v in first[0].items())]
    for several in zip(*(dynamic_shape_variants(feeds, sig) for feeds in same_shape), strict=True):
        yield several[0][0], [feeds for _, feeds in several]


def _outputs(session: ort.InferenceSession, several: list[Feeds]) -> list[_Output]:
    """Each output over several runs."""
    found = []
    for values in zip(*(run(session, feeds) for feeds in several), strict=True):
        ranks = {v.ndim for v in values}
        sizes = zip(*(v.shape for v in values), strict=True) if len(ranks) == 1 else ()
        shape = tuple(s[0] if len(set(s)) == 1 else None for s in sizes)
        found.append(_Output(shape, all(v.dtype.kind != "f" or bool(np.isfinite(v).all()) for v in values)))
    return found


def _agree(wanted: Shape, found: Shape) -> bool:
    return len(wanted) == len(found) and all(w is None or w == f for w, f in zip(wanted, found, strict=True))


def judge(score: Score, speedup: Ratio | None, max_drop: float, goal: str, problems: list[str]) -> Verdict:
    """(b) and (c): the drop on validation samples, and the interval of the speed-up."""
    reasons = list(problems)
    if not score.keeps(max_drop):
        what = f"{score.metric} of {score.output}" if score.output else score.metric
        allowed = score.allowed(max_drop)
        reasons.append(f"it loses {score.drop:.4f} {what} on the validation samples (allowed {allowed:g})")
    elif score.expected and score.high > _MAY_LOSE * score.allowed(max_drop):
        reasons.append(
            f"it may lose up to {score.high:.4f} {score.metric} (allowed {score.allowed(max_drop):g}): "
            f"{score.samples} validation samples cannot tell; give more"
        )
    if speedup is not None and speedup.high < 1.0:
        reasons.append(f"it is slower: {speedup.speedup:.3f}x [{speedup.low:.3f}, {speedup.high:.3f}]")
    elif speedup is not None and goal == "latency" and speedup.low <= 1.0:
        reasons.append(f"it is not measurably faster: {speedup.speedup:.3f}x [{speedup.low:.3f}, {speedup.high:.3f}]")
    return Verdict(not reasons, tuple(reasons), score, speedup)
