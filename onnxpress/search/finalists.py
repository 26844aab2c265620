"""The end of a search: the finalists timed together, and looked at on the validation samples until one holds the
contract.

Without a goal in time the fastest comes first; with one ("at least twice as fast") those that reach it come first, the
least harmed before the others.  Where none of them holds, the fastest that does is taken, and the goal is told to be
missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from onnxpress.data.dataset import Splits
from onnxpress.errors import Problem
from onnxpress.evaluate.profile_comparison import ProfileComparison, profile_compare
from onnxpress.measure.score import Score
from onnxpress.model.files import to_bytes, write_atomic
from onnxpress.passes.core.contract import Refusal
from onnxpress.passes.int8.static_int8 import refusals
from onnxpress.plan import result_contract
from onnxpress.plan.candidate_store import Candidate, model_of
from onnxpress.plan.plan import Plan, new_plan
from onnxpress.progress import Progress
from onnxpress.result import Result, size_change_text
from onnxpress.runtime.latency import Effort, LatencyComparison, Ratio, compare_latency
from onnxpress.search.candidate_factory import CandidateFactory
from onnxpress.search.finalist_scores import FinalistScores, what_samples_tell
from onnxpress.search.pareto import pareto_front
from onnxpress.search.request import OptimizeOptions
from onnxpress.search.search import Improvement, Search, allowed

_FINALISTS, _FASTEST, _AT_LEAST = 6, 2, 4  # at most; of them the fastest; at least, where there are so many
_CLOSER = 0.7  # times the error of the outputs, at most, of a finalist that is slower than another
_BOUNDS = (0, 1, 2, 5)  # times the metric's default drop, for which the fastest candidate is named
_PROFILED, _PROFILE_SHARE = (
    1.0,
    0.01,
)  # seconds of looking where the time goes (reading it takes twice as long); of the time, if less
_PROFILED_RUNS = 24  # of both models at least: too many for one that takes seconds
_COUNTED = ("top-1", "agreement")  # metrics of answers that are right or wrong
_ROUGHLY = 0.97  # of a wished speed-up, in a short timing: the last timing decides


@dataclass(frozen=True)
class OtherBound:
    """The fastest candidate for another allowed drop, on the selection samples.

    max_drop: the allowed drop of the metric that matters most. name, id: of the candidate. drop: what it uses of the
    metric, in that unit. speedup: of the final timing where timed, else of a short one. size: bytes of the file.
    """

    max_drop: float
    name: str
    id: str
    drop: float
    speedup: float
    timed: bool
    size: int


@dataclass(repr=False)
class OptimizeResult(Result):
    """What a run found.

    chosen, chosen_id: name and id of the accepted candidate, or "original". met: whether the goal was reached. data:
    the bytes of the accepted file. score, speedup: on the validation samples, and of the final timing. final: that
    timing. candidates: all of them.
    rejected: finalists that failed the contract, with reasons. looks: number of times the validation samples were used.
    profile_comparison: layers and operators before and after; None where nothing was accepted. refused: units that
    passes cannot change. judged_by: the metrics, and why. other_bounds: what other allowed drops give.
    sample_notes: how few samples were used, and what they cannot tell. improvements: the best candidates so far, each
    with the time when it was found.
    """

    _hidden: ClassVar[frozenset[str]] = frozenset(("data", "plan", "candidates", "final"))

    chosen: str
    chosen_id: str
    met: bool
    reasons: list[str]
    data: bytes
    plan: Plan
    original_size: int
    score: Score | None
    speedup: Ratio | None
    final: LatencyComparison | None
    candidates: list[Candidate]
    rejected: dict[str, list[str]]
    looks: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    interrupted: bool = False
    profile_comparison: ProfileComparison | None = None
    refused: list[Refusal] = field(default_factory=list)
    judged_by: list[str] = field(default_factory=list)
    other_bounds: list[OtherBound] = field(default_factory=list)
    sample_notes: list[str] = field(default_factory=list)
    improvements: list[Improvement] = field(default_factory=list)

    @property
    def improved(self) -> bool:
        """Whether anything is better than the original; nothing is written otherwise."""
        return self.chosen_id != "original"

    @property
    def model(self) -> ir.Model:
        """The accepted model."""
        return ir.from_proto(onnx.load_from_string(self.data))

    @property
    def front(self) -> set[str]:
        """Ids of the candidates on the Pareto front of speed, drop and size."""
        speeds = {r.name: r.speedup for r in self.final.ratios} if self.final is not None else {}
        points = [
            (-(speeds.get(c.id) or c.quick or 0.0), c.score.equivalent_drop, float(c.size)) for c in self.candidates
        ]
        return {self.candidates[i].id for i in pareto_front(points)}

    def save(self, path: str | Path) -> None:
        """Write the accepted file, atomically."""
        write_atomic(path, self.data)

    def facts(self) -> list[tuple[str, str]]:
        rows = [("chosen", self.chosen), ("goal", "reached" if self.met else "not reached")]
        if self.speedup is not None:
            ratio = self.speedup
            rows.append(("speed-up", f"{ratio.speedup:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}]"))
        rows.append(("size", size_change_text(self.original_size, len(self.data))))
        if self.score is not None:
            rows.append(("validation samples", self.score.text()))
        rows += [("quality", line) for line in self.judged_by]
        return [*rows, *(("reason", r) for r in self.reasons), *(("advice", a) for a in self.advice)]


def finalists(
    original: ir.Model, splits: Splits, search: Search, options: OptimizeOptions, seconds: float
) -> OptimizeResult:
    """Time the finalists together, then check them on the validation samples from the best down."""
    report = _report(search)
    report("timing the finalists", 0.0)
    timed = _selected(search, options)
    final = compare_latency(
        {"original": original, **{c.id: c.data for c in timed}},
        search.factory.feeds,
        Effort(seconds=seconds, precision=0.004, seed=options.seed),
        progress=lambda done: report("timing the finalists", 0.6 * done),
    )
    report("validating", 0.6)
    rejected: dict[str, list[str]] = {}
    accepted, score, looks = _first_accepted(original, splits, search, options, (timed, final, rejected))
    result = _result(original, search, (accepted, score, final), rejected, looks)
    if accepted is not None:
        result.met = _met(accepted, final, search.target)
    if not result.met:
        result.reasons = _goal(result, search.target) + _why(result, search)
        result.reasons += [f"{name} failed: {why}" for name, why in search.failed.items()]
        result.advice = (["ask for less speed"] if search.target else []) + _advice(result, splits, search)
    result.notes = result.notes + [f"{name} failed: {why}" for name, why in search.failed.items()]
    if search.untried:
        result.notes.append(f"`time_budget` was over before these were tried: {', '.join(search.untried)}")
    if accepted is not None:
        report("profiling", 0.95)
        if _PROFILED_RUNS * final.timings[0].median < 2 * _PROFILE_SHARE * options.time_budget:
            feeds = search.factory.feeds[0]
            result.profile_comparison = _profiles(original, model_of(accepted), feeds, options)
    result.refused = _refused(search.factory)
    result.improvements = search.improvements
    result.judged_by = search.factory.scorer.judge.text()
    result.sample_notes = what_samples_tell(splits, score, search.max_drop)
    result.other_bounds = other_bounds(search, final)
    report("done", 1.0)
    return result


def _report(search: Search) -> Progress:
    """Progress of what follows the search."""
    start = search.budget.searching
    return lambda stage, done: search.progress(stage, start + (1 - start) * done)


def other_bounds(search: Search, final: LatencyComparison | None) -> list[OtherBound]:
    """The fastest candidates that lose nothing, and one, two and five times the metric's default drop."""
    timed = {r.name: r.speedup for r in final.ratios} if final is not None else {}
    default = search.factory.scorer.allowed_drop(None)
    found: list[OtherBound] = []
    for bound in (share * default for share in _BOUNDS):
        speeds = {c.id: timed.get(c.id) or c.quick or 0.0 for c in search.found if allowed(c, bound)}
        able = [c for c in search.found if c.id in speeds and (search.goal == "size" or speeds[c.id] > 1)]
        if not able:
            continue
        best = max(able, key=lambda c: speeds[c.id])
        speed = speeds[best.id]
        drop = best.score.equivalent_drop
        found.append(OtherBound(bound, best.name, best.id, drop, speed, best.id in timed, best.size))
    return found


def ladder(ranked: Sequence[Candidate], count: int) -> list[Candidate]:
    """The first candidates, and then further ones, each the first whose outputs are much closer to the original's.

    The drop of few samples is noisy, so that validation may refuse all of the fastest; the error of the outputs tells
    more about which of the others it will not.
    """
    found = list(ranked[:_FASTEST])
    for candidate in ranked[_FASTEST:]:
        if len(found) < count and candidate.score.nmse <= _CLOSER * min(c.score.nmse for c in found):
            found.append(candidate)
    for candidate in ranked:  # none is closer: the next ones
        if len(found) < min(count, _AT_LEAST) and candidate not in found:
            found.append(candidate)
    return found


def _selected(search: Search, options: OptimizeOptions) -> list[Candidate]:
    """The candidates that are timed together: the best by selection samples and short timings, and the exact one."""
    able = [c for c in search.found if allowed(c, search.max_drop) and not c.exact]
    quick = {c.id: c.quick or 0.0 for c in search.found}
    ranked = _ranked(able, quick, options.goal, _ROUGHLY * search.target)
    sure = _ranked(able, quick, options.goal, search.target / _ROUGHLY)[:1]  # where the others' times were lucky
    found = ladder(ranked, _FINALISTS)
    for candidate in sure:
        if candidate not in found:
            found.append(candidate)
    return found + [c for c in search.found if c.exact]


def _first_accepted(
    original: ir.Model,
    splits: Splits,
    search: Search,
    options: OptimizeOptions,
    finals: tuple[list[Candidate], LatencyComparison, dict[str, list[str]]],
) -> tuple[Candidate | None, Score | None, int]:
    """The first finalist that keeps the contract, its score and the number of looks at the validation samples.

    finals: the finalists, their timing, and the reasons for rejection, which are filled in.
    """
    timed, final, rejected = finals
    speeds = {c.id: final.ratio(c.id).low if search.target else final.ratio(c.id).speedup for c in timed}
    judged = FinalistScores(original, splits, search)
    for looks, candidate in enumerate(_ranked(timed, speeds, options.goal, search.target), 1):
        score = judged.score(candidate)
        problems = result_contract.same_shape_behaviour(original, candidate.data, splits.validate)
        if options.goal == "size" and candidate.size >= len(to_bytes(original)):
            problems.append(f"it is not smaller: {size_change_text(len(to_bytes(original)), candidate.size)}")
        verdict = result_contract.judge(score, final.ratio(candidate.id), search.max_drop, options.goal, problems)
        if verdict.accepted:
            return candidate, score, looks
        rejected[candidate.id] = list(verdict.reasons)
    return None, None, len(timed)


def _result(
    original: ir.Model,
    search: Search,
    found: tuple[Candidate | None, Score | None, LatencyComparison],
    rejected: dict[str, list[str]],
    looks: int,
) -> OptimizeResult:
    """The result with the accepted candidate (with its score and the final timing), or the original."""
    accepted, score, final = found
    data = to_bytes(original)
    plan = new_plan(original, search.factory.calibrate, search.factory.seed)
    return OptimizeResult(
        "original" if accepted is None else accepted.name,
        "original" if accepted is None else accepted.id,
        False,
        [],
        data if accepted is None else accepted.data,
        plan if accepted is None else accepted.plan,
        len(data),
        score,
        None if accepted is None else final.ratio(accepted.id),
        final,
        search.found,
        rejected,
        looks,
        search.budget.elapsed,
        [] if accepted is None else accepted.notes,
    )


def _met(accepted: Candidate, final: LatencyComparison, target: float) -> bool:
    """Whether the goal is reached: the target speed-up; without one, what was accepted has shown its gain."""
    ratio = final.ratio(accepted.id)
    return ratio.low >= target if target else True


def _refused(factory: CandidateFactory) -> list[Refusal]:
    """Nodes with weights that a technique cannot act on, and why."""
    evidence = factory.exact_evidence
    if evidence is None:
        return []
    try:
        narrow = evidence.channels.refused
    except Problem:  # what cannot be traced is not pruned either
        narrow = ()
    whole = [Refusal(r.unit, f"int8: {r.reason}") for r in refusals(evidence)]
    return whole + [Refusal(r.node, f"pruning: {r.reason}") for r in narrow]


def _profiles(
    original: ir.Model, other: ir.Model, feeds: Mapping[str, np.ndarray], options: OptimizeOptions
) -> ProfileComparison | None:
    """For the record alone: a model that cannot be profiled is as good, whatever the profiler stumbles over."""
    settings = options.sessions
    try:
        return profile_compare(original, other, feeds, min(_PROFILED, _PROFILE_SHARE * options.time_budget), settings)
    except Exception:
        return None


def _ranked(some: list[Candidate], speeds: dict[str, float], goal: str, target: float) -> list[Candidate]:
    """The best first: the smallest, or the fastest; with a target those that reach it, the least harmed first, and
    then the others."""
    if goal == "size":
        return sorted(some, key=lambda c: c.size)
    fast = sorted(some, key=lambda c: -speeds[c.id])
    if not target:
        return fast
    reached = sorted((c for c in fast if speeds[c.id] >= target), key=lambda c: (c.score.used(), c.score.nmse))
    return reached + [c for c in fast if c not in reached]


def _goal(result: OptimizeResult, target: float) -> list[str]:
    """That a goal in time was missed, and by how much."""
    if not target:
        return []
    best_speed = (
        "nothing faster held" if result.speedup is None else f"the fastest that holds is {result.speedup.speedup:.2f}x"
    )
    return [f"{target:.2f}x the original's speed was not reached: {best_speed}"]


def _why(result: OptimizeResult, search: Search) -> list[str]:
    names = {c.id: c.name for c in result.candidates}
    reasons = [f"{names[key]}: {'; '.join(why)}" for key, why in result.rejected.items()]
    lost = [c for c in result.candidates if not allowed(c, search.max_drop)]
    reasons += [f"{c.name}: loses {c.score.drop:.4f} {c.score.metric} on the selection samples" for c in lost]
    return reasons


def _advice(result: OptimizeResult, splits: Splits, search: Search) -> list[str]:
    found = []
    if any(not c.score.keeps(search.max_drop) for c in result.candidates):
        found.append("allow a larger `max_drop`")
    if len(splits.calibrate) < 64:
        found.append(f"give more samples (calibration had {len(splits.calibrate)})")
    if len(splits.validate) < 200 and search.factory.scorer.metric in _COUNTED:
        found.append(
            f"give more validation samples ({len(splits.validate)} "
            f"resolve drops of {1 / max(len(splits.validate), 1):.3f} at best)"
        )
    found.append("give a longer `time_budget`")
    return found


def summary(result: OptimizeResult) -> dict[str, object]:
    """The result as a record holds it; candidates by their names."""
    names = {c.id: c.name for c in result.candidates}
    final = result.final
    return {
        "chosen": result.chosen,
        "chosen_id": result.chosen_id,
        "met": result.met,
        "reasons": result.reasons,
        "advice": result.advice,
        "bytes": len(result.data),
        "original_bytes": result.original_size,
        "validate": result.score,
        "speedup": result.speedup,
        "timings": [replace(t, name=names.get(t.name, t.name)) for t in final.timings] if final else [],
        "ratios": [replace(r, name=names.get(r.name, r.name)) for r in final.ratios] if final else [],
        "warnings": result.final.warnings if result.final else [],
        "rejected": {names[key]: why for key, why in result.rejected.items()},
        "validation_looks": result.looks,
        "seconds": result.seconds,
        "notes": result.notes,
        "interrupted": result.interrupted,
        "profile_comparison": result.profile_comparison,
        "refused": result.refused,
        "judged_by": result.judged_by,
        "other_bounds": result.other_bounds,
        "sample_notes": result.sample_notes,
        "improvements": result.improvements,
    }
